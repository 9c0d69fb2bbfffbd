"""The control side of a connection: one lazy channel per process, and the unary calls."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sampler_client import wire
from sampler_client._pb import sampler_pb2 as pb
from sampler_client._pb import sampler_pb2_grpc as pb_grpc
from sampler_client.config import RunOptions, Timeouts, check_whole
from sampler_client.errors import Busy, ConfigError, MessageTooLarge, ServiceUnavailable, VersionMismatch, grpc_errors

if TYPE_CHECKING:
    from sampler_client.record_stream import RecordStream

_PAUSES_S = (0.1, 0.3, 0.9)
"""Before a second, third and fourth attempt: a blip is worth them before the caller hears of it."""

_CONNECTION = (
    # With gRPC's own retries, about one in sixty streams that failed to connect was never told so, and a cancel did
    # not end it either (grpcio 1.85.1): hence `_call` makes the attempts.
    ("grpc.enable_retries", 0),
    # gRPC's own pause between attempts grows to two minutes: longer than a service is given to come back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


MOST_EXAMPLE_ID = 2**63 - 1
"""that fits into a message; which ids a run has is for the service to say"""

_DELETED_AT_ONCE = 1 << 20
"""ids of one message"""

_opened_in = 0
"""The process that opened a channel first. A fork copies this number, and with it a gRPC that no longer works."""


class SamplerClient:
    """Control calls to one service. Cheap to make: nothing is opened before the first call.

    The channel belongs to the process that opened it; when unpickled in another (spawn, forkserver), the first call
    opens another. A process forked after a first channel was opened can have none: gRPC would hang or crash there,
    so it is a ConfigError. Threads may share a client.

    Args:
        address: "host:port" of the service.
        timeouts: deadlines; see Timeouts.
    """

    def __init__(self, address: str, *, timeouts: Timeouts | None = None) -> None:
        if not address or ":" not in address:
            raise ConfigError(f'address must be "host:port", got {address!r}')
        self.address = address
        self.timeouts = timeouts or Timeouts()
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "timeouts": self.timeouts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["address"], timeouts=state["timeouts"])

    def __enter__(self) -> SamplerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def channel(self) -> grpc.Channel:
        """The channel of this process, opened on first use."""
        with self._lock:
            if self._channel is None or self._pid != os.getpid():
                _claim_process()
                # A channel inherited through fork is left alone: closing it here would disturb the parent's.
                self._channel = grpc.insecure_channel(
                    self.address,
                    options=(*wire.CHANNEL_OPTIONS, *_CONNECTION),
                )
                self._pid = os.getpid()
            return self._channel

    def close(self) -> None:
        """Close the channel of this process; a later call opens a new one."""
        with self._lock:
            if self._channel is not None and self._pid == os.getpid():
                self._channel.close()
            self._channel = None

    # --- calls ---

    def register_dataset(self, dataset: str, num_examples: int) -> None:
        """Name a set of examples with ids 0 … num_examples-1. Idempotent.

        Raises:
            VersionMismatch: this client speaks a newer protocol than the service.
            Conflict: the dataset is registered with another size, which it did not have before it grew either.
        """
        request = pb.RegisterDatasetRequest(dataset=dataset, num_examples=num_examples, protocol=wire.PROTOCOL)
        self._call(pb_grpc.DatasetsStub(self.channel()).Register, request, f"register dataset {dataset!r}")

    def describe_dataset(self, dataset: str) -> pb.DescribeDatasetResponse:
        """How many records the service holds of a dataset, and their schema.

        Raises:
            NotFound: it holds none.
        """
        request = pb.DescribeDatasetRequest(dataset=dataset)
        return self._call(pb_grpc.DatasetsStub(self.channel()).Describe, request, f"describe dataset {dataset!r}")

    def grow_dataset(self, dataset: str, num_examples: int) -> pb.DatasetState:
        """Say that examples were appended to a data set, so that it has `num_examples` in all. Idempotent.

        Its runs take the new ones in with an epoch that begins when all their trainers can load so many: those that
        stream records from the service can at once, one with a data set of its own says so by `loader.grow()`.

        Raises:
            Conflict: it has more already.
            NotFound: nobody has registered it.
        """
        request = pb.GrowDatasetRequest(dataset=dataset, num_examples=num_examples)
        what = f"grow dataset {dataset!r} to {num_examples} examples"
        return self._call(pb_grpc.DatasetsStub(self.channel()).Grow, request, what)

    def delete_examples(self, dataset: str, example_ids: ArrayLike) -> pb.DatasetState:
        """Delete examples of a data set, for good, in all its runs. Idempotent; many cost little more than one.

        When it returns, no batch that the service sends has one of them; those that were sent before may.

        Args:
            dataset: its name.
            example_ids: (r,) whole numbers.

        Raises:
            ConfigError: an id that it does not have, or all that are left; none of the ids was deleted then, or of more
                than a million the first millions.
            NotFound: nobody has registered it.
            ServiceUnavailable: a run could not be told; call again.
        """
        ids = np.asarray(example_ids)
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            raise ConfigError(f"example_ids must be (r,) whole numbers, got shape {ids.shape} of {ids.dtype}")
        state = pb.DatasetState()
        for start in range(0, len(ids), _DELETED_AT_ONCE):
            part = ids[start : start + _DELETED_AT_ONCE].astype("<i8")
            request = pb.DeleteExamplesRequest(dataset=dataset, example_ids=part.tobytes())
            what = f"delete {len(part)} examples of dataset {dataset!r}"
            state = self._call(pb_grpc.DatasetsStub(self.channel()).Delete, request, what)
        return state

    def open_run(self, run: str, dataset: str, options: RunOptions, num_examples: int = 0) -> pb.OpenRunResponse:
        """Create a run, or find it again when it was opened alike. Idempotent.

        Args:
            run: its name.
            dataset: a registered one.
            options: what it is to be.
            num_examples: that it begins with, from the data set's first number to its present one; 0: that.
        """
        request = pb.OpenRunRequest(
            run=run,
            dataset=dataset,
            policy=options.policy,
            policy_options=dict(options.policy_options),
            seed=options.seed,
            sketch_dim=options.sketch_dim,
            sketch_dtype=options.sketch_dtype,
            num_clusters=options.num_clusters,
            max_lead=options.max_lead,
            lease_seconds=options.lease_s,
            on_lost=options.on_lost,
            epochs=options.epochs,
            by_budget=options.by_budget,
            candidates=options.candidates,
            num_examples=num_examples,
        )
        what, limit_s = f"open run {run!r}", self.timeouts.open_s
        return self._call(pb_grpc.RunsStub(self.channel()).Open, request, what, limit_s=limit_s)

    def join(self, request: pb.JoinRequest) -> pb.JoinResponse:
        """Claim a rank of a run; see the proto for what a repeat does."""
        what = f"join run {request.run!r} as rank {request.rank}"
        return self._call(pb_grpc.RunsStub(self.channel()).Join, request, what)

    def leave(self, session: str, *, done: bool = False) -> None:
        """Give a rank back; what it has goes to others, unless the trainer is `done` with all of it."""
        request = pb.LeaveRequest(session=session, done=done)
        self._call(pb_grpc.RunsStub(self.channel()).Leave, request, "leave the run", pauses_s=())

    def set_reference(self, run: str, losses: NDArray[np.float32]) -> int:
        """Losses of all examples, (num_examples,), under a reference model; needed by `rho_loss`."""
        data = np.ascontiguousarray(losses, dtype=np.float32).tobytes()
        request = pb.SetReferenceRequest(run=run, losses=data)
        what = f"set reference losses of run {run!r}"
        return self._call(pb_grpc.RunsStub(self.channel()).SetReference, request, what).table_version

    def set_groups(self, run: str, groups: NDArray[np.int64]) -> int:
        """Groups of all examples, (num_examples,) whole numbers. Pairs of one group match one another, and
        `hard_negative` takes none of them for negatives; labels let `validation_alignment` judge an example that was
        not seen of late by others of its class.

        Raises:
            ConfigError: they are no vector of whole numbers, or not as many as the run has examples.
        """
        group_n = np.asarray(groups)
        if group_n.ndim != 1 or group_n.dtype.kind not in "iu":
            raise ConfigError(
                f"groups must be a vector of whole numbers, one for each example; got {group_n.dtype} of shape "
                f"{group_n.shape}"
            )
        data = np.ascontiguousarray(group_n, dtype=np.int64).tobytes()
        request = pb.SetGroupsRequest(run=run, groups=data)
        what = f"set groups of run {run!r}"
        return self._call(pb_grpc.RunsStub(self.channel()).SetGroups, request, what).table_version

    def set_target(self, run: str, sketches: NDArray[Any]) -> int:
        """Sketches (m, sketch_dim) of held-out examples, float16 or float32; needed by `poa` and
        `validation_alignment`, whose next batches know of them."""
        request = pb.SetTargetRequest(run=run, sketches=wire.encode_array(np.asarray(sketches)))
        what = f"set target of run {run!r}"
        return self._call(pb_grpc.RunsStub(self.channel()).SetTarget, request, what).table_version

    def announce_drop(self, run: str) -> None:
        """Say that the learning rate drops now, so that the clusters are made anew."""
        request = pb.AnnounceDropRequest(run=run)
        self._call(pb_grpc.RunsStub(self.channel()).AnnounceDrop, request, f"announce a drop to run {run!r}")

    def close_run(self, run: str) -> None:
        """End a run and forget its sketches."""
        self._call(pb_grpc.RunsStub(self.channel()).Close, pb.CloseRunRequest(run=run), f"close run {run!r}")

    def runs(self) -> list[str]:
        """Names of the runs that are open."""
        return list(self._call(pb_grpc.RunsStub(self.channel()).List, pb.ListRunsRequest(), "list runs").runs)

    def statistics(self, run: str, *, detail: bool = False) -> pb.GetStatisticsResponse:
        """What the service knows of a run; fields are described in the proto.

        Args:
            run: its name.
            detail: with histograms and clusters.
        """
        request = pb.GetStatisticsRequest(run=run, detail=detail)
        return self._call(pb_grpc.StatisticsStub(self.channel()).Get, request, f"statistics of run {run!r}")

    def explain(self, run: str, example_id: int, *, neighbours: int = 8) -> pb.ExplainResponse:
        """Why an example was drawn as often as it was, or never, and what is near it in gradient space.

        Args:
            run: its name.
            example_id: 0 … num_examples-1.
            neighbours: how many to look for, 1 to 100.

        Raises:
            ConfigError: a number that is out of range.
        """
        check_whole("example_id", example_id, 0, MOST_EXAMPLE_ID)
        check_whole("neighbours", neighbours, 1)
        request = pb.ExplainRequest(run=run, example_id=example_id, neighbours=neighbours)
        what = f"explain example {example_id} of run {run!r}"
        return self._call(pb_grpc.StatisticsStub(self.channel()).Explain, request, what)

    def examples(self, run: str, order: str, *, count: int = 24) -> list[pb.ExampleStatistics]:
        """Examples that stand out.

        Args:
            run: its name.
            order: "hardest", "redundant", "most_drawn" or "never_drawn".
            count: how many at most, 1 to 1000.

        Raises:
            ConfigError: another order, or a number that is out of range.
        """
        check_whole("count", count, 1)
        request = pb.ExamplesRequest(run=run, order=order, count=count)
        what = f"{order} examples of run {run!r}"
        return list(self._call(pb_grpc.StatisticsStub(self.channel()).Examples, request, what).examples)

    def fence(self, run: str) -> int:
        """Return, with its version, when everything reported before is in the table of the next batch."""
        request = pb.FenceRequest(run=run)
        stub = pb_grpc.ReportsStub(self.channel())
        return self._call(stub.Fence, request, f"fence of run {run!r}").table_version

    def batches(self, *, run: str, dataset: str, batch_size: int, **options: Any) -> RecordStream:
        """Join a run over a dataset whose records the service holds, and stream its batches with them.

        Without torch; in a DataLoader see `RemoteBatches`. `options` are those of `RecordStream.connect`.

        Example:
            with client.batches(run="mnist-mlp", dataset="mnist", batch_size=64) as batches:
                for batch in batches:  # an epoch; again for the next
                    train(batch.records, batch.weights)
        """
        from sampler_client.record_stream import RecordStream

        return RecordStream.connect(
            self.address, run=run, dataset=dataset, batch_size=batch_size, timeouts=self.timeouts, **options
        )

    def stop_service(self) -> None:
        """Ask a service on this machine to drain and end."""
        self._call(pb_grpc.ControlStub(self.channel()).Stop, pb.StopRequest(), "stop the service", pauses_s=())

    def send_reports(self, reports: Iterable[pb.Report]) -> pb.ReportSummary:
        """Send reports and wait until they are in the table; safe to repeat.

        Raises:
            MessageTooLarge: one of them is over the limit of both ends; nothing was sent.
        """
        what = "send reports"
        reports = list(reports)
        for report in reports:  # before the first is sent: grpc would refuse one in the middle
            check_size(report.ByteSize(), f"{what}: the report of batch {report.batch_id}")
        with grpc_errors(what, self.address):
            stub = pb_grpc.ReportsStub(self.channel())
            return stub.Send(wire.bundle_reports(reports), timeout=self.timeouts.report_s)

    def publish(self, session: str, step: int, data: bytes) -> pb.PublishResponse:
        """Send the weights of a model, a safetensors file, to the scorers of a run.

        Args:
            session: of the trainer.
            step: optimiser steps that made them.
            data: the file.
        """
        with grpc_errors("publish weights", self.address):
            stub = pb_grpc.RunsStub(self.channel())
            return stub.Publish(wire.encode_weights(session, step, data), timeout=self.timeouts.publish_s)

    def _call(
        self,
        method: Callable[..., Any],
        request: Any,
        what: str,
        pauses_s: tuple[float, ...] = _PAUSES_S,
        limit_s: float | None = None,
    ) -> Any:
        """Call, and again while nobody has time for it; `limit_s`, or else `call_s`, bounds all attempts together."""
        check_size(request.ByteSize(), what)
        deadline = time.monotonic() + (limit_s or self.timeouts.call_s)
        pauses = list(pauses_s)
        while True:
            try:
                with grpc_errors(what, self.address):
                    return method(request, timeout=deadline - time.monotonic())
            except VersionMismatch as error:
                raise VersionMismatch(f"{error} (this client speaks protocol {wire.PROTOCOL})") from None
            except (ServiceUnavailable, Busy):
                if not pauses or time.monotonic() + pauses[0] >= deadline:
                    raise
                time.sleep(pauses.pop(0))


def check_size(size: int, what: str) -> None:
    """Raise MessageTooLarge when a message of `size` bytes would be refused."""
    if size > wire.MAX_MESSAGE_BYTES:
        raise MessageTooLarge(
            f"{what} has {size} bytes, one message may have {wire.MAX_MESSAGE_BYTES}; send fewer rows or narrower ones"
        )


def _claim_process() -> None:
    """Refuse to use gRPC in a process that was forked from one that did: it hangs or crashes there (grpc#32992)."""
    global _opened_in
    if _opened_in not in (0, os.getpid()):
        raise ConfigError(
            f"process {os.getpid()} was forked from process {_opened_in}, which had a connection to the service; gRPC "
            'does not survive that. Give the DataLoader multiprocessing_context="spawn" or "forkserver"'
        )
    _opened_in = os.getpid()


def option_texts(options: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """Policy options as sorted (name, text) pairs, the form they have on the wire."""
    return tuple(sorted((name, str(value)) for name, value in (options or {}).items()))
