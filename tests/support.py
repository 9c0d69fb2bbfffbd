"""Stand-ins for a trainer and for the clock, over a Sampler in this process. Shapes: r rows, d sketch length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sampler_service.config import MOST_EXAMPLES, RunConfig
from sampler_service.leases import Group
from sampler_service.replies import ReportSummary, Taken
from sampler_service.sampler import Sampler
from sampler_service.shards import LocalShards
from sampler_service.types import Batch, Report

DIM = 4
NOISE = np.random.default_rng(7).standard_normal((2048, DIM))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def make_config(num_examples: int, **changes: Any) -> RunConfig:
    settings = {"run": "run", "dataset": "data", "policy": "shuffle", "sketch_dim": DIM, "max_lead": 8, "lease_s": 30.0}
    return RunConfig(num_examples=num_examples, **(settings | changes))


def make_sampler(num_examples: int, clock: Clock | None = None, first_batch_id: int = 0, **changes: Any) -> Sampler:
    config = make_config(num_examples, **changes)
    shards = LocalShards(num_examples, config.sketch_dim, 2, config.sketch_dtype)
    return Sampler(config, shards, clock=clock or Clock(), first_batch_id=first_batch_id)


class FakeTrainer:
    """One rank, as the client behaves: what it holds, what it has told, what it was given."""

    def __init__(
        self,
        sampler: Sampler,
        rank: int,
        group: Group,
        lead: int = 4,
        name: str = "",
        num_examples: int = MOST_EXAMPLES,
    ) -> None:
        self.sampler, self.rank, self.lead = sampler, rank, lead
        joined = sampler.join(group, rank, lead, name or f"trainer {rank}", num_examples=num_examples)
        self.session, self.steps_per_epoch = joined.session, joined.steps_per_epoch
        self.held: dict[int, Batch] = {}
        self.received: list[Batch] = []
        self.epoch = self.num_steps = -1
        self.last_batch_id = 0
        sampler.connect(self.session, 0, [])

    def start(self, epoch: int, skip: int = 0, first_step: int = 0, population: str = ""):
        started = self.sampler.start_epoch(self.session, epoch, skip, first_step, population=population)
        self.held, self.epoch, self.num_steps = {}, epoch, started.num_steps
        return started

    def take(self, count: int = 1, acked: Iterable[int] = ()) -> Taken:
        acked = list(acked)
        for batch_id in acked:
            del self.held[batch_id]
        taken = self.sampler.take(self.session, count, acked)
        for batch in taken.batches:
            assert batch.batch_id > self.last_batch_id, "the client takes a lower id for a repeat"
            assert batch.lead == len(self.held) < self.lead
            self.last_batch_id = batch.batch_id
            self.held[batch.batch_id] = batch
            self.received.append(batch)
        return taken

    def take_acked(self, count: int = 1) -> Taken:
        """Acknowledge what is held, then take."""
        return self.take(count, list(self.held))

    def drain(self) -> list[Batch]:
        """The rest of the epoch, one by one."""
        start = len(self.received)
        while not self.take_acked().ended:
            pass
        return self.received[start:]

    def lose(self) -> None:
        """The connection breaks."""
        self.sampler.disconnect(self.session)

    def reconnect(self) -> None:
        self.sampler.connect(self.session, self.last_batch_id, list(self.held))

    def pause(self) -> None:
        """Its process ends with the pass; what it holds is on its way to the training loop."""
        self.sampler.disconnect(self.session, paused=True)

    def resume(self, epoch: int):
        """Another process, of the same trainer, goes on with the next pass."""
        self.held, self.last_batch_id = {}, 0
        self.reconnect()
        return self.start(epoch)

    def report(self, batch: Batch, **changes: Any) -> ReportSummary:
        step = batch.epoch * self.steps_per_epoch + batch.step
        if self.sampler.config.policy == "hard_negative":
            changes = {"norms": None, **changes}  # embeddings of pairs have none
        return self.sampler.report(self.session, [report_of(batch, **{"step": step, **changes})])


def join_all(
    sampler: Sampler, world: int = 1, batch: int = 4, drop_last: bool = False, lead: int = 4, workers: int = 1
) -> list[FakeTrainer]:
    """One trainer for each worker of each rank; those of all ranks' first workers first."""
    group = Group(world_size=world, batch_size=batch, drop_last=drop_last, workers=workers)
    return [FakeTrainer(sampler, place, group, lead) for place in range(group.places)]


def gradients(ids: np.ndarray, scatter: float = 0.05) -> np.ndarray:
    """(r, DIM) sketches in four tight clusters of unlike size of gradient, a function of the example alone."""
    centres = 10.0 * np.eye(DIM) * np.arange(1, DIM + 1)
    return (centres[ids % DIM] + scatter * NOISE[ids]).astype(np.float32)


def report_of(batch: Batch, **changes: Any) -> Report:
    """A whole report of a batch: losses, norms and sketches that are a function of the example."""
    ids = batch.rows.example_ids
    sketches = gradients(ids)
    values = {
        "batch_id": batch.batch_id,
        "step": batch.batch_id,
        "example_ids": ids,
        "losses": (ids % 5).astype(np.float32) + 0.5,
        "norms": np.linalg.norm(sketches, axis=1).astype(np.float32),
        "sketches": sketches,
    }
    return Report(**(values | changes))


def ids_of(batches: Iterable[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.rows.example_ids]
