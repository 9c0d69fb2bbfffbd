"""Membership by itself, and leases under random failures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.errors import ConfigError, Conflict, NotFound, Stale
from sampler_service.leases import UNCONNECTED_S, Group, Membership, run_of
from tests.support import Clock, FakeTrainer, ids_of, make_sampler

PAIR = Group(world_size=2, batch_size=4, drop_last=False)


def test_a_joined_trainer_has_some_seconds_to_open_its_stream():
    members = Membership("run")
    trainer, replaced = members.join(PAIR, 0, 4, "first", now=0.0)
    assert replaced is None and members.find(trainer.session) is trainer
    with pytest.raises(Conflict, match="held by first; give each trainer its own rank"):
        members.join(PAIR, 0, 4, "second", now=UNCONNECTED_S - 1)
    second, replaced = members.join(PAIR, 0, 4, "second", now=UNCONNECTED_S + 1)
    assert replaced is trainer and members.find(second.session) is second


def test_a_session_that_was_taken_over_is_stale_and_one_never_heard_of_is_not_found():
    members = Membership("run")
    first, _ = members.join(PAIR, 0, 4, "first", now=0.0)
    members.join(PAIR, 0, 4, "second", now=100.0)
    assert members.has_ended(first.session)
    with pytest.raises(Stale, match="left or taken over; join again"):
        members.find(first.session)
    with pytest.raises(NotFound, match=r"run 'run' knows no session 'run:x'"):
        members.find("run:x")


def test_another_geometry_is_refused_while_others_are_alive_and_taken_when_they_are_gone():
    members = Membership("run")
    first, _ = members.join(PAIR, 0, 4, "first", now=0.0)
    first.connected = True
    four = Group(world_size=4, batch_size=2, drop_last=False)
    with pytest.raises(Conflict, match="world_size=2"):
        members.join(four, 1, 4, "second", now=1.0)
    first.connected, first.lost_at = False, 2.0
    members.join(four, 1, 4, "second", now=3.0)
    assert members.group == four and len(list(members)) == 1
    with pytest.raises(Stale):
        members.find(first.session)


def test_the_run_of_a_session_is_read_from_its_token_and_anything_else_is_refused():
    assert run_of("a/run.v2:0123") == "a/run.v2"
    with pytest.raises(ConfigError, match="'nonsense' is no session"):
        run_of("nonsense")


class Crowd:
    """Ranks that break, come back, die, are replaced and leave, as chance has it; rank 0 lives through it."""

    def __init__(self, world: int, seed: int, on_lost: str) -> None:
        self.clock, self.rng, self.batch = Clock(), np.random.default_rng(seed), 3
        self.group = Group(world_size=world, batch_size=self.batch, drop_last=False)
        self.n = 3 * world * 9 + int(self.rng.integers(0, 7))
        self.sampler = make_sampler(self.n, self.clock, seed=seed, on_lost=on_lost)
        self.all: list[FakeTrainer] = []
        self.acked: list[int] = []
        self.delivered: list[int] = []
        self.here: dict[int, FakeTrainer] = {}
        self.away: dict[int, FakeTrainer] = {}
        for rank in range(world):
            self.enter(rank)

    def enter(self, rank: int) -> None:
        trainer = FakeTrainer(self.sampler, rank, self.group, lead=4)
        trainer.start(0)
        self.here[rank] = trainer

    def step(self, trainer: FakeTrainer, share: float = 0.6) -> bool:
        acked = [i for i in trainer.held if self.rng.random() < share]
        self.acked += ids_of(trainer.held[i] for i in acked)
        taken = trainer.take(int(self.rng.integers(1, 5)), acked)
        self.delivered += ids_of(taken.batches)
        return taken.ended

    def happen(self) -> None:
        rank = int(self.rng.integers(self.group.world_size))
        event = self.rng.choice(["step"] * 8 + ["blip", "break", "leave", "wait"])
        if rank in self.away:
            self.come_back(rank)
        elif rank not in self.here:
            self.enter(rank)
        elif event == "step" or rank == 0:
            self.step(self.here[rank])
        elif event == "blip":
            self.here[rank].lose()
            self.here[rank].reconnect()
        elif event == "break":
            self.away[rank] = self.here.pop(rank)
            self.away[rank].lose()
        elif event == "leave":
            self.sampler.leave(self.here.pop(rank).session)
        else:
            self.wait(float(self.rng.integers(1, 40)))

    def wait(self, seconds: float) -> None:
        """Time passes; the streams that are open give signs of life."""
        self.clock.advance(seconds)
        for trainer in self.here.values():
            self.sampler.renew(trainer.session)

    def come_back(self, rank: int) -> None:
        lost = self.away[rank]
        choice = self.rng.random()
        if choice < 0.4:
            del self.away[rank]
            try:
                lost.reconnect()
                self.here[rank] = lost
            except Stale:  # its lease was over
                pass
        elif choice < 0.6:
            del self.away[rank]
            self.enter(rank)  # a new trainer takes the rank
        else:
            self.wait(8.0)

    def finish(self) -> None:
        for trainer in list(self.here.values())[::-1]:
            if trainer.rank:
                while not self.step(trainer, share=1.0):
                    self.wait(10.0)
                self.step(trainer, share=1.0)
        self.wait(31.0)
        while not self.step(self.here[0], share=1.0):
            pass
        self.step(self.here[0], share=1.0)


@settings(max_examples=150, deadline=None)
@given(world=st.integers(1, 4), seed=st.integers(0, 100_000))
def test_whatever_fails_every_example_is_done_once_and_what_is_done_is_not_served_again(world, seed):
    crowd = Crowd(world, seed, "redeliver")
    for _ in range(60):
        crowd.happen()
    crowd.finish()
    assert Counter(crowd.acked) == Counter(range(crowd.n))


@settings(max_examples=100, deadline=None)
@given(world=st.integers(1, 4), seed=st.integers(0, 100_000))
def test_whatever_fails_under_drop_no_example_is_delivered_twice(world, seed):
    crowd = Crowd(world, seed, "drop")
    for _ in range(60):
        crowd.happen()
    crowd.finish()
    counts = Counter(crowd.delivered)
    assert set(counts.values()) == {1}, "delivered twice"
    assert set(counts) == set(range(crowd.n)), "what was never handed out is not dropped"


def test_joining_again_with_the_same_token_is_the_same_session():
    members = Membership("run")
    first, _ = members.join(PAIR, 0, 4, "first", now=0.0, token="t")
    again, replaced = members.join(PAIR, 0, 4, "first", now=1.0, token="t")
    assert again is first and replaced is None
    with pytest.raises(Conflict, match="held by first"):
        members.join(PAIR, 0, 4, "other", now=1.0, token="u")
