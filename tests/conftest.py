"""What all tests share: Ray out of reach, and a service behind a real gRPC server in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

import sampler_client  # noqa: F401 - before gRPC, as in a trainer: it says how gRPC treats forks
from sampler_service.config import ServiceConfig
from sampler_service.rpc.server import Server
from sampler_service.service import LocalService


@pytest.fixture(autouse=True)
def no_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`import ray` fails, so that nothing but tests/cluster depends on it."""
    if request.node.get_closest_marker("ray") is None:
        monkeypatch.setitem(sys.modules, "ray", None)


class ServedService:
    """A LocalService behind a server that can be started again on the same port."""

    def __init__(self, **settings) -> None:
        self._settings = settings
        self.service = LocalService()
        self.server = Server(self.service, ServiceConfig(port=0, **settings))
        self.port = self.server.port
        self.address = f"127.0.0.1:{self.port}"

    def stop(self, grace_s: float = 0.5) -> None:
        self.server.stop(grace_s)

    def start_again(self, service: LocalService | None = None) -> None:
        """Listen on the same port, with an empty memory unless a service is given."""
        self.service = service or LocalService()
        self.server = Server(self.service, ServiceConfig(port=self.port, **self._settings))

    def restart(self) -> None:
        self.stop(0.0)
        self.start_again()


@pytest.fixture
def served() -> Iterator[ServedService]:
    """A service that a test may stop, and start again on its port."""
    served = ServedService()
    yield served
    served.stop(0.0)


@pytest.fixture
def service_address(served: ServedService) -> str:
    """host:port of a service behind a real server."""
    return served.address
