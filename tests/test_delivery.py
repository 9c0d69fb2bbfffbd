"""Who is given what, and when: exactly once without failures, at least once (or at most once) with them."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.errors import Conflict, Stale
from sampler_service.leases import SILENT_S, UNCONNECTED_S, Group
from tests.support import Clock, FakeTrainer, ids_of, join_all, make_sampler


@st.composite
def geometries(draw):
    world, batch = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    return draw(st.integers(world * batch, 60)), batch, world, draw(st.booleans())


def random_walk(trainers: list[FakeTrainer], epochs: int, rng: np.random.Generator) -> None:
    """Every rank goes through the epochs at its own pace, acknowledging whatever it likes of what it holds."""
    for trainer in trainers:
        trainer.start(0)
    under_way = list(trainers)
    while under_way:
        trainer = under_way[rng.integers(len(under_way))]
        acked = [batch_id for batch_id in trainer.held if rng.random() < 0.6]
        taken = trainer.take(int(rng.integers(1, trainer.lead + 3)), acked)
        assert len(trainer.held) <= trainer.lead
        if not taken.ended:
            continue
        trainer.take(0, list(trainer.held))
        if trainer.epoch + 1 < epochs:
            trainer.start(trainer.epoch + 1)
        else:
            under_way.remove(trainer)


@settings(max_examples=120, deadline=None)
@given(geometry=geometries(), lead=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_every_example_comes_exactly_once_an_epoch_to_exactly_one_rank(geometry, lead, seed):
    n, batch, world, drop_last = geometry
    sampler = make_sampler(n, seed=seed)
    trainers = join_all(sampler, world, batch, drop_last, lead)
    random_walk(trainers, epochs=3, rng=np.random.default_rng(seed))

    everything = [b for trainer in trainers for b in trainer.received]
    assert len({b.batch_id for b in everything}) == len(everything)
    whole = n // (batch * world) * batch * world if drop_last else n
    for epoch in range(3):
        counts = Counter(ids_of(b for b in everything if b.epoch == epoch))
        assert len(counts) == whole and set(counts.values()) == {1}
    by_step = defaultdict(list)
    for b in everything:
        by_step[b.epoch, b.step].append(b)
    for parts in by_step.values():
        assert len(parts) == world
        assert sum(len(b.rows) for b in parts) == {b.global_batch_size for b in parts}.pop()
    for trainer in trainers:
        assert trainer.num_steps == trainer.steps_per_epoch
        assert [b.step for b in trainer.received] == 3 * list(range(trainer.num_steps))


@settings(max_examples=80, deadline=None)
@given(geometry=geometries(), workers=st.integers(2, 4), lead=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_workers_take_turns_at_the_batches_that_their_rank_would_get_alone(geometry, workers, lead, seed):
    n, batch, world, drop_last = geometry
    alone = join_all(make_sampler(n, seed=seed), world, batch, drop_last, lead)
    random_walk(alone, epochs=2, rng=np.random.default_rng(seed))
    shared = join_all(make_sampler(n, seed=seed), world, batch, drop_last, lead, workers)
    random_walk(shared, epochs=2, rng=np.random.default_rng(seed))

    for place, trainer in enumerate(shared):
        rank, worker = place % world, place // world
        expected = [b for b in alone[rank].received if b.step % workers == worker]
        assert [(b.epoch, b.step) for b in trainer.received] == [(b.epoch, b.step) for b in expected]
        assert [ids_of([b]) for b in trainer.received] == [ids_of([b]) for b in expected]
        assert trainer.num_steps == len(expected) / 2
        assert trainer.steps_per_epoch == alone[rank].steps_per_epoch


def test_what_is_planned_for_a_worker_that_is_between_two_passes_waits_for_it_as_long_as_its_lease():
    clock = Clock()
    sampler = make_sampler(40, clock)
    first, second = join_all(sampler, world=1, workers=2)
    for trainer in (first, second):
        trainer.start(0)
        trainer.drain()
        sampler.disconnect(trainer.session)
    group = Group(world_size=1, batch_size=4, drop_last=False, workers=2)
    heir = FakeTrainer(sampler, 1, group)
    heir.start(1)
    while len(heir.received) < 5:
        heir.take_acked()
    assert [b.step for b in heir.received] == [1, 3, 5, 7, 9]
    assert not heir.take_acked().batches, "those of the first worker wait for its successor"
    clock.now += sampler.config.lease_s + 1
    assert [b.step for b in heir.drain()] == [0, 2, 4, 6, 8]


def test_a_worker_that_comes_back_inside_an_epoch_goes_on_with_its_own_steps():
    sampler = make_sampler(40)
    first, second = join_all(sampler, world=1, workers=2)
    first.start(0)
    first.take(2)
    second.start(0, first_step=6)
    assert second.num_steps == 2  # of the ten steps 7 and 9
    assert [b.step for b in second.drain()] == [7, 9]
    first.drain()
    assert [b.step for b in first.received] == [0, 2, 4, 6, 8]
    second.start(0, first_step=2)
    assert [b.step for b in second.drain()] == [3, 5, 7, 9]


def test_a_slow_rank_gets_its_epoch_while_the_fast_one_is_in_later_ones():
    fast, slow = join_all(make_sampler(40), world=2, lead=8)
    slow.start(0)
    slow.take(2)
    for epoch in range(3):
        fast.start(epoch)
        fast.drain()
    for epoch in range(3):
        if epoch:
            assert slow.start(epoch).num_steps == 5
        slow.drain()
    for epoch in range(3):
        ids = ids_of(b for b in fast.received + slow.received if b.epoch == epoch)
        assert sorted(ids) == list(range(40))


def test_a_rank_that_comes_when_the_others_are_an_epoch_ahead_gets_its_part_of_both():
    fast, late = join_all(make_sampler(40), world=2)
    for epoch in range(2):
        fast.start(epoch)
        fast.drain()
    fast.start(2)
    for epoch in range(3):
        late.start(epoch)
        late.drain()
    fast.drain()
    for epoch in range(3):
        assert sorted(ids_of(b for b in fast.received + late.received if b.epoch == epoch)) == list(range(40))


def lose_one(clock: Clock, **changes) -> tuple[FakeTrainer, FakeTrainer]:
    """Rank 1 is lost when it has done one batch and holds two others; rank 0 has taken all of its own."""
    stays, lost = join_all(make_sampler(48, clock, **changes), world=2, lead=6)
    stays.start(0)
    lost.start(0)
    lost.take(1)
    lost.take(2, list(lost.held))
    while len(stays.received) < 6:
        stays.take_acked()
    lost.lose()
    return stays, lost


def test_what_a_lost_rank_held_and_had_waiting_goes_to_the_others_after_its_lease():
    clock = Clock()
    stays, lost = lose_one(clock)
    done, held = lost.received[:1], lost.received[1:]
    clock.advance(29.0)
    for _ in range(3):
        waiting = stays.take_acked(4)
        assert not waiting.batches and not waiting.ended, "the lease is not over"
    clock.advance(2.0)
    adopted = stays.drain()
    assert sorted(ids_of(stays.received) + ids_of(done)) == list(range(48))
    assert set(ids_of(held)) <= set(ids_of(adopted))
    assert stays.sampler.statistics().leases_expired == 2
    with pytest.raises(Stale, match="left or taken over"):
        lost.reconnect()


def test_under_drop_what_a_lost_rank_held_comes_to_nobody_and_all_else_comes_once():
    clock = Clock()
    stays, lost = lose_one(clock, on_lost="drop")
    clock.advance(31.0)
    stays.drain()
    counts = Counter(ids_of(stays.received) + ids_of(lost.received))
    assert set(counts) == set(range(48)) and set(counts.values()) == {1}


def test_under_drop_a_new_trainer_of_the_rank_does_not_get_what_the_lost_one_held():
    clock = Clock()
    stays, lost = lose_one(clock, on_lost="drop")
    heir = FakeTrainer(stays.sampler, 1, Group(world_size=2, batch_size=4, drop_last=False))
    assert heir.start(0).num_steps == 3
    heir.drain()
    stays.drain()
    counts = Counter(ids_of(stays.received) + ids_of(lost.received) + ids_of(heir.received))
    assert set(counts) == set(range(48)) and set(counts.values()) == {1}


def test_a_rank_lost_early_leaves_its_parts_of_this_and_of_later_epochs_to_the_others():
    clock = Clock()
    stays, lost = join_all(make_sampler(40, clock), world=2)
    stays.start(0)
    lost.start(0)
    stays.take(1)
    lost.lose()
    clock.advance(31.0)
    for epoch in range(2):
        if epoch:
            stays.start(epoch)
        stays.drain()
        assert sorted(ids_of(b for b in stays.received if b.epoch == epoch)) == list(range(40))


def test_a_slow_rank_lost_in_an_older_epoch_leaves_the_rest_of_it_to_the_one_ahead():
    clock = Clock()
    fast, slow = join_all(make_sampler(40, clock), world=2)
    fast.start(0)
    fast.drain()
    slow.start(0)
    slow.take(1)
    fast.start(1)
    fast.take(1)
    slow.lose()
    clock.advance(31.0)
    fast.drain()
    assert sorted(ids_of(b for b in fast.received if b.epoch == 0)) == list(range(40))
    assert sorted(ids_of(b for b in fast.received if b.epoch == 1)) == list(range(40))


def test_a_new_trainer_takes_a_lost_rank_over_and_goes_on_where_it_was():
    stays, lost = lose_one(Clock())
    heir = FakeTrainer(stays.sampler, 1, Group(world_size=2, batch_size=4, drop_last=False), name="heir")
    assert heir.start(0).num_steps == 5
    heir.drain()
    assert stays.drain() == []
    assert [b.step for b in heir.received] == [1, 2, 3, 4, 5]
    assert sorted(ids_of(stays.received) + ids_of(lost.received[:1]) + ids_of(heir.received)) == list(range(48))
    with pytest.raises(Stale, match="join again"):
        lost.take(1)


def test_a_new_trainer_of_a_rank_whose_lease_is_over_gets_what_nobody_has_taken_yet():
    clock = Clock()
    stays, lost = join_all(make_sampler(48, clock), world=2, lead=6)
    stays.start(0)
    lost.start(0)
    lost.take(1)
    lost.lose()
    clock.advance(31.0)
    stays.take_acked()
    heir = FakeTrainer(stays.sampler, 1, Group(world_size=2, batch_size=4, drop_last=False))
    heir.start(0)
    while not (stays.take_acked().ended & heir.take_acked().ended):
        pass
    assert sorted(ids_of(stays.received) + ids_of(heir.received)) == list(range(48))


def test_a_rank_held_by_a_live_trainer_cannot_be_taken_and_the_error_names_the_holder():
    sampler = make_sampler(40)
    (holder,) = join_all(sampler)
    holder.start(0)
    with pytest.raises(Conflict, match=r"rank 0 .* held by trainer 0"):
        join_all(sampler)
    assert sorted(ids_of(holder.drain())) == list(range(40))


def test_a_trainer_that_leaves_gives_what_it_holds_to_the_others_at_once():
    stays, leaves = join_all(make_sampler(40), world=2)
    stays.start(0)
    leaves.start(0)
    leaves.take(3)
    stays.take_acked(2)
    leaves.sampler.leave(leaves.session)
    leaves.sampler.leave(leaves.session)  # a repeat changes nothing
    stays.drain()
    assert sorted(ids_of(stays.received)) == list(range(40))


def test_batches_of_a_lost_rank_come_to_the_others_with_ids_that_rise():
    clock = Clock()
    stays, lost = join_all(make_sampler(48, clock), world=2, lead=6)
    lost.start(0)
    stays.start(0)
    lost.take(6)
    while len(stays.received) < 6:
        stays.take_acked()
    lost.lose()
    clock.advance(31.0)
    stays.drain()  # FakeTrainer.take asserts that ids rise
    assert sorted(ids_of(stays.received)) == list(range(48))


def test_what_a_trainer_gave_up_by_breaking_out_of_an_epoch_does_not_come_to_others_when_it_leaves():
    breaks, goes_on = join_all(make_sampler(40), world=2)
    for trainer in (breaks, goes_on):
        trainer.start(0)
        trainer.take(1)
    breaks.start(1)
    goes_on.take_acked(2)
    breaks.sampler.leave(breaks.session)
    goes_on.drain()
    assert [b.step for b in goes_on.received] == [0, 1, 2, 3, 4]


def test_counts_and_ids_go_on_under_another_geometry():
    clock = Clock()
    stays, _ = lose_one(clock)
    clock.advance(31)
    stays.take_acked()
    before, last = stays.sampler.statistics(), stays.last_batch_id
    assert before.leases_expired == 2
    stays.sampler.leave(stays.session)
    (alone,) = join_all(stays.sampler, world=1)
    alone.start(0)
    assert alone.take(1).batches[0].batch_id > last
    after = stays.sampler.statistics()
    assert (after.batches, after.examples) == (before.batches + 1, before.examples + 4)
    assert after.leases_expired == 2


def taken_in_time(trainer: FakeTrainer, clock: Clock, seconds: int) -> list[int]:
    """What a trainer gets until its epoch ends; a second passes between two requests."""
    start = len(trainer.received)
    for _ in range(seconds):
        if trainer.take_acked(4).ended:
            return ids_of(trainer.received[start:])
        clock.advance(1.0)
    raise AssertionError("the epoch did not end")


def test_the_part_of_a_trainer_that_joined_and_never_opened_a_stream_goes_to_the_others_after_its_lease():
    clock = Clock()
    group = Group(world_size=2, batch_size=4, drop_last=False)
    stays = FakeTrainer(make_sampler(40, clock), 0, group)
    stays.sampler.join(group, 1, 4, "dies between Join and Hello", "token")
    stays.start(0)
    began = clock.now
    assert sorted(taken_in_time(stays, clock, 60)) == list(range(40))
    assert clock.now - began > UNCONNECTED_S + 30.0, "it may open its stream until its lease is over"
    assert [trainer.rank for trainer in stays.sampler._members] == [0]


def test_a_trainer_whose_gateway_died_with_it_is_lost_after_some_silence_and_a_lease():
    clock = Clock()
    stays, dies = join_all(make_sampler(40, clock), world=2)
    stays.start(0)
    dies.start(0)
    dies.take(3)
    assert len(taken_in_time(stays, clock, 5)) == 20, "one that is there is not waited for"
    clock.advance(SILENT_S)
    assert not stays.take(1).ended, "now it is"
    assert stays.sampler.statistics().trainers == 1
    clock.advance(31.0)
    assert sorted(taken_in_time(stays, clock, 5) + ids_of(stays.received[:5])) == list(range(40))
    assert stays.sampler.statistics().leases_expired == 3


def test_a_rank_is_free_when_its_trainer_has_long_been_silent_and_stays_taken_by_signs_of_life():
    clock = Clock()
    sampler = make_sampler(40, clock)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    batch = trainer.take(1).batches[0]
    group = Group(world_size=1, batch_size=4, drop_last=False)
    for sign in (lambda: sampler.renew(trainer.session), trainer.take_acked, lambda: trainer.report(batch)):
        sign()
        clock.advance(SILENT_S - 1)
        with pytest.raises(Conflict, match="is held by"):
            sampler.join(group, 0, 4, "another")
    clock.advance(2.0)
    trainer.report(batch)  # long on its way: it brings nobody back
    heir = FakeTrainer(sampler, 0, group)
    heir.start(0)  # nobody else is there: a new pass
    assert sorted(ids_of(heir.drain())) == list(range(40))
