"""A run whose data set grows and loses examples while it goes on."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.config import RunConfig
from sampler_service.datasets import Dataset
from sampler_service.errors import ConfigError, Conflict, NotFound, Stale
from sampler_service.leases import Group
from sampler_service.sampler import Sampler
from sampler_service.service import Catalog, InProcessService
from sampler_service.shards import LocalShards
from sampler_service.types import Float32, Int64
from tests.support import Clock, FakeTrainer, ids_of, join_all, make_config, make_sampler

N = 40
POLICY_OPTIONS = MappingProxyType({"importance": {"gate": "1"}})


def grown(sampler: Sampler, num_examples: int) -> None:
    sampler.follow(sampler._examples.dataset.grown("data", num_examples))


def deleted(sampler: Sampler, *ids: int) -> None:
    sampler.follow(sampler._examples.dataset.without("data", np.array(ids)))


def train(trainer: FakeTrainer, epoch: int) -> list:
    """An epoch, each batch reported."""
    trainer.start(epoch)
    first = len(trainer.received)
    while not trainer.take(1).ended:
        for batch in list(trainer.held.values()):
            trainer.report(batch)
            del trainer.held[batch.batch_id]
        if trainer.sampler.refresh_due():
            trainer.sampler.refresh()
    return trainer.received[first:]


def weighed(batches) -> list[int]:
    """Ids of the rows that count; others only keep ranks in step."""
    return [i for batch in batches for i in batch.rows.example_ids[batch.rows.weights > 0].tolist()]


# --- growth ---


@pytest.mark.parametrize("policy", ["shuffle", "importance", "gradient_clustering", "balanced_order", "two_stage"])
def test_what_was_appended_comes_with_the_next_epoch_and_not_before(policy):
    options = POLICY_OPTIONS.get(policy, {})
    candidates = 2 if policy == "two_stage" else 1
    sampler = make_sampler(N, policy=policy, policy_options=options, num_clusters=4, candidates=candidates)
    (trainer,) = join_all(sampler)
    for epoch in range(2):
        train(trainer, epoch)
    trainer.start(2)
    before = [*trainer.take(2).batches]
    grown(sampler, N + 12)
    before += trainer.drain()
    assert max(ids_of(before)) < N
    assert sampler.statistics().num_examples == N
    seen: set[int] = set()
    for epoch in range(3, 9):
        seen |= set(ids_of(train(trainer, epoch)))
    assert seen == set(range(N + 12)), "those of which nothing is known are drawn as well"
    said = sampler.statistics()
    assert (said.num_examples, said.deleted, said.never_drawn) == (N + 12, 0, 0)
    assert sampler.explain(N + 3, 2).example.drawn > 0


def test_a_grown_epoch_has_more_steps_and_the_clock_keeps_its_unit():
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    assert trainer.steps_per_epoch == 10
    grown(sampler, 60)
    started = trainer.start(0)
    assert (started.num_steps, started.epoch_steps, started.num_examples) == (15, 15, 60)
    trainer.lose()
    again = FakeTrainer(sampler, 0, Group(world_size=2, batch_size=4, drop_last=False))
    assert again.steps_per_epoch == 5, "of what the run was opened with"


def test_a_run_grows_when_all_its_ranks_can_load_more():
    sampler = make_sampler(N)
    group = Group(world_size=2, batch_size=4, drop_last=False)
    first, second = (FakeTrainer(sampler, rank, group, num_examples=N) for rank in range(2))
    grown(sampler, N + 8)

    def epoch(number: int) -> list[int]:
        for trainer in (first, second):
            trainer.start(number)
        return sorted(ids_of(first.drain() + second.drain()))

    assert epoch(0) == list(range(N))
    sampler._members.find(first.session).num_examples = N + 8  # joined again by its token
    assert epoch(1) == list(range(N))
    sampler._members.find(second.session).num_examples = N + 6
    assert epoch(2) == list(range(N + 6)), "as many as both can"
    second.lose()
    with pytest.raises(Stale, match=r"run 'run' has 46 examples, this trainer can load 40; extend its data set"):
        FakeTrainer(sampler, 1, group, num_examples=N)
    third = FakeTrainer(sampler, 1, group, num_examples=N + 8)
    for trainer in (first, third):
        trainer.start(3)
    assert sorted(ids_of(first.drain() + third.drain())) == list(range(N + 8))


def test_a_rank_that_has_not_joined_yet_keeps_a_run_from_growing():
    sampler = make_sampler(N)
    grown(sampler, N + 8)
    alone = FakeTrainer(sampler, 0, Group(world_size=2, batch_size=4, drop_last=False), num_examples=N + 8)
    assert alone.start(0).num_examples == N


def test_a_trainer_is_never_handed_what_it_can_not_load():
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    grown(sampler, N + 8)
    trainer.start(0)
    sampler._members.find(trainer.session).num_examples = N  # though nothing else had kept it from it
    with pytest.raises(Stale, match="trainer 0 can load 40 examples, epoch 0 of run 'run' has 48"):
        trainer.take(1)


def test_a_slow_rank_gets_the_rest_of_the_epoch_that_began_before():
    sampler = make_sampler(N, policy="importance", policy_options={"gate": "1"})
    fast, slow = join_all(sampler, world=2)
    for epoch in range(2):
        for trainer in (fast, slow):
            train(trainer, epoch)
    for trainer in (slow, fast):
        trainer.start(2)
    slow.take(1)
    fast.drain()
    grown(sampler, 2 * N)
    deleted(sampler, 0, 1, N, N + 1)
    assert fast.start(3).num_examples == 2 * N - 4
    late, early = slow.drain(), fast.drain()
    assert {batch.size for batch in late} == {N}
    assert max(ids_of(late)) < N < max(ids_of(early))
    assert not {0, 1, N, N + 1} & set(ids_of(late + early))
    for batch in late + early:
        left = N - 2 if batch.size == N else 2 * N - 4
        np.testing.assert_allclose(batch.rows.weights * left * batch.rows.probabilities, 1, rtol=1e-5)


def reference_of(sampler: Sampler) -> Float32:
    reference_loss_n = sampler._table.view().reference_loss_n
    assert reference_loss_n is not None
    return reference_loss_n


def groups_of(sampler: Sampler) -> Int64:
    group_n = sampler._table.view().group_n
    assert group_n is not None
    return group_n


def test_reference_losses_and_groups_of_new_examples():
    sampler = make_sampler(N, policy="rho_loss")
    sampler.set_reference(np.zeros(N, np.float32))
    sampler.set_groups(np.arange(N) % 3)
    (trainer,) = join_all(sampler)
    grown(sampler, N + 4)
    grown(sampler, N + 6)
    trainer.start(0)
    assert np.isnan(reference_of(sampler)[N:]).all()
    assert set(groups_of(sampler)[N:]) == {3}, "one group of their own"
    with pytest.raises(ConfigError, match="reference losses: got 40, run 'run' has 46 examples"):
        sampler.set_reference(np.zeros(N, np.float32))
    grown(sampler, N + 8)
    sampler.set_reference(np.ones(N + 8, np.float32))  # before the run has them
    sampler.set_groups(np.arange(N + 8) % 5)
    assert len(reference_of(sampler)) == len(groups_of(sampler)) == N + 6
    trainer.start(1)
    assert (reference_of(sampler) == 1).all()
    assert groups_of(sampler).tolist() == [i % 5 for i in range(N + 8)]


# --- deletion ---


@pytest.mark.parametrize("policy", ["shuffle", "importance", "gradient_clustering", "poa", "hard_negative"])
def test_no_batch_that_is_lent_after_a_deletion_has_a_deleted_example(policy):
    options = {"hard_negative": {"begin": "0", "end": "0"}, **POLICY_OPTIONS}.get(policy, {})
    sampler = make_sampler(N, policy=policy, policy_options=options, num_clusters=4)
    (trainer,) = join_all(sampler)
    for epoch in range(3):
        if policy == "poa" and epoch == 2:
            sampler.set_target(np.ones((2, 4), np.float32))
        train(trainer, epoch)
    trainer.start(3)
    trainer.take(2)
    gone = {1, 2, 3, 17, 18, 39}
    deleted(sampler, *gone)
    rest = trainer.drain()
    assert {b.policy for b in trainer.received[-3:]} == {policy}
    assert not gone & set(ids_of(rest))
    for batch in rest:
        assert len(batch.rows) == len(batch.cluster_ids) == len(batch.rows.weights)
        if batch.drawn:
            assert len(batch.rows) == 4, "they were planned after it"
            np.testing.assert_allclose(batch.rows.weights * (N - 6) * batch.rows.probabilities, 1, rtol=1e-5)
    later = train(trainer, 4)
    assert not gone & set(ids_of(later))
    if policy not in ("importance", "gradient_clustering"):
        assert sorted(ids_of(later)) == sorted(set(range(N)) - gone)
    said = sampler.statistics()
    assert (said.num_examples, said.deleted, said.sketch_coverage) == (N, 6, 1.0)


def test_all_ranks_take_as_many_steps_though_one_lost_all_rows_of_a_part():
    sampler = make_sampler(16)
    first, second = join_all(sampler, world=2, batch=2)
    assert first.start(0).num_steps == second.start(0).num_steps == 4
    first.take(2)  # with which the other's parts are planned
    delivery = sampler._delivery
    assert delivery is not None
    waiting = delivery._epochs[-1].queue(1)[0].rows.example_ids.tolist()
    deleted(sampler, *waiting)
    first.drain()
    empty, *others = second.drain()
    assert (len(first.received), len(others)) == (4, 3)
    assert (len(empty.rows), empty.rows.weights.tolist(), empty.global_batch_size) == (1, [0.0], 4)
    assert sorted(weighed(first.received + second.received)) == sorted(set(range(16)) - set(waiting))


def test_what_a_lost_trainer_held_comes_back_without_what_was_deleted():
    clock = Clock()
    sampler = make_sampler(48, clock)
    stays, lost = join_all(sampler, world=2, lead=6)
    for trainer in (stays, lost):
        trainer.start(0)
    held = ids_of(lost.take(3).batches)
    lost.lose()
    deleted(sampler, *held[:5])
    for _ in range(5):
        clock.advance(9)
        sampler.renew(stays.session)
    assert sorted(weighed(stays.drain())) == sorted(set(range(48)) - set(held[:5]))


def test_what_was_lost_on_the_way_is_sent_again_without_what_was_deleted():
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    trainer.take(1)
    sent = sampler.take(trainer.session, 2, []).batches  # never arrives
    deleted(sampler, *ids_of(sent)[:3])
    trainer.reconnect()
    again = trainer.take(2).batches
    assert ids_of(again) == ids_of(sent)[3:]
    assert [batch.batch_id for batch in again] == [batch.batch_id for batch in sent]


def test_reports_of_deleted_examples_are_counted_and_dropped():
    sampler = make_sampler(N, policy="gradient_clustering", num_clusters=4)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    (batch,) = trainer.take(1).batches
    gone = int(batch.rows.example_ids[1])
    deleted(sampler, gone)
    summary = trainer.report(batch)
    assert (summary.accepted, summary.rejected) == (3, {"deleted": 1})
    assert np.isnan(sampler._table.loss_n[gone])
    assert sampler.statistics().rejected_rows == {"deleted": 1}
    everything = trainer.take_acked(1).batches[0]
    deleted(sampler, *everything.rows.example_ids.tolist())
    assert trainer.report(everything).rejected == {"deleted": 4}
    outside = trainer.report(everything, example_ids=np.array([N, -1, gone, gone]), batch_id=0)
    assert outside.rejected == {"unknown_id": 2, "deleted": 2}


def test_statistics_leave_deleted_examples_out():
    sampler = make_sampler(N, policy="gradient_clustering", num_clusters=4)
    (trainer,) = join_all(sampler)
    for epoch in range(2):
        train(trainer, epoch)
    gone = [3, 8, 9]
    drawn = int(sampler._drawn.times_n[8])
    deleted(sampler, *gone)
    said = sampler.statistics(detail=True)
    assert (said.num_examples, said.deleted, said.sketch_coverage, said.never_drawn) == (N, 3, 1.0, 0)
    assert said.epoch_coverage <= 1.0
    assert said.detail is not None and sum(said.detail.rates.counts) == N - 3
    found = sampler.explain(8, 3)
    (why,) = found.why
    assert why.startswith("It was deleted from its data set, and is drawn no more; before, that happened ")
    assert (found.example.rate, found.example.cluster, found.example.drawn) == (0.0, -1, drawn)
    for order in ("hardest", "most_drawn", "redundant", "never_drawn"):
        assert not set(gone) & {example.example_id for example in sampler.examples(order, 1000)}
    assert not set(gone) & {near.example.example_id for near in sampler.explain(4, 30).neighbours}
    assert sampler.explain(8, 3).no_neighbours.startswith("It has no sketch")


def test_clusters_that_were_made_meanwhile_put_no_deleted_example_into_a_batch():
    sampler = make_sampler(N, policy="gradient_clustering", num_clusters=4)
    (trainer,) = join_all(sampler)
    for epoch in range(2):
        train(trainer, epoch)
    recluster = sampler._shards.clusters

    def slowly(timeout_s=None):
        made = recluster(timeout_s)
        deleted(sampler, 4, 5)
        return made

    sampler._shards.clusters = slowly  # what was made holds examples that are no more
    sampler._intake.fresh_rows = N
    sampler.refresh()
    trainer.start(2)
    assert not {4, 5} & set(ids_of(trainer.drain()))


def test_a_run_without_any_example_left_says_so():
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    grown(sampler, N + 1)
    sampler._members.find(trainer.session).num_examples = N
    trainer.start(0)
    trainer.take(1)
    deleted(sampler, *range(N))
    assert trainer.drain() == []
    with pytest.raises(ConfigError, match="all 40 examples that the trainers of run 'run' can load were deleted"):
        trainer.start(1)


def test_a_global_batch_must_be_filled_by_what_is_left():
    sampler = make_sampler(N)
    deleted(sampler, *range(37))
    with pytest.raises(
        ConfigError, match="the global batch of 1 x 4 = 4 examples is larger than dataset 'data' with 3"
    ):
        join_all(sampler)


# --- a restart ---


def test_an_epoch_goes_on_after_a_restart_with_the_order_it_began_with():
    """Also though the data set has grown and lost examples since, before the restart and during it."""
    dataset = Dataset((N,)).without("data", np.array([2, 3]))
    config, shards = make_config(N), LocalShards(N, 4, 2)
    sampler = Sampler(config, shards, clock=Clock(), dataset=dataset)
    (trainer,) = join_all(sampler)
    name = trainer.start(0).population
    before = trainer.take(3).batches
    grown(sampler, N + 10)
    deleted(sampler, 11, 12)
    before += trainer.take_acked(2).batches
    now = sampler._examples.dataset.without("data", np.array([20]))
    again = Sampler(config, shards, clock=Clock(), first_batch_id=1 << 20, dataset=now)
    again.recover()
    (trainer,) = join_all(again)
    trainer.start(0, first_step=5, population=name)
    rest = trainer.drain()
    gone = {2, 3, 11, 12, 20}
    first = set(ids_of(before))
    assert not first & set(ids_of(rest))
    assert first | set(ids_of(rest)) | gone == set(range(N))
    assert not {11, 12, 20} & set(ids_of(rest))
    assert trainer.start(1).num_examples == N + 10 - 5


def test_a_position_of_more_examples_than_the_trainer_can_load_is_refused_and_grows_nothing():
    sampler = make_sampler(N)
    grown(sampler, N + 10)
    trainer = FakeTrainer(sampler, 0, Group(world_size=1, batch_size=4, drop_last=False), num_examples=N)
    with pytest.raises(Stale, match="the position is of an epoch of 50 examples, this trainer can load 40; extend its"):
        trainer.start(1, skip=8, population=f"2.{N + 10}")
    assert trainer.start(1, skip=8, population=f"1.{N}").num_examples == N


def test_a_position_goes_on_with_the_pass_that_it_is_of_though_the_epoch_was_begun_again():
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    first = trainer.start(0)
    before = ids_of(trainer.take(3).batches)
    grown(sampler, N + 10)
    assert trainer.start(0).num_examples == N + 10, "from its beginning, with what there is now"
    trainer.take(2)
    assert trainer.start(0, skip=12, population=first.population).num_examples == N
    assert sorted(before + ids_of(trainer.drain())) == list(range(N))


def test_what_shards_hold_of_new_examples_comes_back_and_what_was_deleted_does_not():
    config, shards = make_config(N), LocalShards(N, 4, 3)
    sampler = Sampler(config, shards, clock=Clock())
    (trainer,) = join_all(sampler)
    grown(sampler, N + 10)
    train(trainer, 0)
    loss_n = sampler._table.loss_n.copy()
    assert not np.isnan(loss_n).any()
    fresh = LocalShards(N, 4, 3)  # as an actor is made anew: with the numbers of then
    fresh._shards = shards._shards
    gone = sampler._examples.dataset.without("data", np.array([5, N + 5]))
    again = Sampler(config, fresh, clock=Clock())
    again.recover(gone)
    loss_n[[5, N + 5]] = np.nan
    np.testing.assert_array_equal(again._table.loss_n, loss_n)
    assert again.statistics().sketch_coverage == 1.0
    (trainer,) = join_all(again)
    assert sorted(ids_of(train(trainer, 1))) == sorted(set(range(N + 10)) - {5, N + 5})


# --- any order of events ---


class Walk:
    """Ranks take batches, are lost and replaced, while the data set changes; what is done is counted."""

    def __init__(self, seed: int, world: int, batch: int, policy: str) -> None:
        self.rng, self.clock = np.random.default_rng(seed), Clock()
        self.sampler = make_sampler(
            30, self.clock, seed=seed, policy=policy, policy_options=POLICY_OPTIONS.get(policy, {})
        )
        self.group = Group(world_size=world, batch_size=batch, drop_last=False)
        self.served = dict.fromkeys(range(world), 30)
        self.there = [self._join(rank) for rank in range(world)]
        self.gone: set[int] = set()
        self.done: Counter[int] = Counter()

    def _join(self, rank: int) -> FakeTrainer:
        return FakeTrainer(self.sampler, rank, self.group, num_examples=self.served[rank])

    def _count(self, trainer: FakeTrainer, held: list) -> None:
        for batch_id in held:
            rows = trainer.held[batch_id].rows
            self.done.update(rows.example_ids[rows.weights > 0].tolist())

    def epoch(self, epoch: int) -> None:
        self.done.clear()
        started = [trainer.start(epoch) for trainer in self.there]
        assert len({start.num_examples for start in started}) == 1
        size = self.sampler._examples.present.size
        began = set(range(size)) - self.gone
        assert size == max(30, min(self.served.values())) and started[0].num_examples == len(began)
        running = list(self.there)
        while running:
            self._happen(running)
            trainer = running[self.rng.integers(len(running))]
            acked = [batch_id for batch_id in trainer.held if self.rng.random() < 0.5]
            self._count(trainer, acked)
            taken = trainer.take(int(self.rng.integers(1, 4)), acked)
            for batch in taken.batches:
                assert not self.gone & set(ids_of([batch]))
                assert max(ids_of([batch])) < self.served[trainer.rank]
            if taken.ended:
                self._count(trainer, list(trainer.held))
                trainer.take(0, list(trainer.held))
                running.remove(trainer)
        left = began - self.gone
        if self.sampler.policy.kind == "sweep":
            assert {i: self.done[i] for i in left} == dict.fromkeys(left, 1)
        lost = set(self.served) - {trainer.rank for trainer in self.there}
        self.there += [self._join(rank) for rank in lost]

    def _happen(self, running: list[FakeTrainer]) -> None:
        dataset = self.sampler._examples.dataset
        what = self.rng.random()
        if what < 0.08:
            grown(self.sampler, dataset.size + int(self.rng.integers(1, 6)))
        elif what < 0.16:
            rank = int(self.rng.integers(len(self.served)))
            self.served[rank] = max(self.served[rank], self.sampler._examples.dataset.size)
            for trainer in self.there:
                if trainer.rank == rank:  # by its token
                    self.sampler._members.find(trainer.session).num_examples = self.served[rank]
        elif what < 0.26 and len(self.gone) < dataset.size // 2:
            ids = set(self.rng.integers(0, dataset.size, 3).tolist())
            deleted(self.sampler, *ids)
            self.gone |= ids
        elif what < 0.3 and len(running) == len(self.there) > 1:
            lost = running.pop(int(self.rng.integers(len(running))))
            self.there.remove(lost)
            lost.lose()
            for _ in range(5):
                self.clock.advance(9)
                for trainer in self.there:
                    self.sampler.renew(trainer.session)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    world=st.integers(1, 3),
    batch=st.integers(1, 4),
    policy=st.sampled_from(["shuffle", "importance"]),
)
def test_every_example_alive_is_done_exactly_once_an_epoch_whatever_happens_meanwhile(seed, world, batch, policy):
    walk = Walk(seed, world, batch, policy)
    for epoch in range(4):
        walk.epoch(epoch)


# --- the catalog, and the service in process ---


def test_a_catalog_knows_what_a_data_set_was_and_is():
    catalog = Catalog()
    catalog.register_dataset("data", 10)
    assert catalog.grow_dataset("data", 12).size == 12
    assert catalog.delete_examples("data", np.array([0])).deleted == 1
    for number in (10, 11, 12):
        catalog.register_dataset("data", number)
    for number in (9, 13):
        with pytest.raises(Conflict, match=f"registered with 12 examples, asked for {number}; use another name"):
            catalog.register_dataset("data", number)
    for change in (lambda: catalog.grow_dataset("nope", 3), lambda: catalog.delete_examples("nope", np.array([1]))):
        with pytest.raises(NotFound, match="unknown dataset 'nope'; registered are \\['data'\\]"):
            change()
    with pytest.raises(ConfigError, match="dataset 'data' has 4294967296 examples; it must have 1 to"):
        catalog.grow_dataset("data", 1 << 32)
    again = Catalog(**catalog.state())
    assert again.dataset("data").deleted_ids().tolist() == [0]
    assert again.state() == catalog.state()


def test_a_data_set_follows_its_records_and_no_others_that_come_under_its_name():
    catalog = Catalog()
    assert catalog.follow_records("data", "uid-of-one", 10, np.empty(0, np.int64)).size == 10
    grown = catalog.follow_records("data", "uid-of-one", 12, np.array([3]))
    assert (grown.size, grown.deleted_ids().tolist()) == (12, [3])
    assert catalog.follow_records("data", "uid-of-one", 12, np.array([3])).version == grown.version
    older = catalog.follow_records("data", "uid-of-one", 10, np.empty(0, np.int64))
    assert older.version == grown.version, "the copy of a node that has yet to hear"
    catalog = Catalog(**catalog.state())
    for number in (10, 12, 30):
        with pytest.raises(Conflict, match=r"'data' stands for .* registered as uid-of-o, .* others .* now, another-"):
            catalog.follow_records("data", "another-uid", number, np.empty(0, np.int64))
    assert catalog.dataset_size("data") == 12
    catalog.register_dataset("ids", 5)
    assert catalog.follow_records("ids", "uid", 6, np.empty(0, np.int64)).sizes == range(5, 7)
    with pytest.raises(Conflict, match="has 6 examples, asked to grow to 4"):
        catalog.follow_records("ids", "uid", 4, np.empty(0, np.int64))


def test_data_sets_in_use_are_those_of_open_runs():
    service = InProcessService()
    for dataset in ("one", "two", "three"):
        service.register_dataset(dataset, 10)
    for run, dataset in (("a", "two"), ("b", "one"), ("c", "two")):
        service.open_run(config_over(dataset, run, 10))
    assert service.datasets() == ["one", "two"]
    service.close_run("b")
    assert service.datasets() == ["two"]


def config_over(dataset: str, run: str, num_examples: int) -> RunConfig:
    return replace(make_config(num_examples), dataset=dataset, run=run)


def test_all_runs_of_a_data_set_follow_it_and_others_do_not():
    service = InProcessService()
    for dataset in ("one", "two"):
        service.register_dataset(dataset, 10)
    for run, dataset in (("a", "one"), ("b", "one"), ("c", "two")):
        service.open_run(config_over(dataset, run, 10))
    assert service.delete_examples("one", np.array([4])).deleted == 1
    assert [service.statistics(run).deleted for run in "abc"] == [1, 1, 0]
    assert service.grow_dataset("one", 12).size == service.dataset_size("one") == 12
    service.open_run(config_over("one", "d", 12))
    service.open_run(config_over("one", "e", 10))  # a trainer that has the data set as it was
    assert [(s.num_examples, s.deleted) for s in map(service.statistics, "de")] == [(12, 1), (10, 1)]
    assert service.open_run(config_over("one", "a", 12)) is False, "it is open, whatever its number"
    with pytest.raises(ConfigError, match="run 'f' is to begin with 13 examples, dataset 'one' had 10 and has 12"):
        service.open_run(config_over("one", "f", 13))


def test_each_epoch_of_an_unchanged_run_is_what_it_was():
    """Growing and deleting must not change the order of a run that has neither."""
    plain, other = make_sampler(N, seed=3), make_sampler(N, seed=3)
    (first,), (second,) = join_all(plain), join_all(other)
    grown(other, N + 5)
    other._members.find(second.session).num_examples = N
    by_epoch = defaultdict(list)
    for trainer in (first, second):
        for epoch in range(2):
            trainer.start(epoch)
            by_epoch[epoch].append(ids_of(trainer.drain()))
    assert all(one == two for one, two in by_epoch.values())
