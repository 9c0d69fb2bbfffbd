"""What is seen of a run: figures that agree with what was handed out, explanations, examples that stand out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sampler_service import observer as observer_module
from sampler_service.errors import ConfigError
from tests.support import Clock, join_all, make_sampler
from tests.test_sampler import train

N = 48


def clustered(**changes):
    """A run of gradient clustering after three epochs, and its trainer."""
    sampler = make_sampler(N, policy="gradient_clustering", num_clusters=4, **changes)
    (trainer,) = join_all(sampler)
    train(trainer, 3)
    return sampler, trainer


def test_a_run_that_nobody_asked_for_a_batch_says_so_and_knows_nothing():
    said = make_sampler(N).statistics(detail=True)
    assert (said.batches, said.examples, said.never_drawn, said.leases, said.ranks) == (0, 0, N, 0, [])
    assert (said.epoch_coverage, said.batches_by_policy, said.active_policy) == (0.0, {}, "")
    assert all(np.isnan([said.variance_ratio, said.median_age_steps, said.window_coverage, said.progress]))
    assert said.detail is not None
    assert said.detail.clusters == []
    assert sum(said.detail.ages.counts) == sum(said.detail.rates.counts) == 0


def test_coverage_and_counts_follow_what_was_handed_out():
    sampler = make_sampler(N, epochs=4)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    trainer.take(3)
    said = sampler.statistics()
    assert (said.epoch_coverage, said.never_drawn, said.leases) == (12 / N, N - 12, 3)
    assert said.progress == 12 / N / 4
    train(trainer, 2)
    said = sampler.statistics()
    assert (said.epoch_coverage, said.never_drawn) == (1.0, 0)
    assert said.window_coverage < 1.0, "the first epoch was begun twice"
    assert said.batches_by_policy == {"shuffle": said.batches}
    (rank,) = said.ranks
    assert (rank.rank, rank.connected, rank.epoch) == (0, True, 1)
    assert (rank.batches, rank.examples) == (said.batches, said.examples)


def test_waits_are_added_up_per_rank_and_stay_when_a_trainer_leaves():
    sampler = make_sampler(N)
    first, second = join_all(sampler, world=2)
    for trainer, seconds in ((first, 0.5), (first, 0.25), (second, 2.0)):
        trainer.start(0) if trainer.epoch < 0 else None
        sampler.take(trainer.session, 0, (), seconds)
    for nonsense in (float("nan"), -3.0, 1e9):
        sampler.take(second.session, 0, (), nonsense)
    assert [rank.waited_seconds for rank in sampler.statistics().ranks] == [0.75, 2.0]
    sampler.leave(second.session)
    said = sampler.statistics()
    assert [rank.rank for rank in said.ranks] == [0]
    assert said.waited_seconds == 2.75


def test_a_lost_trainer_is_seen_as_gone():
    clock = Clock()
    sampler = make_sampler(N, clock)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    trainer.take(2)
    trainer.lose()
    said = sampler.statistics()
    assert [(rank.connected, rank.held) for rank in said.ranks] == [(False, 2)]
    assert (said.trainers, said.leases) == (0, 2)


def test_clusters_are_seen_with_what_is_drawn_of_them():
    sampler, _ = clustered()
    said = sampler.statistics(detail=True)
    assert said.detail is not None
    clusters = said.detail.clusters
    assert sorted(c.cluster for c in clusters) == [0, 1, 2, 3]
    assert [c.size for c in clusters] == [N // 4] * 4
    assert sum(c.draw_share for c in clusters) == pytest.approx(1.0)
    # Tight groups of like gradients; (i % 5 + .5) is the loss of example i, the same mixture in each group.
    assert all(c.redundancy > 0.99 and 0.5 < c.loss < 4.5 for c in clusters)
    assert len({(round(c.x, 3), round(c.y, 3)) for c in clusters}) == 4
    assert sum(said.detail.rates.counts) == N
    assert sum(said.detail.ages.counts) == N
    assert sum(said.detail.leads.counts) == said.batches
    assert sum(shard.sketched for shard in said.shard) == N


def test_clusters_of_another_number_are_not_shown_in_place_of_those_that_serve():
    sampler, _ = clustered()
    sampler._table.cluster_sse_k = np.zeros(3)
    said = sampler.statistics(detail=True)
    assert said.detail is not None
    assert said.detail.clusters == []
    assert sampler.examples("redundant", 5) == []


def test_of_many_examples_a_sample_is_looked_at(monkeypatch):
    monkeypatch.setattr(observer_module, "SAMPLE_ROWS", 500)
    sampler = make_sampler(2000)
    (trainer,) = join_all(sampler, batch=200)
    train(trainer, 1, step=0)
    sampler._table.step = 5
    said = sampler.statistics(detail=True)
    assert said.detail is not None
    assert 400 <= sum(said.detail.ages.counts) <= 500
    assert said.median_age_steps == 5.0
    assert said.never_drawn == 0, "this is counted"


# --- one example ---


def test_an_example_is_explained_by_its_rate_its_report_and_its_neighbours():
    sampler, trainer = clustered()
    found = sampler.explain(5, 3)
    times = sum(5 in batch.rows.example_ids for batch in trainer.received)
    assert found.example.drawn == times > 0
    assert found.example.loss == 0.5
    assert found.example.cluster == sampler._table.cluster_n[5]
    near = [neighbour.example.example_id for neighbour in found.neighbours]
    assert len(near) == 3
    assert {i % 4 for i in near} == {1}, "of its own group"
    assert 5 not in near
    assert all(neighbour.similarity > 0.99 for neighbour in found.neighbours)
    text = " ".join(found.why)
    assert "gradient_clustering" in text
    assert f"handed out {'once' if times == 1 else f'{times} times'}" in text
    assert "its loss was 0.5, higher than that of 0% of the reported examples" in text


def test_why_an_example_was_never_drawn():
    sampler = make_sampler(N, policy="importance", policy_options={"gate": "1", "alpha": "0.1"})
    (trainer,) = join_all(sampler)
    trainer.start(0)
    trainer.take(1)
    drawn = set(trainer.received[0].rows.example_ids.tolist())
    never = next(i for i in range(N) if i not in drawn)
    text = " ".join(sampler.explain(never, 4).why)
    assert "No trainer has reported it yet" in text
    assert "It was never handed out so far" in text
    assert sampler.explain(never, 4).neighbours == []


def test_before_the_first_batch_there_is_nothing_to_explain():
    assert make_sampler(N).explain(0, 4).why == ["No trainer has asked for a batch yet, so nothing was drawn."]


def test_a_sweep_that_leaves_examples_out_says_with_what_probability_it_keeps_one():
    sampler = make_sampler(N, policy="infobatch", epochs=10)
    (trainer,) = join_all(sampler)
    train(trainer, 3)
    kept = {found.example.rate: " ".join(found.why) for found in (sampler.explain(i, 1) for i in range(N))}
    assert set(kept) == {0.5, 1.0}
    assert "keeps it with probability 0.50, and then its loss has the weight 2.00" in kept[0.5]
    assert "Every epoch visits every example once" in kept[1.0]


@pytest.mark.parametrize(("example_id", "neighbours"), [(-1, 4), (N, 4), (0, 101), (0, -1)])
def test_what_can_not_be_explained_is_refused_by_value(example_id, neighbours):
    with pytest.raises(ConfigError, match=str(example_id if neighbours == 4 else neighbours)):
        make_sampler(N).explain(example_id, neighbours)


# --- examples that stand out ---


def test_examples_stand_out_in_their_order():
    sampler, trainer = clustered()
    hardest = sampler.examples("hardest", 6)
    assert [example.loss for example in hardest] == [4.5] * 6
    times = np.bincount(np.concatenate([batch.rows.example_ids for batch in trainer.received]), minlength=N)
    assert [example.drawn for example in sampler.examples("most_drawn", 4)] == sorted(times, reverse=True)[:4]
    never = sampler.examples("never_drawn", N)
    assert [example.example_id for example in never] == np.flatnonzero(times == 0).tolist()
    redundant = sampler.examples("redundant", 10)
    assert len({example.cluster for example in redundant}) == len(redundant) == 4, "one of each cluster"


def test_the_hardest_are_told_by_their_norms_where_no_losses_come():
    sampler = make_sampler(N, policy="importance", policy_options={"gate": "1"})
    (trainer,) = join_all(sampler)
    train(trainer, 1, losses=None)
    assert sampler.examples("hardest", 3)[0].norm == pytest.approx(np.nanmax(sampler._table.norm_n))


def test_nothing_stands_out_before_anything_was_reported():
    sampler = make_sampler(N)
    assert sampler.examples("hardest", 5) == sampler.examples("most_drawn", 5) == sampler.examples("redundant", 5) == []
    assert [example.example_id for example in sampler.examples("never_drawn", 3)] == [0, 1, 2]


@pytest.mark.parametrize(("order", "count"), [("easiest", 5), ("hardest", 0), ("hardest", 1001)])
def test_what_can_not_be_listed_is_refused_by_value(order, count):
    with pytest.raises(ConfigError, match=str(count) if order == "hardest" else order):
        make_sampler(N).examples(order, count)


def test_what_was_lent_and_never_arrived_is_counted_once():
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    trainer.take(2)
    sampler.connect(trainer.session, 0, [])  # neither came through
    trainer.held, trainer.last_batch_id = {}, 0
    trainer.take(2)
    said = sampler.statistics()
    assert (said.batches, said.batches_by_policy["shuffle"], said.ranks[0].batches) == (2, 2, 2)
    assert replace(said.ranks[0], trainer="").examples == said.examples == 8
