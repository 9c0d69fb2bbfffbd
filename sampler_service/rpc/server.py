"""The gRPC server: what it serves, its health, and how it stops.

Synchronous: measured here it moves more small messages than the asyncio server, and several times the bytes.
"""

from __future__ import annotations

import logging
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from sampler_client import wire
from sampler_client._pb import sampler_pb2 as pb
from sampler_client._pb import sampler_pb2_grpc as pb_grpc
from sampler_service.config import ServiceConfig
from sampler_service.errors import ConfigError
from sampler_service.rpc.batches import BatchesServicer
from sampler_service.rpc.following import Follower
from sampler_service.rpc.records import NoRecords, Records
from sampler_service.rpc.servicer import (
    ControlServicer,
    DatasetsServicer,
    ReportsServicer,
    RunsServicer,
    StatisticsServicer,
)
from sampler_service.service import Service

log = logging.getLogger(__name__)

CONTROL_THREADS = 32
"""for reports and control calls, beside the thread that each trainer's stream holds"""

_SERVICES = ("Datasets", "Runs", "Batches", "Reports", "Statistics", "Control")

_OPTIONS = (
    *wire.CHANNEL_OPTIONS,
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a second server behind the first
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


def check_free(host: str, port: int) -> None:
    """Raise ConfigError when `port` can't be listened on: said at once, before a cluster is started for nothing."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise _taken(host, port, os.strerror(error.errno) if error.errno else str(error)) from None


def _taken(host: str, port: int, why: str) -> ConfigError:
    return ConfigError(
        f"can't listen on {host}:{port} ({why}): the port is in use or the address is not this machine's; "
        "choose another with --port, or 0 for a free one"
    )


def add_calls(service: Service, config: ServiceConfig, server: Any, records: Records | None = None) -> None:
    """Let a `grpc.Server`, or what stands for one in process, answer every call but the batch stream."""
    pb_grpc.add_DatasetsServicer_to_server(DatasetsServicer(service, records or NoRecords()), server)
    pb_grpc.add_RunsServicer_to_server(RunsServicer(service, config.max_weights_bytes), server)
    pb_grpc.add_ReportsServicer_to_server(ReportsServicer(service), server)
    pb_grpc.add_StatisticsServicer_to_server(StatisticsServicer(service), server)
    pb_grpc.add_ControlServicer_to_server(ControlServicer(service), server)


class Server:
    """A started server; `port` is the one it listens on.

    Args:
        service: what it serves.
        config: where and how.
        records: of datasets, whose changes the service is told of; None: it has none.

    Raises:
        ConfigError: the port is in use.
    """

    def __init__(self, service: Service, config: ServiceConfig, records: Records | None = None) -> None:
        held, records = records, records or NoRecords()
        threads = config.max_trainers + CONTROL_THREADS
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="rpc")
        # One call more than there are threads is refused with RESOURCE_EXHAUSTED instead of waiting unseen. Streams
        # can't take them all: BatchesServicer counts those itself, from their first moment, leaves at least
        # CONTROL_THREADS - SPARE_STREAMS, and says what to do about it.
        self._server = grpc.server(self._pool, options=_OPTIONS, maximum_concurrent_rpcs=threads)
        self._health = health.HealthServicer()
        self._batches = BatchesServicer(service, records, config.message_bytes, config.max_trainers)
        add_calls(service, config, self._server, records)
        self._batches.serve(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.reflection:
            names = [pb.DESCRIPTOR.services_by_name[name].full_name for name in _SERVICES]
            reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], self._server)
        self.port = self._bind(config.host, config.port)
        self._server.start()
        for name in ("", *(pb.DESCRIPTOR.services_by_name[name].full_name for name in _SERVICES)):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._follower = Follower(service, held, config.follow_s) if held else None

    def stop(self, grace_s: float = 5.0) -> None:
        """Say NOT_SERVING, end the streams after what they are sending, then close. Returns when it is done."""
        self._health.enter_graceful_shutdown()
        if self._follower is not None:
            self._follower.stop()
        self._batches.drain()
        self._server.stop(grace_s).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _bind(self, host: str, port: int) -> int:
        try:
            return self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise _taken(host, port, str(error)) from None
