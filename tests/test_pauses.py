"""Between two passes: workers that end with one and come back with the next, and what their loop has yet to receive."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.leases import Group, Membership
from tests.support import Clock, FakeTrainer, ids_of, join_all, make_sampler
from tests.test_delivery import geometries

LEASE_S = 30.0


def steps_of(trainer: FakeTrainer, epoch: int) -> list[int]:
    return [batch.step for batch in trainer.received if batch.epoch == epoch]


def take_all(trainer: FakeTrainer) -> None:
    """Whatever there is by now."""
    while trainer.take_acked().batches:
        pass


def after_an_evaluation(clock: Clock, *, broken: bool = False) -> tuple[FakeTrainer, FakeTrainer]:
    """Two workers of one rank whose processes ended with their first pass, many leases ago."""
    workers = join_all(make_sampler(40, clock, lease_s=LEASE_S), world=1, workers=2)
    for worker in workers:
        worker.start(0)
        worker.drain()
        worker.lose() if broken else worker.pause()
    clock.advance(20 * LEASE_S)
    return workers[0], workers[1]


@pytest.mark.parametrize("broken", [False, True], ids=["paused", "broken"])
def test_a_worker_that_comes_back_late_from_an_evaluation_finds_its_part_of_the_pass(broken):
    clock = Clock()
    first, second = after_an_evaluation(clock, broken=broken)
    first.resume(1)
    take_all(first)
    clock.advance(LEASE_S - 1)
    assert not first.take_acked().ended, "it waits for the other one"
    assert second.resume(1).num_steps == 5
    assert [b.step for b in second.drain()] == [1, 3, 5, 7, 9]
    assert first.drain() == []
    assert steps_of(first, 1) == [0, 2, 4, 6, 8]


def test_the_part_of_a_worker_that_never_comes_back_goes_to_the_others_a_lease_after_the_pass_began():
    clock = Clock()
    first, _ = after_an_evaluation(clock)
    first.resume(1)
    take_all(first)
    clock.advance(LEASE_S - 1)
    assert not first.take_acked().batches
    clock.advance(2)
    assert [b.step for b in first.drain()] == [1, 3, 5, 7, 9]
    assert [trainer.session for trainer in first.sampler._members] == [first.session]


def test_who_is_through_with_its_pass_is_waited_for_by_nobody_who_is_slower():
    clock = Clock()
    fast, slow = join_all(make_sampler(40, clock, lease_s=LEASE_S), world=2)
    for trainer in (fast, slow):
        trainer.start(0)
    fast.drain()
    fast.pause()
    for _ in range(5):
        clock.advance(LEASE_S)
        slow.take_acked()
    assert slow.take_acked().ended
    assert steps_of(slow, 0) == [0, 1, 2, 3, 4]
    slow.start(1)
    clock.advance(LEASE_S - 1)
    fast.resume(1)
    slow.drain()
    assert [b.step for b in fast.drain()] == steps_of(slow, 1) == [0, 1, 2, 3, 4]


def test_what_nobody_has_taken_yet_goes_back_to_the_next_trainer_of_a_rank():
    clock = Clock()
    sampler = make_sampler(48, clock, lease_s=LEASE_S)
    stays, lost = join_all(sampler, world=2, lead=6)
    for trainer in (stays, lost):
        trainer.start(0)
    lost.take(2)
    lost.lose()
    clock.advance(LEASE_S + 1)
    stays.take_acked(2)
    assert sampler.statistics().leases_expired == 2
    heir = FakeTrainer(sampler, 1, Group(world_size=2, batch_size=4, drop_last=False))
    assert heir.start(0).num_steps == 6
    assert [b.step for b in heir.drain()] == [0, 1, 2, 3, 4, 5]
    stays.drain()
    assert [b.step for b in stays.received] == [0, 1, 2, 3, 4, 5]
    assert sorted(ids_of(stays.received + heir.received)) == list(range(48))


def test_of_trainers_that_come_when_all_have_left_the_first_does_not_get_what_is_the_others():
    sampler = make_sampler(40)
    for trainer in join_all(sampler, world=1, workers=2):
        trainer.start(0)
        trainer.drain()
        sampler.leave(trainer.session)
    group = Group(world_size=1, batch_size=4, drop_last=False, workers=2)
    first = FakeTrainer(sampler, 0, group)
    first.start(1)
    first.drain()
    second = FakeTrainer(sampler, 1, group)
    second.start(1)
    second.drain()
    assert [b.step for b in first.received] == [0, 2, 4, 6, 8]
    assert [b.step for b in second.received] == [1, 3, 5, 7, 9]


def test_trainers_that_were_lost_together_have_a_lease_to_come_back_one_after_the_other():
    clock = Clock()
    sampler = make_sampler(40, clock, lease_s=LEASE_S)
    lost = join_all(sampler, world=2)
    for trainer in lost:
        trainer.start(0)
        trainer.take(2)
        trainer.lose()
    clock.advance(20 * LEASE_S)
    group = Group(world_size=2, batch_size=4, drop_last=False)
    first = FakeTrainer(sampler, 0, group)
    first.start(1)
    take_all(first)
    clock.advance(LEASE_S - 1)
    assert not first.take_acked().ended, "it waits for the other one"
    second = FakeTrainer(sampler, 1, group)
    second.start(1)
    assert [b.step for b in second.drain()] == steps_of(first, 1) == [0, 1, 2, 3, 4]
    assert first.drain() == []


def with_a_tail(clock: Clock) -> tuple[FakeTrainer, FakeTrainer, list[int]]:
    """Of two ranks one is through with its pass; two batches of it are on their way to its loop, and the other rank has
    two to go."""
    stays, pauses = join_all(make_sampler(40, clock, lease_s=LEASE_S), world=2)
    for trainer in (stays, pauses):
        trainer.start(0)
    stays.take(3)
    while not pauses.take(1, list(pauses.held)[:-2]).ended:
        pass
    assert len(pauses.held) == 2
    pauses.pause()
    return stays, pauses, ids_of(pauses.held.values())


def test_what_is_on_its_way_to_a_loop_goes_to_nobody_when_it_comes_back():
    clock = Clock()
    stays, pauses, _ = with_a_tail(clock)
    assert [b.step for b in stays.drain()] == [3, 4], "the other one neither waits nor gets it"
    clock.advance(20 * LEASE_S)
    stays.start(1)
    pauses.resume(1)
    for trainer in (pauses, stays):
        trainer.drain()
        assert steps_of(trainer, 0) == steps_of(trainer, 1) == [0, 1, 2, 3, 4]
    assert stays.sampler.statistics().leases_expired == 0


def test_what_was_on_its_way_to_a_loop_that_died_goes_to_the_others_a_lease_after_the_next_pass_began():
    clock = Clock()
    stays, _, tail = with_a_tail(clock)
    stays.drain()
    clock.advance(20 * LEASE_S)
    stays.start(1)
    take_all(stays)
    clock.advance(LEASE_S + 1)
    stays.drain()
    assert sorted(ids_of(b for b in stays.received if b.epoch == 1)) == list(range(40))
    own = [b for b in stays.received if b.epoch == 0]
    assert ids_of(own[5:]) == tail


@pytest.mark.parametrize("done", [True, False])
def test_a_trainer_that_leaves_says_whether_it_is_done_with_what_it_has(done):
    stays, leaves, tail = with_a_tail(Clock())
    leaves.sampler.leave(leaves.session, done)
    leaves.sampler.leave(leaves.session)  # a repeat changes nothing
    stays.drain()
    assert ids_of(stays.received[5:]) == ([] if done else tail)


def test_the_rank_of_a_paused_trainer_may_be_taken_by_another():
    members = Membership("run")
    group = Group(world_size=1, batch_size=4, drop_last=False)
    first, _ = members.join(group, 0, 4, "first", now=0.0)
    first.disconnected(1.0, paused=True)
    second, replaced = members.join(group, 0, 4, "second", now=1.0)
    assert replaced is first and members.find(second.session) is second


@settings(max_examples=80, deadline=None)
@given(geometry=geometries(), workers=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_however_long_trainers_evaluate_all_get_their_turns_and_no_example_is_lost_or_comes_twice(
    geometry, workers, seed
):
    n, batch, world, drop_last = geometry
    clock, rng = Clock(), np.random.default_rng(seed)
    sampler = make_sampler(n, clock, seed=seed, lease_s=LEASE_S)
    trainers = join_all(sampler, world, batch, drop_last, workers=workers)
    for epoch in range(3):
        away, inside = list(trainers), list[FakeTrainer]()
        while away or inside:
            if away and (not inside or rng.random() < 0.2):
                inside.append(away.pop(rng.integers(len(away))))
                inside[-1].resume(epoch)
                continue
            if not away and rng.random() < 0.1:
                clock.advance(2 * LEASE_S)  # all have begun the pass: one that is through is not waited for
                for trainer in inside:
                    sampler.renew(trainer.session)
            trainer = inside[rng.integers(len(inside))]
            if trainer.take(int(rng.integers(1, 4)), [i for i in trainer.held if rng.random() < 0.5]).ended:
                trainer.pause()  # the rest of what it holds is received meanwhile
                inside.remove(trainer)
        clock.advance(rng.choice([0.0, 3 * LEASE_S]))

    whole = n // (batch * world) * batch * world if drop_last else n
    for epoch in range(3):
        counts = Counter(ids_of(b for t in trainers for b in t.received if b.epoch == epoch))
        assert len(counts) == whole and set(counts.values()) == {1}
    for place, trainer in enumerate(trainers):
        turns = list(range(place // world, trainer.steps_per_epoch, workers))
        assert [steps_of(trainer, epoch) for epoch in range(3)] == [turns] * 3
    assert sampler.statistics().leases_expired == 0
