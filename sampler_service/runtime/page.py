"""The page beside a gateway: started again when its process has died."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray

from sampler_service.config import ServiceConfig
from sampler_service.errors import SamplerError
from sampler_service.runtime import names
from sampler_service.runtime.calls import answer
from sampler_service.runtime.gateway import Page, ServePage

log = logging.getLogger(__name__)

AGAIN_S = 10.0
"""between two attempts to start it again"""


class KeptPage:
    """A page's actor and whoever comes in its place; `port` stays the same.

    Args:
        options: of the actor, but for its name.
        serve_page: makes the server in it.
        service: "host:port" of the gateway.
        config: of the service.

    Raises:
        ConfigError: the port is in use.
        Unavailable: it does not start.
    """

    def __init__(self, options: Mapping[str, Any], serve_page: ServePage, service: str, config: ServiceConfig) -> None:
        self._options = options
        self._serve_page = serve_page
        self._service = service
        self._config = config
        self._next_attempt = 0.0
        self._start()

    def keep(self) -> None:
        """Start it again if its process has died; cheap while it lives."""
        died, _ = ray.wait([self._ended], timeout=0)
        if not died or time.monotonic() < self._next_attempt:
            return
        log.warning("the process of the page has died; starting another on port %d", self.port)
        self._next_attempt = time.monotonic() + AGAIN_S
        try:
            self._start()
        except Exception as error:  # whatever it is, the service goes on
            log.error("the page could not be started again, next attempt in %g s: %s", AGAIN_S, error)

    def stop(self, grace_s: float) -> None:
        """Answer no more; does not wait for it."""
        self._actor.stop.remote(grace_s)

    def kill(self) -> None:
        """End its process."""
        ray.kill(self._actor)

    def _start(self) -> None:
        # Ray remembers the name of one that has died for as long as we do: each has its own.
        page: Any = ray.remote(Page).options(**self._options, name=names.join("page", names.token()))
        self._actor = page.remote()
        self._ended = self._actor.wait_for_stop.remote()  # fails when its process dies: asking costs it nothing
        started = self._actor.start.remote(self._serve_page, self._service, self._config)
        try:
            self.port: int = answer(started, 6 * self._config.call_s, "the page to start")
        except SamplerError:
            self.kill()
            raise
        self._config = replace(self._config, page_port=self.port)
