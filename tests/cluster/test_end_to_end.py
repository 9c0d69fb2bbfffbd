"""Training through a service on Ray: clusters become active, runs do not see one another, and the CLI tells."""

from __future__ import annotations

from unittest.mock import MagicMock

import numpy as np
import pytest

import sampler_client as sampler
from sampler_service.config import ServiceConfig
from sampler_service.runtime import ray_service
from tests.cluster.host_trainer import GROUPS, Gradients
from tests.cluster.support import cli, until
from tests.support import make_config


def train(loader, *, pairs: bool = False) -> list[sampler.Batch]:
    """The batches of one epoch, each of them reported; `pairs`: with embeddings of pairs, which have no norms."""
    seen = []
    for (ids,), batch in loader:
        assert ids.tolist() == batch.example_ids.tolist()
        sketches = Gradients(batch.example_ids, dim=64)
        if pairs:
            sketches.norms = None
        batch.report(np.ones(len(batch)), sketches)
        seen.append(batch)
    loader.fence()
    return seen


def test_gradient_clustering_becomes_active_when_the_sketches_are_there(attach, service):
    loader = attach("clustered", policy="gradient_clustering", num_clusters=GROUPS)
    first = train(loader)
    assert {batch.policy for batch in first} == {"shuffle"}
    assert sorted(i for batch in first for i in batch.example_ids.tolist()) == list(range(64))
    until(lambda: {batch.policy for batch in train(loader)} == {"gradient_clustering"}, "clusters to be used")
    # The first clusters are of half of the examples; the others come from a stratum without a group of its own.
    until(lambda: all((batch.cluster_ids >= 0).all() for batch in train(loader)), "the clusters to be made anew")
    with sampler.SamplerClient(service) as client:
        statistics = client.statistics("clustered")
    assert (statistics.active_policy, statistics.reason) == ("gradient_clustering", "")
    assert statistics.sketch_coverage == 1.0
    assert statistics.num_clusters == GROUPS
    assert statistics.refreshes >= 1
    for batch in train(loader):  # how many exactly is for the tests of planning
        assert set(batch.example_ids % GROUPS) == set(range(GROUPS))


def test_a_target_of_held_out_examples_puts_those_like_it_first(attach):
    loader = attach("ordered", policy="poa", policy_options={"attempts": 4}, batch_size=8)
    train(loader)
    like = np.arange(0, 64, GROUPS)
    assert loader.set_target(Gradients(like, dim=64)) > 0
    assert {batch.policy for batch in train(loader)} == {"poa"}
    loader.set_target(Gradients(like, dim=64))
    shares = [np.mean(batch.example_ids % GROUPS == 0) for batch in train(loader)]
    assert np.mean(shares[:4]) > np.mean(shares[4:]), "half of the epoch has most of them"


def test_orders_and_near_pairs_are_made_in_the_background(attach, service):
    balanced = attach("balanced", policy="balanced_order")
    until(lambda: {batch.policy for batch in train(balanced)} == {"balanced_order"}, "an order to be balanced")
    seen = [i for batch in train(balanced) for i in batch.example_ids.tolist()]
    assert sorted(seen) == list(range(64))
    options = {"begin": 0, "end": 0, "first": 1, "last": 15, "together": 7}
    mined = attach("mined", policy="hard_negative", policy_options=options)
    with sampler.SamplerClient(service) as client:
        client.set_groups("mined", np.arange(64))
        until(lambda: train(mined, pairs=True) and client.statistics("mined").refreshes > 0, "pairs to be compared")
    assert sorted(i for batch in train(mined, pairs=True) for i in batch.example_ids.tolist()) == list(range(64))
    kinds = [len(set((batch.example_ids % GROUPS).tolist())) for batch in train(mined, pairs=True)]
    assert np.mean(kinds) < GROUPS, "batches hold what is alike"


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
