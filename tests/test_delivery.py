"""Who is given what, and when: exactly once without failures, at least once (or at most once) with them."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_service.errors import ConfigError, Conflict, NotFound, Stale
from sampler_service.leases import Group

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


@pytest.mark.parametrize("received", [0, 1, 2, 3])
def test_a_stream_opened_again_loses_nothing_and_repeats_nothing(received):
    (trainer,) = join_all(make_sampler(40), lead=4)
    trainer.start(0)
    sent = trainer.take(3).batches
    # The last ones were on the way when the connection broke; of those that came the first one is done.
    came = sent[:received]
    trainer.received, trainer.held = list(came), {b.batch_id: b for b in came[1:]}
    trainer.last_batch_id = came[-1].batch_id if came else 0
    trainer.lose()
    trainer.reconnect()
    again = trainer.take(4 - len(trainer.held)).batches
    assert [b.batch_id for b in again[: 3 - received]] == [b.batch_id for b in sent[received:]]
    trainer.drain()
    assert sorted(ids_of(trainer.received)) == list(range(40))


def test_a_stream_that_claims_a_batch_nobody_lent_is_refused():
    (trainer,) = join_all(make_sampler(40))
    with pytest.raises(Stale, match="has received batch 99"):
        trainer.sampler.connect(trainer.session, 99, [])


def test_a_reconnect_while_others_take_its_orphans_keeps_ids_rising():
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


def test_a_single_trainer_that_breaks_out_of_an_epoch_may_begin_it_again_whole():
    (trainer,) = join_all(make_sampler(40))
    trainer.start(0)
    trainer.take(3)
    trainer.start(0)
    assert sorted(ids_of(trainer.drain())) == list(range(40))
    trainer.start(0)
    assert sorted(ids_of(trainer.drain())) == list(range(40))


def test_ranks_that_all_break_out_begin_the_next_epoch_whole():
    ranks = join_all(make_sampler(40), world=2)
    for epoch in (0, 0, 1):
        seen = []
        for trainer in ranks:
            trainer.start(epoch)
            seen += ids_of(trainer.take(2).batches)
        assert len(set(seen)) == 16
    for trainer in ranks:
        trainer.start(2)
    assert sorted(ids_of(ranks[0].drain()) + ids_of(ranks[1].drain())) == list(range(40))


def test_asking_for_batches_before_an_epoch_is_refused_in_words():
    (trainer,) = join_all(make_sampler(40))
    with pytest.raises(ConfigError, match="ask for an epoch"):
        trainer.take(1)


@pytest.mark.parametrize("done", [0, 16, 40])
@pytest.mark.parametrize(("world", "batch"), [(1, 8), (2, 4), (4, 2), (3, 2)])
def test_an_epoch_resumes_behind_what_was_delivered_with_any_number_of_ranks(done, world, batch):
    first = make_sampler(40, seed=3)
    (trainer,) = join_all(first, batch=8)
    trainer.start(0)
    before = []
    while len(ids_of(before)) < done:
        before += trainer.take_acked().batches
    for _ in range(2):  # the same position twice
        ranks = join_all(make_sampler(40, seed=3), world, batch)
        after = []
        for rank in ranks:
            started = rank.start(0, skip=done)
            after += rank.drain()
            assert started.num_steps == len([b for b in after if b in rank.received])
        assert sorted(ids_of(before) + ids_of(after)) == list(range(40))


def test_a_position_behind_the_epoch_is_refused():
    (trainer,) = join_all(make_sampler(40))
    with pytest.raises(ConfigError, match=r"skip_examples is 41, outside .* 0 … 40"):
        trainer.start(0, skip=41)


@settings(max_examples=60, deadline=None)
@given(received=st.lists(st.integers(0, 10), min_size=2, max_size=3), order=st.randoms(), seed=st.integers(0, 99))
def test_ranks_that_come_back_after_a_restart_lose_nothing_and_repeat_nothing(received, order, seed):
    world = len(received)
    before = join_all(make_sampler(world * 40, seed=seed), world, lead=8)
    for trainer, count in zip(before, received, strict=True):
        trainer.start(0)
        while len(trainer.received) < count:
            trainer.take_acked()
    after = join_all(make_sampler(world * 40, seed=seed, first_batch_id=1 << 20), world, lead=8)
    coming = list(zip(after, received, strict=True))
    order.shuffle(coming)
    for trainer, count in coming:
        assert trainer.start(0, first_step=count).num_steps == 10 - count
        trainer.take(order.randint(0, 3))
    for trainer, _ in coming:
        trainer.drain()
    assert sorted(ids_of(b for t in before + after for b in t.received)) == list(range(world * 40))


def test_ids_rise_over_a_change_of_the_world_size():
    sampler = make_sampler(40)
    (alone,) = join_all(sampler)
    alone.start(0)
    alone.take(4)
    sampler.leave(alone.session)
    ranks = join_all(sampler, world=2)
    ranks[0].start(1)
    assert ranks[0].take(1).batches[0].batch_id > alone.last_batch_id


def test_a_run_is_not_given_another_geometry_while_others_train_on_it():
    sampler = make_sampler(40)
    join_all(sampler, world=2)
    with pytest.raises(Conflict, match="must use the same world_size"):
        join_all(sampler, world=1)


def test_an_unknown_session_is_told_to_join():
    sampler = make_sampler(40)
    with pytest.raises(NotFound, match="join again"):
        sampler.take("run:nobody", 1)
