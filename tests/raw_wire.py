"""The wire without the client's care: bare stubs, a bare stream, and a client session with short deadlines."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from sampler_client import wire
from sampler_client._pb import sampler_pb2 as pb
from sampler_client._pb import sampler_pb2_grpc as pb_grpc
from sampler_client.client import SamplerClient
from sampler_client.config import RunOptions, Timeouts
from sampler_client.session import Session

QUICK = Timeouts(call_s=5.0, batch_s=5.0, report_s=5.0, reconnect_s=5.0)
N = 40


def open_session(address: str, **changes: Any) -> Session:
    """A real client over a dataset of N examples, batches of 4."""
    options = {"policy": "shuffle", "sketch_dim": 4} | changes.pop("options", {})
    settings = {
        "run": "run",
        "dataset": "data",
        "num_examples": N,
        "rank": 0,
        "world_size": 1,
        "batch_size": 4,
        "drop_last": False,
        "lead": 4,
    } | changes
    client = SamplerClient(address, timeouts=settings.pop("timeouts", QUICK))
    return Session(client, options=RunOptions(**options), **settings)


def ids_of(batch: pb.Batch) -> list[int]:
    return np.frombuffer(batch.example_ids, np.int64).tolist()


def drain(session: Session) -> list[int]:
    """Examples of the rest of the epoch, each batch done as soon as it comes."""
    ids = []
    while (batch := session.next()) is not None:
        ids += ids_of(batch)
        session.done(batch.batch_id)
    session.finish_epoch()
    return ids


def report_message(session: str, ids: list[int], **changes: Any) -> pb.Report:
    ids_r = np.array(ids, np.int64)
    values = {"batch_id": 0, "step": 0, "losses": np.ones(len(ids), np.float32), "norms": None, "sketches": None}
    return wire.encode_report(session=session, example_ids=ids_r, **(values | changes))


class RawStream:
    """A batch stream whose requests are sent one by one, and whose replies are read with a deadline."""

    def __init__(self, channel: grpc.Channel, *requests: pb.BatchRequest) -> None:
        self._requests: queue.SimpleQueue[pb.BatchRequest | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[pb.BatchReply | grpc.RpcError | None] = queue.SimpleQueue()
        self._call = pb_grpc.BatchesStub(channel).Stream(iter(self._requests.get, None))
        threading.Thread(target=self._read, daemon=True).start()
        for request in requests:
            self._requests.put(request)

    def _read(self) -> None:
        try:
            for reply in self._call:
                self._replies.put(reply)
            self._replies.put(None)
        except grpc.RpcError as error:
            self._replies.put(error)

    def send(self, **request: Any) -> None:
        self._requests.put(pb.BatchRequest(**request))

    def half_close(self) -> None:
        self._requests.put(None)

    def cancel(self) -> None:
        self._call.cancel()
        self._requests.put(None)

    def reply(self, timeout_s: float = 5.0) -> pb.BatchReply | None:
        """The next reply; None at the stream's end in good order. Raises what the call failed with."""
        reply = self._replies.get(timeout=timeout_s)
        if isinstance(reply, grpc.RpcError):
            raise reply
        return reply

    def quiet(self, seconds: float = 0.3) -> bool:
        """Whether nothing comes for a while."""
        try:
            self.reply(seconds)
        except queue.Empty:
            return True
        return False

    def batches(self, count: int) -> list[pb.Batch]:
        """Replies until so many batches have come."""
        batches: list[pb.Batch] = []
        while len(batches) < count:
            reply = self.reply()
            assert reply is not None and reply.WhichOneof("reply") == "block", reply
            batches += reply.block.batch
        return batches


@contextmanager
def raw_channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address, options=wire.CHANNEL_OPTIONS) as channel:
        yield channel


def hello(session: str, **changes: Any) -> pb.BatchRequest:
    return pb.BatchRequest(hello=pb.Hello(session=session, **changes))


def raw_join(channel: grpc.Channel, run: str = "run", **changes: Any) -> str:
    """Open a run over N examples and join it; the session."""
    join = {"rank": 0, "world_size": 1, "batch_size": 4, "lead": 4, "trainer": "raw"}
    opened = {"policy": "shuffle", "sketch_dim": 4}
    for name, value in changes.items():
        (join if name in join else opened)[name] = value
    pb_grpc.DatasetsStub(channel).Register(pb.RegisterDatasetRequest(dataset="data", num_examples=N), timeout=5)
    pb_grpc.RunsStub(channel).Open(pb.OpenRunRequest(run=run, dataset="data", **opened), timeout=5)
    return pb_grpc.RunsStub(channel).Join(pb.JoinRequest(run=run, **join), timeout=5).session
