"""Training through a service on Ray: clusters become active, runs do not see one another, and the CLI tells."""

from __future__ import annotations

import time
from unittest.mock import MagicMock

import numpy as np
import pytest

import sampler_client as sampler
from sampler_service.config import ServiceConfig
from sampler_service.runtime import ray_service
from tests.cluster.support import cli
from tests.support import make_config

GROUPS = 4


class GroupedSketches:
    """Sketches of a model whose examples fall into GROUPS by their id, with little noise."""

    def __init__(self, dim: int = 64) -> None:
        rng = np.random.default_rng(0)
        self._centre_kd = rng.standard_normal((GROUPS, dim))
        self._noise = rng
        self.all_clustered = False
        """whether every example of the latest epoch had a cluster"""
        self.usable = np.ones(0, bool)
        self.sketches = np.empty((0, dim), np.float16)
        self.norms = np.empty(0, np.float32)

    def backward(self, example_ids: np.ndarray) -> None:
        """What a backward pass would show of these examples."""
        centre_bd = self._centre_kd[example_ids % GROUPS]
        self.sketches = (centre_bd + 0.05 * self._noise.standard_normal(centre_bd.shape)).astype(np.float16)
        self.norms = np.linalg.norm(self.sketches.astype(np.float32), axis=1)
        self.usable = np.ones(len(example_ids), bool)

    def take(self, coefficients, /):
        return self


def train(loader, sketcher) -> list[tuple[str, list[int]]]:
    """One epoch; policy and ids of each batch."""
    seen = []
    sketcher.all_clustered = True
    for (ids,), batch in loader:
        sketcher.all_clustered &= bool((batch.cluster_ids >= 0).all())
        assert ids.tolist() == batch.example_ids.tolist()
        sketcher.backward(batch.example_ids)
        batch.report(np.ones(len(batch)), sketcher)
        seen.append((batch.policy, ids.tolist()))
    loader.fence()
    return seen


def test_gradient_clustering_becomes_active_when_the_sketches_are_there(attach, service):
    loader, sketcher = attach("clustered", policy="gradient_clustering", num_clusters=GROUPS), GroupedSketches()
    first = train(loader, sketcher)
    assert {policy for policy, _ in first} == {"shuffle"}
    assert sorted(i for _, ids in first for i in ids) == list(range(64))
    deadline = time.monotonic() + 60
    while {policy for policy, _ in train(loader, sketcher)} != {"gradient_clustering"}:
        assert time.monotonic() < deadline, loader.reason
    # The first clusters are of half of the examples; the others come from a stratum without a group of its own.
    while not sketcher.all_clustered:
        train(loader, sketcher)
        assert time.monotonic() < deadline, "the clusters were never made anew"
    with sampler.SamplerClient(service) as client:
        statistics = client.statistics("clustered")
    assert (statistics.active_policy, statistics.reason) == ("gradient_clustering", "")
    assert statistics.sketch_coverage == 1.0
    assert statistics.num_clusters == GROUPS
    assert statistics.refreshes >= 1
    for _, ids in train(loader, sketcher):  # how many exactly is for the tests of planning
        assert set(np.array(ids) % GROUPS) == set(range(GROUPS))


def test_two_runs_over_two_datasets_do_not_see_one_another(attach, service):
    one = attach("one", examples=64, policy="shuffle", seed=1)
    two = attach("two", examples=40, batch_size=8, policy="shuffle", seed=2)
    seen: dict[str, list[int]] = {"one": [], "two": []}
    running = {"one": iter(one), "two": iter(two)}
    while running:
        for run, epoch in list(running.items()):
            item = next(epoch, None)
            if item is None:
                del running[run]
            else:
                seen[run] += item[1].example_ids.tolist()
                item[1].report(np.ones(len(item[1])))
    one.fence()
    two.flush()
    assert sorted(seen["one"]) == list(range(64))
    assert sorted(seen["two"]) == list(range(40))
    with sampler.SamplerClient(service) as client:
        assert client.statistics("one").reported_rows == 64
        assert client.statistics("two").reported_rows == 40


def test_a_run_that_is_closed_is_forgotten_and_may_be_opened_otherwise(attach, service):
    former = iter(attach("again", policy="shuffle"))
    next(former)
    with sampler.SamplerClient(service, timeouts=sampler.Timeouts(call_s=60)) as client:
        client.close_run("again")
        assert "again" not in client.runs()
    with pytest.raises(sampler.Stale, match="run 'again' was closed"):
        list(former)
    loader = attach("again", policy="importance")
    assert sorted(i for _, batch in loader for i in batch.example_ids.tolist()) == list(range(64))


def test_a_trainer_waits_longer_for_a_run_to_open_than_the_service_does(monkeypatch):
    waited = []
    monkeypatch.setattr(ray_service, "answer", lambda _reference, timeout_s, _whom: waited.append(timeout_s))
    ray_service.RayService(MagicMock, ServiceConfig().call_s, on_stop=print).open_run(make_config(10))
    assert 0 < max(waited) < sampler.Timeouts().open_s


def test_status_shows_every_run_and_what_holds_its_policy_back(attach, service):
    attach("held-back", policy="gradient_clustering")
    next(iter(attach("plain", policy="shuffle")))
    shown = cli("status", service)
    assert shown.returncode == 0, shown.stderr
    assert "held-back" in shown.stdout
    assert "plain" in shown.stdout


def test_status_of_nobody_is_one_line_and_an_exit_code():
    shown = cli("status", "127.0.0.1:1")
    assert shown.returncode == 1
    assert "ServiceUnavailable: list runs: no service at 127.0.0.1:1" in shown.stdout + shown.stderr
    assert "Traceback" not in shown.stdout + shown.stderr


def test_a_port_in_use_is_one_line_and_an_exit_code(service):
    port = service.rpartition(":")[2]
    refused = cli("up", "--port", port)
    assert refused.returncode == 1
    said = (refused.stdout + refused.stderr).strip().splitlines()
    assert said[-1].startswith(f"ConfigError: can't listen on 127.0.0.1:{port} (Address already in use)")
    assert said[-1].endswith("choose another with --port, or 0 for a free one")
    assert len(said) == 2
