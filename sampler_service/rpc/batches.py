"""The batch stream: reads a trainer's requests in one thread and answers them in another."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator

import grpc
import numpy as np
from sampler_client._pb import sampler_pb2 as pb
from sampler_client._pb import sampler_pb2_grpc as pb_grpc

from sampler_service.errors import ConfigError, SamplerError
from sampler_service.rpc.status import errors_as_status
from sampler_service.service import Service
from sampler_service.types import Batch

log = logging.getLogger(__name__)

WAIT_S = 0.1
"""pause before asking again for batches that another trainer may give back"""


class BatchesServicer(pb_grpc.BatchesServicer):
    """One Stream call per trainer session."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._draining = threading.Event()

    def drain(self) -> None:
        """End every stream after the batches it is sending."""
        self._draining.set()

    def Stream(  # noqa: N802
        self, request_iterator: Iterator[pb.BatchRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.BatchReply]:
        with errors_as_status(context):
            yield from self._serve(request_iterator, context)

    def _serve(
        self, request_iterator: Iterator[pb.BatchRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.BatchReply]:
        hello = next(request_iterator, None)
        if hello is None or hello.WhichOneof("request") != "hello":
            raise ConfigError("the first request of a batch stream must be hello")
        session = hello.hello.session
        self._service.connect(session, hello.hello.last_batch_id, list(hello.hello.held))
        inbox: queue.SimpleQueue[pb.BatchRequest | None] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(request_iterator, inbox), name="batch-requests", daemon=True).start()
        # Also wakes the answering thread when the trainer is gone and will never send again.
        context.add_callback(lambda: inbox.put(None))
        try:
            yield from self._answer(session, inbox)
        finally:
            self._disconnect(session)

    def _answer(self, session: str, inbox: queue.SimpleQueue[pb.BatchRequest | None]) -> Iterator[pb.BatchReply]:
        """Turn credit into batches until the requests end."""
        credit, epoch, acked = 0, None, []
        while not self._draining.is_set():
            wanted = credit if epoch is not None else 0
            try:
                request = inbox.get(block=not wanted, timeout=1.0 if not wanted else None)
            except queue.Empty:
                request = pb.BatchRequest()
            if request is None:
                return
            kind = request.WhichOneof("request")
            if kind == "epoch":
                started = self._service.start_epoch(
                    session, request.epoch.epoch, request.epoch.skip_examples, request.epoch.first_step
                )
                credit, epoch = 0, started.epoch
                yield pb.BatchReply(
                    epoch_start=pb.EpochStart(
                        epoch=started.epoch,
                        num_steps=started.num_steps,
                        policy=started.policy,
                        reason=started.reason,
                    )
                )
            elif kind == "credit":
                credit += request.credit.count
                acked.extend(request.credit.acked)
            elif kind == "hello":
                raise ConfigError("a batch stream has one hello; open another stream for another session")
            if not inbox.empty():
                continue  # several requests may be waiting: one call to the run serves them all
            if acked or (epoch is not None and credit > 0):
                taken = self._service.take(session, credit if epoch is not None else 0, acked)
                acked = []
                credit -= len(taken.batches)
                for batch in taken.batches:
                    yield encode_batch(batch)
                if taken.ended and epoch is not None and credit > 0:
                    yield pb.BatchReply(epoch_end=pb.EpochEnd(epoch=epoch))
                    epoch = None
                elif not taken.batches and credit > 0:
                    threading.Event().wait(WAIT_S)

    def _disconnect(self, session: str) -> None:
        try:
            self._service.disconnect(session)
        except SamplerError as error:  # it left, or its rank was taken over: there is nothing to mark
            log.debug("disconnect: %s", error)


def _read(requests: Iterator[pb.BatchRequest], inbox: queue.SimpleQueue[pb.BatchRequest | None]) -> None:
    try:
        for request in requests:
            inbox.put(request)
    except grpc.RpcError:
        pass  # the trainer is gone; what it held waits for its lease
    finally:
        inbox.put(None)


def encode_batch(batch: Batch) -> pb.BatchReply:
    """The message of one batch."""
    rows = batch.rows
    return pb.BatchReply(
        batch=pb.Batch(
            batch_id=batch.batch_id,
            epoch=batch.epoch,
            step=batch.step,
            table_version=batch.table_version,
            policy=batch.policy,
            example_ids=rows.example_ids.tobytes(),
            weights=rows.weights.tobytes(),
            probabilities=rows.probabilities.astype(np.float32).tobytes(),
            cluster_ids=batch.cluster_ids.tobytes(),
            lease_deadline=batch.lease_deadline,
            lead=batch.lead,
            global_batch_size=batch.global_batch_size,
            world_size=batch.world_size,
        )
    )
