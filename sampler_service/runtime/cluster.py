"""The Ray cluster: started here when there is none, joined when an address is given."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sampler_service.config import ServiceConfig
from sampler_service.errors import SamplerError, Unavailable
from sampler_service.runtime.actors import NAMESPACE, find_registry, quiet_logging
from sampler_service.runtime.calls import answer
from sampler_service.runtime.ray_service import RayService
from sampler_service.scorers import MakeScorer

log = logging.getLogger(__name__)

EMBEDDED_STORE_BYTES = 256 * 1024 * 1024
"""object store of an embedded cluster: calls carry arrays of some megabytes at most"""


REACH_S = 5.0
"""within which a cluster to be joined must take a connection"""

JOIN_S = 30.0
"""within which it must let us in: one that was just started takes connections before its first node is there"""
JOIN_PAUSE_S = 0.5


class StartedServer(Protocol):
    """What the composition root's `serve` returns."""

    port: int

    def stop(self, grace_s: float = ...) -> None: ...


Serve = Callable[[Any, ServiceConfig], StartedServer]
"""(service, config) -> a server that listens"""

ServePage = Callable[[str, ServiceConfig], StartedServer]
"""("host:port" of a gateway, config) -> a server of the page"""

ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}
"""where to reach, from its own node, a gateway that listens on all interfaces"""


class Gateway:
    """One node's door: the server that trainers talk to, in an actor."""

    def __init__(self) -> None:
        quiet_logging()
        self._stop_asked = threading.Event()
        self._server: StartedServer | None = None

    def start(self, serve: Serve, config: ServiceConfig, make_scorer: MakeScorer | None) -> int:
        """Listen, and return the port; a call of its own, since what a constructor raises looks like a crash."""
        service = RayService(lambda: find_registry(config, make_scorer), config.call_s, self._stop_asked.set)
        self._server = serve(service, config)
        return self._server.port

    def wait_for_stop(self, timeout_s: float) -> bool:
        """Whether a Stop request has come; waits for one."""
        return self._stop_asked.wait(timeout_s)

    def drain(self, grace_s: float) -> None:
        """Stop serving; what is under way may end within `grace_s`."""
        if self._server is not None:
            self._server.stop(grace_s)


class Page:
    """The page's server, in a process of its own: who looks takes nothing from those who train."""

    def __init__(self) -> None:
        quiet_logging()
        self._server: StartedServer | None = None

    def start(self, serve_page: ServePage, service: str, config: ServiceConfig) -> int:
        """Listen, and return the port."""
        self._server = serve_page(service, config)
        return self._server.port

    def stop(self, grace_s: float) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.stop(grace_s)


class Cluster:
    """The running service, seen from the process that started it.

    Args:
        serve: makes the server; given by the composition root, since this side knows no gRPC.
        serve_page: makes the page's server, if the configuration has one.
        config: of the service.
        address: of a Ray cluster to join ("auto", "host:6379", "ray://…"); None starts one in this process's care.
        make_scorer: makes what scores a dataset, in a scorer's process; given by the composition root, since this side
            knows no torch. None: there are no scorers.

    Raises:
        ConfigError: the port is in use.
        Unavailable: the cluster can't be reached, or its actors don't start.
    """

    def __init__(
        self,
        serve: Serve,
        serve_page: ServePage,
        config: ServiceConfig,
        address: str | None,
        make_scorer: MakeScorer | None = None,
    ) -> None:
        self._name = uuid.uuid4().hex
        _connect(address)
        try:
            self._registry: Any = find_registry(config, make_scorer)
            entered = self._registry.enter.remote(self._name, config)
            answer(entered, 6 * config.call_s, "the registry to start")
            node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            here = {"num_cpus": 0, "max_concurrency": 8, "scheduling_strategy": node}
            gateway: Any = ray.remote(Gateway).options(**here)
            self._gateway = gateway.remote()
            page: Any = ray.remote(Page).options(**here, max_restarts=0)
            self._page = None if config.page_port is None else page.remote()
            started = self._gateway.start.remote(serve, config, make_scorer)
            self.port: int = answer(started, 6 * config.call_s, "the gateway to start")
            self.page_port = self._show(serve_page, config)
        except BaseException:
            ray.shutdown()
            raise

    def _show(self, serve_page: ServePage, config: ServiceConfig) -> int | None:
        """Start the page; its port."""
        if self._page is None:
            return None
        service = f"{ANY_HOST.get(config.host, config.host)}:{self.port}"
        return answer(self._page.start.remote(serve_page, service, config), 6 * config.call_s, "the page to start")

    def wait_for_stop(self, timeout_s: float) -> bool:
        """Whether a trainer's machine asked for a stop; waits for it."""
        reference = self._gateway.wait_for_stop.remote(timeout_s)
        return answer(reference, timeout_s + 20.0, "the gateway")

    def stop(self, grace_s: float = 5.0) -> None:
        """Drain the gateway and leave the cluster; the last gateway ends all runs."""
        try:
            if self._page is not None:
                self._page.stop.remote(grace_s)
            answer(self._gateway.drain.remote(grace_s), grace_s + 10.0, "the gateway to drain")
            if answer(self._registry.leave.remote(self._name), 10.0, "the registry to close its runs"):
                ray.kill(self._registry)  # it is detached: on a cluster that goes on it would outlive us
        except SamplerError as error:
            log.warning("stopping anyway: %s", error)
        finally:
            for actor in filter(None, (self._page, self._gateway)):
                ray.kill(actor)
            ray.shutdown()


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": True, "logging_level": "warning"}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
        options |= {"object_store_memory": EMBEDDED_STORE_BYTES}
    else:
        options |= {"address": address}
        _knock(address)
    until = time.monotonic() + JOIN_S
    while True:
        try:
            ray.init(**options)
            return
        except (ConnectionError, RuntimeError, ValueError) as error:
            ray.shutdown()
            if isinstance(error, ConnectionError) and time.monotonic() < until:
                time.sleep(JOIN_PAUSE_S)
                continue
            raise Unavailable(
                f"no Ray cluster at {address!r} that can be joined: {error}; start one with `ray start --head`, and "
                "set RAY_AUTH_MODE=token here if it asks for a token"
            ) from error


def _knock(address: str) -> None:
    """Raise Unavailable when nobody listens at "host:port" or "ray://host:port": Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        with socket.create_connection((host, int(port)), timeout=REACH_S):
            pass
    except OSError as error:
        raise Unavailable(f"no Ray cluster at {address!r}: {error}; start one with `ray start --head`") from error
