"""Positions: reconnecting, beginning again, resuming, and coming back after the service restarted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.errors import ConfigError, Conflict, NotFound, Stale
from tests.support import ids_of, join_all, make_sampler


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


def test_a_rank_that_comes_back_after_a_restart_to_an_epoch_the_others_have_done_gets_the_rest_of_its_part():
    before = join_all(make_sampler(40, seed=2), world=2)
    before[0].start(0)
    before[0].take(2)
    before[1].start(0)
    before[1].drain()
    after = join_all(make_sampler(40, seed=2, first_batch_id=1 << 20), world=2)
    after[1].start(1)
    after[1].take_acked(2)
    assert after[0].start(0, first_step=2).num_steps == 3
    after[0].drain()
    after[0].start(1)
    while not (after[0].take_acked().ended & after[1].take_acked().ended):
        pass
    for epoch in range(2):
        got = ids_of(b for t in before + after for b in t.received if b.epoch == epoch)
        assert sorted(got) == list(range(40))


def test_a_run_may_go_back_to_its_first_epoch():
    ranks = join_all(make_sampler(40), world=2)
    for epoch in (0, 1, 2, 0, 1):
        seen = []
        for trainer in ranks:
            trainer.start(epoch)
            seen += ids_of(trainer.drain())
        assert sorted(seen) == list(range(40))


def test_a_pruned_epoch_is_resumed_in_the_order_that_it_began_with():
    sampler = make_sampler(48, policy="infobatch")
    (trainer,) = join_all(sampler)
    rng = np.random.default_rng(0)

    def train(count: int) -> list[int]:
        seen = []
        for _ in range(count):
            for batch in trainer.take_acked(1).batches:
                trainer.report(batch, losses=rng.random(len(batch.rows)).astype(np.float32))
                seen += batch.rows.example_ids.tolist()
        return seen

    trainer.start(0)
    train(48)
    trainer.start(1)
    kept = trainer.num_steps
    first = train(3)
    trainer.start(1, skip=len(first))
    rest = train(48)
    assert len(first) + len(rest) == len(set(first + rest)) and kept * 4 - 3 <= len(first + rest) <= kept * 4 + 3
