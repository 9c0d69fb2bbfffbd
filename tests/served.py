"""A service in this process behind a real gRPC server: what a trainer sees, without Ray."""

from __future__ import annotations

from typing import Any

from sampler_service.config import ServiceConfig
from sampler_service.rpc.records import Records
from sampler_service.rpc.server import Server
from sampler_service.service import InProcessService


class ServedService:
    """Can be stopped, and started again on the same port, with its memory or with another service in its place."""

    def __init__(
        self, service: InProcessService | None = None, *, records: Records | None = None, **settings: Any
    ) -> None:
        self.service = service or InProcessService()
        self.records = records
        self._settings = {"port": 0, **settings}
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, service: InProcessService | None = None) -> None:
        """Listen; on the port of the last time if there was one."""
        self.service = service or self.service
        self._server = Server(self.service, ServiceConfig(**self._settings), self.records)
        self._settings["port"] = self.port = self._server.port

    def stop(self, grace_s: float = 0.0) -> None:
        self._server.stop(grace_s)

    def restart(self) -> None:
        """Once more, with an empty memory."""
        self.stop()
        self.start(InProcessService())
