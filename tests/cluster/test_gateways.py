"""Gateways that die, that are refused, and that are slow: runs outlive all of it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sampler_client as sampler
from sampler_service.errors import Unavailable
from sampler_service.runtime import cluster as module
from sampler_service.runtime.calls import Ended
from sampler_service.runtime.cluster import NEW_GATEWAYS, Cluster
from tests.cluster.support import (
    OPEN_CLUSTER,
    PATIENT,
    actors,
    cli,
    epoch,
    joining,
    kill,
    nothing_left,
    ray_head,
    until,
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, int]]:
    """Address and process of a Ray cluster."""
    with ray_head() as head:
        yield head


def test_an_up_that_is_refused_ends_no_run_that_it_found(attach, head):
    address, pid = head
    with joining(address) as crashed:
        epoch(attach("stays", address=crashed, policy="shuffle"))
        kill(crashed)
    until(lambda: not actors(pid, "Gateway"), "the gateway to end with the process that started it")
    mistyped = cli("up", "--port", "0", "--no-page", "--address", address, "--shards", "2", environment=OPEN_CLUSTER)
    assert mistyped.returncode == 1
    assert "Conflict: service 'sampler-service' on this cluster runs with shards=1, asked for 2" in mistyped.stdout
    with joining(address) as again, sampler.SamplerClient(again, timeouts=PATIENT) as client:
        assert client.statistics("stays").reported_rows == 64
    nothing_left(head)


def test_a_gateway_that_is_killed_alone_is_made_again_on_its_port_and_training_goes_on(attach, head):
    address, pid = head
    with joining(address) as service:
        loader = attach("goes-on", address=service, policy="shuffle")
        epoch(loader)
        (gateway,) = actors(pid, "Gateway")
        ids = []
        for step, (_, batch) in enumerate(loader):
            ids += batch.example_ids.tolist()
            if step == 1:
                gateway.kill()
            batch.report(np.ones(len(batch)))
        loader.flush()
        assert sorted(ids) == list(range(64))
        with sampler.SamplerClient(service, timeouts=PATIENT) as client:
            assert client.statistics("goes-on").reported_rows == 2 * 64
        assert [process.pid for process in actors(pid, "Gateway")] != [gateway.pid]
        assert f"another is started on port {service.rpartition(':')[2]}" in service.log.read_text()
        assert service.stop() == 0, service.log.read_text()
    nothing_left(head)


class Answers:
    """In place of a gateway: what it answers, and how often another took its place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        self.made = 0
        self.cluster: Any = object.__new__(Cluster)
        self.cluster._died, self.cluster._serves, self.cluster.port = module.deque(), True, 50051
        self.cluster._make_gateway = self._make
        self.cluster._start_gateway = lambda _port: None
        self.cluster._gateway, self.cluster._page = self, None
        self.wait_for_stop = self
        monkeypatch.setattr(module, "answer", self._answer)
        monkeypatch.setattr(module, "_check_node", lambda: None)
        self._error = error

    def remote(self, _timeout_s: float) -> None: ...

    def _answer(self, *_: object) -> None:
        raise self._error

    def _make(self) -> None:
        self.made += 1


def test_a_gateway_that_is_only_slow_ends_nothing(monkeypatch):
    slow = Answers(monkeypatch, Unavailable("waited 20 s for the gateway"))
    assert slow.cluster.wait_for_stop(0.5) is False
    assert (slow.made, slow.cluster._serves) == (0, True)


def test_a_gateway_that_dies_again_and_again_is_given_up_and_its_runs_are_not(monkeypatch):
    dying = Answers(monkeypatch, Ended("its process has ended"))
    for _ in range(NEW_GATEWAYS):
        assert dying.cluster.wait_for_stop(0.5) is False
    with pytest.raises(Ended, match=f"has died {NEW_GATEWAYS + 1} times within"):
        dying.cluster.wait_for_stop(0.5)
    assert dying.made == NEW_GATEWAYS
    assert dying.cluster._serves is False, "so it ends no run when it leaves"


def test_a_gateway_whose_node_is_lost_is_not_made_again(monkeypatch):
    dead = Answers(monkeypatch, Ended("its process has ended"))
    monkeypatch.undo()
    monkeypatch.setattr(module, "answer", dead._answer)
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(module.ray, "nodes", lambda: [{"NodeID": "here", "Alive": False}])
    with pytest.raises(Ended, match="this machine's Ray node is no longer part of the cluster"):
        dead.cluster.wait_for_stop(0.5)
    assert dead.made == 0
