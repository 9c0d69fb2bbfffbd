"""The unary calls and reports: decode, ask the service, encode. No decisions are made here."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from urllib.parse import unquote

import grpc
import numpy as np

from sampler_client import wire
from sampler_client._pb import sampler_pb2 as pb
from sampler_client._pb import sampler_pb2_grpc as pb_grpc
from sampler_service import __version__
from sampler_service.config import RunConfig
from sampler_service.datasets import Dataset
from sampler_service.errors import Busy, ConfigError, Unavailable
from sampler_service.leases import Group
from sampler_service.policies import POLICIES
from sampler_service.reports import policy_of
from sampler_service.rpc.records import Records, follow
from sampler_service.rpc.status import errors_as_status
from sampler_service.service import Service
from sampler_service.types import Evidence, Report, Stage

NEIGHBOURS = 8
EXAMPLES = 24
"""that are looked for when nobody says how many"""

LOOKS_AT_ONCE = 8
"""calls for statistics that are served at a time: the other threads are for trainers"""

REPORTS_PER_CALL = 32
"""reports handed on together: one call to the run's actor instead of many"""


class DatasetsServicer(pb_grpc.DatasetsServicer):
    def __init__(self, service: Service, records: Records) -> None:
        self._service = service
        self._records = records

    def Register(self, request: pb.RegisterDatasetRequest, context: grpc.ServicerContext):  # noqa: N802
        if request.protocol > wire.PROTOCOL:
            context.abort(
                grpc.StatusCode.UNIMPLEMENTED,
                f"the client speaks protocol {request.protocol}, this service ({__version__}) up to {wire.PROTOCOL}; "
                "upgrade the service, or install the client's matching release",
            )
        with errors_as_status(context):
            self._service.register_dataset(request.dataset, request.num_examples)
        return pb.RegisterDatasetResponse(protocol=wire.PROTOCOL, service_version=__version__)

    def Describe(self, request: pb.DescribeDatasetRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            self._records.bring(request.dataset)
            found = follow(self._service, self._records, request.dataset)
            return pb.DescribeDatasetResponse(num_examples=found.num_examples, schema=found.schema)

    def Grow(self, request: pb.GrowDatasetRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            return _state(self._service.grow_dataset(request.dataset, request.num_examples))

    def Delete(self, request: pb.DeleteExamplesRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            ids = _array(request.example_ids, "i8", "example_ids")
            return _state(self._service.delete_examples(request.dataset, ids))


def _state(dataset: Dataset) -> pb.DatasetState:
    return pb.DatasetState(num_examples=dataset.size, deleted=dataset.deleted)


class RunsServicer(pb_grpc.RunsServicer):
    def __init__(self, service: Service, max_weights_bytes: int) -> None:
        self._service = service
        self._max_weights_bytes = max_weights_bytes

    def Open(self, request: pb.OpenRunRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            config = _run_config(request, request.num_examples or self._service.dataset_size(request.dataset))
            if config.policy not in POLICIES:
                raise ConfigError(f"unknown policy {config.policy!r}; choose one of {sorted(POLICIES)}")
            created = self._service.open_run(config)
            return pb.OpenRunResponse(created=created, unbiased=policy_of(config).unbiased, policies=sorted(POLICIES))

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            group = Group(
                world_size=request.world_size,
                batch_size=request.batch_size,
                drop_last=request.drop_last,
                workers=request.workers or 1,
            )
            if request.rank >= group.world_size or request.worker >= group.workers:
                raise ConfigError(
                    f"rank must be 0 … world_size-1 and worker 0 … workers-1, got rank {request.rank} of "
                    f"{group.world_size}, worker {request.worker} of {group.workers}"
                )
            place = request.rank + group.world_size * request.worker
            name = f"{request.trainer or 'a trainer'} at {unquote(context.peer())}"
            joined = self._service.join(
                request.run, group, place, request.lead, name, request.token, request.num_examples
            )
            return pb.JoinResponse(**asdict(joined))

    def Leave(self, request: pb.LeaveRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            self._service.leave(request.session, request.done)
        return pb.LeaveResponse()

    def SetReference(self, request: pb.SetReferenceRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            losses = _array(request.losses, "f4", "losses")
            return pb.SetReferenceResponse(table_version=self._service.set_reference(request.run, losses))

    def SetGroups(self, request: pb.SetGroupsRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            groups = _array(request.groups, "i8", "groups")
            return pb.SetGroupsResponse(table_version=self._service.set_groups(request.run, groups))

    def SetTarget(self, request: pb.SetTargetRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            try:
                sketches = wire.decode_array(request.sketches, "sketches", wire.SKETCH_DTYPES).astype(np.float32)
            except ValueError as error:
                raise ConfigError(str(error)) from error
            return pb.SetTargetResponse(table_version=self._service.set_target(request.run, sketches))

    def AnnounceDrop(self, request: pb.AnnounceDropRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            self._service.announce_drop(request.run)
        return pb.AnnounceDropResponse()

    def Publish(self, request_iterator: Iterator[pb.WeightsChunk], context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            first = next(request_iterator, None)
            if first is None or first.WhichOneof("part") != "header":
                raise ConfigError("the first message of Publish must be the header")
            header = first.header
            if not 0 < header.num_bytes <= self._max_weights_bytes:
                raise ConfigError(
                    f"weights of {header.num_bytes} bytes; this service takes 1 to {self._max_weights_bytes} "
                    "(ServiceConfig.max_weights_bytes): publish a smaller model, or half of its precision"
                )
            chunks = _weights(request_iterator, header.num_bytes)
            return pb.PublishResponse(**asdict(self._service.publish(header.session, header.step, chunks)))

    def Close(self, request: pb.CloseRunRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            self._service.close_run(request.run)
        return pb.CloseRunResponse()

    def List(self, request: pb.ListRunsRequest, context: grpc.ServicerContext):  # noqa: N802, ARG002
        with errors_as_status(context):
            return pb.ListRunsResponse(runs=self._service.runs())


def _weights(messages: Iterator[pb.WeightsChunk], num_bytes: int) -> Iterator[bytes]:
    """The data that follows a header.

    Raises:
        ConfigError: it is more or less than was announced.
        Unavailable: the trainer went away.
    """
    received = 0
    try:
        for message in messages:
            if message.WhichOneof("part") != "data":
                raise ConfigError("weights have one header; what follows is data")
            received += len(message.data)
            if received > num_bytes:
                raise ConfigError(f"weights were announced with {num_bytes} bytes, {received} came and more may follow")
            yield message.data
    except grpc.RpcError as error:
        raise Unavailable(f"the trainer went away after {received} of {num_bytes} bytes of weights") from error
    if received < num_bytes:
        raise ConfigError(f"weights were announced with {num_bytes} bytes, only {received} came; publish again")


class ReportsServicer(pb_grpc.ReportsServicer):
    def __init__(self, service: Service) -> None:
        self._service = service

    def Send(self, request_iterator: Iterator[pb.ReportBundle], context: grpc.ServicerContext):  # noqa: N802
        summary = pb.ReportSummary()
        with errors_as_status(context):
            session, waiting, malformed = "", [], []  # a report that is refused is lost, the ones beside it are not
            for message in chain.from_iterable(bundle.reports for bundle in request_iterator):
                if waiting and (message.session != session or len(waiting) >= REPORTS_PER_CALL):
                    malformed += self._hand_on(session, waiting, summary)
                    waiting = []
                session = message.session
                try:
                    waiting.append(_report(message))
                except ValueError as error:
                    malformed.append(ConfigError(f"report of batch {message.batch_id}: {error}"))
            if waiting:
                malformed += self._hand_on(session, waiting, summary)
            if malformed:
                raise malformed[0]
        return summary

    def Fence(self, request: pb.FenceRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context):
            return pb.FenceResponse(table_version=self._service.fence(request.run))

    def _hand_on(self, session: str, reports: list[Report], summary: pb.ReportSummary) -> list[ConfigError]:
        """Add what the service took to the summary; returns what it refused."""
        try:
            result = self._service.report(session, reports)
        except ConfigError as error:
            return [error]
        summary.table_version = max(summary.table_version, result.table_version)
        summary.accepted += result.accepted
        for reason, count in result.rejected.items():
            summary.rejected[reason] += count
        return []


class StatisticsServicer(pb_grpc.StatisticsServicer):
    """Serves those who look, some at a time; one more is refused at once, and its client asks again a little later."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._places = threading.Semaphore(LOOKS_AT_ONCE)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise Busy(f"{LOOKS_AT_ONCE} others look at this service right now; ask again a little later")
        try:
            yield
        finally:
            self._places.release()

    def Get(self, request: pb.GetStatisticsRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context), self._place():
            return pb.GetStatisticsResponse(**asdict(self._service.statistics(request.run, detail=request.detail)))

    def Explain(self, request: pb.ExplainRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context), self._place():
            found = self._service.explain(request.run, request.example_id, request.neighbours or NEIGHBOURS)
            return pb.ExplainResponse(**asdict(found))

    def Examples(self, request: pb.ExamplesRequest, context: grpc.ServicerContext):  # noqa: N802
        with errors_as_status(context), self._place():
            found = self._service.examples(request.run, request.order, request.count or EXAMPLES)
            return pb.ExamplesResponse(examples=[pb.ExampleStatistics(**asdict(example)) for example in found])


class ControlServicer(pb_grpc.ControlServicer):
    def __init__(self, service: Service) -> None:
        self._service = service

    def Stop(self, request: pb.StopRequest, context: grpc.ServicerContext):  # noqa: N802, ARG002
        if not _is_loopback(context.peer()):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "stop is answered only on the service's own machine")
        with errors_as_status(context):
            self._service.stop()
        return pb.StopResponse()


def _is_loopback(peer: str) -> bool:
    """Whether a gRPC peer ("ipv4:127.0.0.1:5000", "ipv6:%5B::1%5D:5000", "unix:…", "inproc:…") is on this machine."""
    kind, _, rest = unquote(peer).partition(":")
    if kind in ("unix", "inproc"):
        return True
    try:
        return ipaddress.ip_address(rest.rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:
        return False


def _run_config(request: pb.OpenRunRequest, num_examples: int) -> RunConfig:
    """The configuration a request asks for; zeros are left to the defaults."""
    defaults = {
        "sketch_dim": request.sketch_dim,
        "sketch_dtype": request.sketch_dtype,
        "max_lead": request.max_lead,
        "lease_s": request.lease_seconds,
        "on_lost": request.on_lost,
    }
    return RunConfig(
        run=request.run,
        dataset=request.dataset,
        num_examples=num_examples,
        policy=request.policy,
        policy_options=dict(request.policy_options),
        seed=request.seed,
        num_clusters=request.num_clusters,
        epochs=request.epochs,
        by_budget=request.by_budget,
        candidates=request.candidates or 1,
        **{name: value for name, value in defaults.items() if value},
    )


def _array(data: bytes, dtype: str, name: str, length: int | None = None) -> np.ndarray:
    try:
        return wire.to_array(data, dtype, name, length)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _report(message: pb.Report) -> Report:
    """A report with its arrays.

    Raises:
        ValueError: lengths that do not match, or too many rows.
    """
    ids = wire.to_array(message.example_ids, "i8", "example_ids")
    rows = len(ids)
    if rows > wire.MAX_REPORT_ROWS:
        raise ValueError(f"{rows} rows are more than {wire.MAX_REPORT_ROWS}; send several reports")
    sketches = None
    if message.HasField("sketches"):
        sketches = wire.decode_array(message.sketches, "sketches", wire.SKETCH_DTYPES)
        if sketches.ndim != 2 or len(sketches) != rows:
            raise ValueError(f"sketches have the shape {sketches.shape} where ({rows}, d) is needed")
    return Report(
        batch_id=message.batch_id,
        step=message.step,
        example_ids=ids,
        losses=wire.to_array(message.losses, "f4", "losses", rows) if message.losses else None,
        norms=wire.to_array(message.norms, "f4", "norms", rows) if message.norms else None,
        sketches=sketches,
        scores=message.scores,
        stage=_stage(message.stage) if message.HasField("stage") else None,
        evidence=_evidence(message.evidence) if message.HasField("evidence") else None,
    )


def _stage(message: pb.Stage) -> Stage:
    return Stage(
        scoring_s=message.scoring,
        training_s=message.training,
        waiting_s=message.waiting,
        uniform=message.uniform,
        proposed=message.proposed,
        chosen=message.chosen,
    )


def _evidence(message: pb.Evidence) -> Evidence:
    return Evidence(
        rows=message.rows,
        uniform=message.uniform,
        chosen=message.chosen,
        by_norms=message.by_norms,
        scored_uniform=message.scored_uniform,
        scored_chosen=message.scored_chosen,
    )
