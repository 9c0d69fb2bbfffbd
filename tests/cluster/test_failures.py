"""Actors that are killed under load: trainers go on, nothing hangs, and the statistics tell."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

import sampler_client as sampler
from sampler_service.rpc.servicer import LOOKS_AT_ONCE
from tests.cluster.host_trainer import Gradients
from tests.cluster.support import PATIENT, actors, until
from tests.cluster.test_end_to_end import train


def below(service, title: str, before: set[int]) -> list[psutil.Process]:
    """Actors of a class that were started since."""
    return [process for process in actors(service.pid, title) if process.pid not in before]


def pids(service, title: str) -> set[int]:
    return {process.pid for process in actors(service.pid, title)}


def test_a_killed_run_actor_comes_back_and_the_epoch_goes_on_with_what_was_reported(attach, service):
    before = pids(service, "RunHost")
    loader = attach("host-killed", policy="shuffle")
    train(loader)
    (host,) = below(service, "RunHost", before)
    ids = []
    for step, (_, batch) in enumerate(loader):
        ids += batch.example_ids.tolist()
        if step == 1:
            host.kill()
        batch.report(np.ones(len(batch)))
    loader.flush()
    assert sorted(ids) == list(range(64))
    with sampler.SamplerClient(service) as client:
        statistics = client.statistics("host-killed")
    assert statistics.mean_age_steps == statistics.mean_age_steps  # not NaN: it knows of reports
    assert 0 < statistics.reported_rows < 2 * 64  # counts begin anew with the actor
    assert sorted(i for batch in train(loader) for i in batch.example_ids.tolist()) == list(range(64))


def test_a_killed_run_actor_knows_again_what_it_was_given(attach, service):
    before = pids(service, "RunHost")
    loader = attach("given-killed", policy="rho_loss")
    with sampler.SamplerClient(service) as client:
        client.set_reference("given-killed", np.zeros(64, np.float32))
    train(loader)
    assert {batch.policy for batch in train(loader)} == {"rho_loss"}
    (host,) = below(service, "RunHost", before)
    host.kill()
    assert {batch.policy for batch in train(loader)} == {"rho_loss"}


def test_a_killed_shard_comes_back_and_the_run_goes_on(attach, service):
    before = pids(service, "Shard")
    loader = attach("shard-killed", policy="gradient_clustering", num_clusters=4)
    train(loader)
    shards = below(service, "Shard", before)
    assert len(shards) == 2
    shards[0].kill()
    until(lambda: len(below(service, "Shard", before)) == 2, "two shards again")
    with sampler.SamplerClient(service, timeouts=PATIENT) as client:
        # Its sketches are gone, and the statistics do not count them.
        until(lambda: client.statistics("shard-killed").shards_lost == 1, "the loss to show")
        assert client.statistics("shard-killed").sketch_coverage == 0.5
    for _ in range(2):
        train(loader)
    with sampler.SamplerClient(service) as client:
        statistics = client.statistics("shard-killed")
        assert (statistics.shards, statistics.shards_away, statistics.shards_lost) == (2, 0, 1)
        assert statistics.reported_rows == 3 * 64
        assert statistics.sketch_coverage == 1.0
        assert "shard-killed" in client.runs()
    until(lambda: train(loader)[-1].policy == "gradient_clustering", "clusters from both shards")


def test_a_shard_that_does_not_answer_is_counted_as_away_and_the_statistics_do_not_wait_for_it(attach, service):
    before = pids(service, "Shard")
    train(attach("shard-away", policy="gradient_clustering", num_clusters=4))
    stopped = below(service, "Shard", before)[0]
    with sampler.SamplerClient(service, timeouts=PATIENT) as client:
        assert client.statistics("shard-away").shards_away == 0
        stopped.suspend()
        try:
            start = time.monotonic()
            statistics = client.statistics("shard-away")
            assert time.monotonic() - start < 10  # a call between actors has twenty
        finally:
            stopped.resume()
        assert (statistics.shards, statistics.shards_away, statistics.sketch_coverage) == (2, 1, 0.5)
        until(lambda: client.statistics("shard-away").shards_away == 0, "the shard to answer again")
        assert client.statistics("shard-away").shards_lost == 0


def test_many_who_look_while_a_shard_is_away_keep_no_trainer_waiting(attach, service):
    before = pids(service, "Shard")
    train(attach("looked-at", policy="gradient_clustering", num_clusters=4))
    stopped = below(service, "Shard", before)[0]
    with sampler.SamplerClient(service, timeouts=PATIENT) as client, ThreadPoolExecutor(24) as people:
        assert len(client.explain("looked-at", 1).neighbours) == 8
        stopped.suspend()
        try:
            asked = [people.submit(client.explain, "looked-at", i) for i in range(24)]
            until(lambda: sum(each.done() for each in asked) == 24 - LOOKS_AT_ONCE, "those too many to be refused")
            client.announce_drop("looked-at")  # waits for a thread of the run, as what trainers ask
            assert sum(each.done() for each in asked) == 24 - LOOKS_AT_ONCE, "the others are still waiting"
            found = [each.result() for each in asked if not each.exception()]
        finally:
            stopped.resume()
    assert len(found) == LOOKS_AT_ONCE
    for explanation in found:
        assert list(explanation.neighbours) == []
        assert "could not be looked for: waited" in explanation.no_neighbours
    for each in asked:
        if each.exception():
            with pytest.raises(sampler.Busy, match="others look at this service"):
                each.result()


def test_a_shard_that_is_away_holds_up_one_report_and_no_batch(attach, service):
    before = pids(service, "Shard")
    loader = attach("goes-on-without", policy="shuffle")
    train(loader)
    stopped = below(service, "Shard", before)[0]
    stopped.suspend()
    try:
        # More than twice the blocks that a shard may have before it. Waiting a call's time for each would take minutes.
        for _ in range(5):
            ids = []
            for _, batch in loader:
                ids += batch.example_ids.tolist()
                batch.report(np.ones(len(batch)), Gradients(batch.example_ids, dim=64))
                loader.flush()  # so that no two share a block
            assert sorted(ids) == list(range(64))
        with sampler.SamplerClient(service, timeouts=PATIENT) as client:
            said = client.statistics("goes-on-without")
        assert said.rejected_rows["shard_away"] > 0
        assert said.reported_rows + said.rejected_rows["shard_away"] == 6 * 64
        assert said.trainers == 1
    finally:
        stopped.resume()
    train(loader)
    with sampler.SamplerClient(service, timeouts=PATIENT) as client:
        assert client.statistics("goes-on-without").sketch_coverage == 1.0
