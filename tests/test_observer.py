"""What is seen of a run: figures that agree with what was handed out, explanations, examples that stand out."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from sampler_service import observer as observer_module
from sampler_service import watched as watched_module
from sampler_service.sampler import Sampler
from sampler_service.watched import Clusters
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
    assert said.window_coverage == 1.0, "a sweep is a window, also when one was left before it"
    assert said.batches_by_policy == {"shuffle": said.batches}
    (rank,) = said.ranks
    assert (rank.rank, rank.connected, rank.epoch) == (0, True, 1)
    assert (rank.batches, rank.examples) == (said.batches, said.examples)


def test_an_epoch_that_is_begun_again_is_covered_anew():
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    train(trainer, 2)
    trainer.start(0)
    assert trainer.take(3).batches
    said = sampler.statistics()
    assert (said.epoch, said.epoch_coverage) == (0, 12 / N)
    first = int(trainer.received[-1].rows.example_ids[0])
    assert sampler.explain(first, 1).example.last_epoch == 0
    trainer.drain()
    assert sampler.statistics().epoch_coverage == 1.0


def test_an_epoch_that_is_gone_on_with_is_covered_further():
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    trainer.take(3)
    trainer.start(0, skip=12)
    trainer.take(1)
    assert sampler.statistics().epoch_coverage == 16 / N


def test_a_rank_that_comes_back_late_to_an_epoch_does_not_stand_for_the_run():
    sampler = make_sampler(N)
    fast, slow = join_all(sampler, world=2)
    fast.start(1)
    fast.take(2)
    slow.start(0, first_step=2)
    slow.take(1)
    said = sampler.statistics()
    assert (said.epoch, said.epoch_coverage, said.window_coverage) == (1, 8 / N, pytest.approx(np.nan, nan_ok=True))
    fast.take_acked(1)
    assert sampler.statistics().epoch_coverage == 12 / N


EPOCHS = 3


@pytest.mark.parametrize(
    ("n", "world", "drop_last", "changes"),
    [
        (N, 1, False, {"policy": "importance", "policy_options": {"gate": "1"}}),
        (50, 1, True, {}),
        (50, 3, False, {}),
        (N, 2, False, {"policy": "gradient_clustering"}),
    ],
    ids=["draws", "drop_last", "ragged", "clusters"],
)
def test_a_run_that_was_trained_to_its_end_has_made_all_its_progress(n, world, drop_last, changes):
    sampler = make_sampler(n, epochs=EPOCHS, **changes)
    trainers, seen = join_all(sampler, world=world, drop_last=drop_last), [0.0]
    for epoch in range(EPOCHS):
        for trainer in trainers:
            trainer.start(epoch)
        while [trainer for trainer in trainers if not trainer.take_acked().ended]:
            seen.append(sampler.statistics().progress)
            for trainer in trainers:
                for batch in trainer.held.values():
                    trainer.report(batch)
    assert seen == sorted(seen), "it never falls"
    assert seen[-2] < 1.0
    assert sampler.statistics().progress == 1.0


def test_progress_goes_on_where_an_epoch_is_resumed():
    sampler = make_sampler(N, epochs=2)
    (trainer,) = join_all(sampler)
    trainer.start(1, skip=24)
    assert sampler.statistics().progress == 0.75
    trainer.take(3)
    assert sampler.statistics().progress == 0.875
    trainer.drain()
    assert sampler.statistics().progress == 1.0


def test_leads_are_those_of_late(monkeypatch):
    monkeypatch.setattr("sampler_service.tally.RECENT_LEADS", 6)
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    trainer.take(4)
    assert sampler.statistics().p99_lead == 3
    for _ in range(6):
        trainer.take_acked(1)
    said = sampler.statistics(detail=True)
    assert (said.median_lead, said.p99_lead) == (0, 0)
    assert said.detail is not None
    assert said.detail.leads.sum == 0 + 1 + 2 + 3, "the histogram is of all"


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
    monkeypatch.setattr(watched_module, "SAMPLE_ROWS", 500)
    sampler = make_sampler(2000)
    (trainer,) = join_all(sampler, batch=200)
    train(trainer, 1, step=0)
    sampler._table.step = 5
    said = sampler.statistics(detail=True)
    assert said.detail is not None
    assert 400 <= sum(said.detail.ages.counts) <= 500
    assert said.median_age_steps == 5.0
    assert said.never_drawn == 0, "this is counted"


# --- what others do meanwhile ---


def held_elsewhere(sampler: Sampler) -> bool:
    """Whether a call of a trainer would wait for the run's lock now."""
    free: list[bool] = []

    def attempt() -> None:
        free.append(sampler._lock.acquire(blocking=False))
        if free[0]:
            sampler._lock.release()

    other = threading.Thread(target=attempt)
    other.start()
    other.join()
    return not free[0]


def test_what_takes_long_is_made_outside_of_the_lock_and_only_once(monkeypatch):
    sampler, trainer = clustered()
    held: dict[str, list[bool]] = {}

    def spy(module, name: str) -> None:
        make, found = getattr(module, name), held.setdefault(name, [])
        monkeypatch.setattr(module, name, lambda *given: found.append(held_elsewhere(sampler)) or make(*given))

    for name in ("measured_ratio", "effective_sample_ratio", "mean_by", "histogram"):
        spy(observer_module, name)
    for name in ("principal_axes", "redundancy"):
        spy(watched_module, name)
    train(trainer, 1, first=3)
    sampler.refresh()
    sampler.statistics(detail=True)
    assert all(held.values()), f"something was not asked for: {held}"
    assert not any(any(found) for found in held.values()), held
    reduced = len(held["measured_ratio"])
    for _ in range(3):
        sampler.statistics()
        sampler.refresh_due()
    assert len(held["measured_ratio"]) == reduced, "nothing was reported since"
    trainer.start(4)
    trainer.report(trainer.take(1).batches[0])
    sampler.statistics()
    assert len(held["measured_ratio"]) == reduced + 1


def test_no_counter_falls_when_a_shard_turns_out_to_have_missed_rows(monkeypatch):
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    first, second, third = trainer.take(3).batches
    trainer.report(first)
    assert sampler.statistics().reported_rows == 4
    monkeypatch.setattr(sampler._shards, "update", lambda block: 2 * len(block))  # of earlier reports as well
    trainer.report(second)
    said = sampler.statistics()
    assert (said.reported_rows, said.rejected_rows) == (4, {"shard_away": 8})
    monkeypatch.undo()
    trainer.report(third)
    assert sampler.statistics().reported_rows == 4


def test_a_partition_that_is_installed_meanwhile_is_seen_whole_or_not_at_all(monkeypatch):
    sampler, _ = clustered()
    mean_by = observer_module.mean_by
    more = np.arange(N, dtype=np.int32) % 9

    def install_then_mean(*given):
        sampler._table.install(more, np.ones(9), 9.0)
        sampler._watched.clusters = Clusters(
            size_k=np.bincount(more), scatter_k=np.ones(9), redundancy_k=np.ones(9), at_k2=np.ones((9, 2))
        )
        return mean_by(*given)

    monkeypatch.setattr(observer_module, "mean_by", install_then_mean)
    said = sampler.statistics(detail=True)
    assert said.detail is not None
    assert [cluster.size for cluster in said.detail.clusters] == [N // 4] * 4
    assert sum(cluster.draw_share for cluster in said.detail.clusters) == pytest.approx(1.0)
    said = sampler.statistics(detail=True)
    assert said.detail is not None
    assert len(said.detail.clusters) == 9


def test_what_was_lent_and_never_arrived_is_counted_once():
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    trainer.take(2)
    sampler.connect(trainer.session, 0, [])  # neither came through
    said = sampler.statistics()
    assert (said.batches, said.batches_by_policy, said.examples) == (2, {"shuffle": 2}, 8), "no counter falls"
    trainer.held, trainer.last_batch_id = {}, 0
    trainer.take(2)
    said = sampler.statistics(detail=True)
    assert (said.batches, said.batches_by_policy["shuffle"], said.ranks[0].batches) == (2, 2, 2)
    assert said.ranks[0].examples == said.examples == 8
    assert said.detail is not None
    assert sum(said.detail.leads.counts) == 2
    times = [sampler.explain(i, 1).example.drawn for i in range(N)]
    assert sum(times) == 8
