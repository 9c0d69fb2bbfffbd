"""One node's doors, each an actor: the server that trainers talk to, and that of the page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from sampler_service.config import ServiceConfig
from sampler_service.runtime.ray_service import RayService
from sampler_service.runtime.registry import find_registry
from sampler_service.runtime.run_actors import quiet_logging
from sampler_service.scorers import MakeScorer


class StartedServer(Protocol):
    """What the composition root's `serve` returns."""

    port: int

    def stop(self, grace_s: float = ...) -> None: ...


Serve = Callable[[Any, ServiceConfig], StartedServer]
"""(service, config) -> a server that listens"""

ServePage = Callable[[str, ServiceConfig], StartedServer]
"""("host:port" of a gateway, config) -> a server of the page"""


class Gateway:
    """One node's door: the server that trainers talk to."""

    def __init__(self) -> None:
        quiet_logging()
        self._stop_asked = threading.Event()
        self._server: StartedServer | None = None

    def start(self, serve: Serve, config: ServiceConfig, make_scorer: MakeScorer | None) -> int:
        """Listen, and return the port; a call of its own, since what a constructor raises looks like a crash."""
        service = RayService(lambda: find_registry(config, make_scorer), config.call_s, self._stop_asked.set)
        self._server = serve(service, config)
        return self._server.port

    def ask_stop(self) -> None:
        """Have the process that started this gateway drain and end it."""
        self._stop_asked.set()

    def wait_for_stop(self, timeout_s: float) -> bool:
        """Whether a stop was asked for; waits for it."""
        return self._stop_asked.wait(timeout_s)

    def drain(self, grace_s: float) -> None:
        """Stop serving; what is under way may end within `grace_s`."""
        if self._server is not None:
            self._server.stop(grace_s)


class Page:
    """The page's server, in a process of its own: what it makes of the figures costs no gateway and no run."""

    def __init__(self) -> None:
        quiet_logging()
        self._stopped = threading.Event()
        self._server: StartedServer | None = None

    def start(self, serve_page: ServePage, service: str, config: ServiceConfig) -> int:
        """Listen, and return the port."""
        self._server = serve_page(service, config)
        return self._server.port

    def wait_for_stop(self) -> None:
        """Wait for a stop that was asked for."""
        self._stopped.wait()

    def stop(self, grace_s: float) -> None:
        """Answer no more."""
        self._stopped.set()
        if self._server is not None:
            self._server.stop(grace_s)
