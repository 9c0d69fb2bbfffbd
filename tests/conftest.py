"""What all tests share: Ray out of reach, and a service behind a real gRPC server."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

import sampler_client  # noqa: F401 - before gRPC, as in a trainer: it says how gRPC treats forks
from tests.served import ServedService


@pytest.fixture(autouse=True)
def no_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`import ray` fails, so that nothing but tests/cluster depends on it."""
    if request.node.get_closest_marker("ray") is None:
        monkeypatch.setitem(sys.modules, "ray", None)


@pytest.fixture
def served() -> Iterator[ServedService]:
    """A service that a test may stop, and start again on its port."""
    served = ServedService()
    yield served
    served.stop()


@pytest.fixture
def service_address(served: ServedService) -> str:
    """host:port of a service behind a real server."""
    return served.address
