"""Scores: what the scorers of a run are to look at, who is at it, and what became of it.

Scorers have the examples that the run was opened with; of those that it grew by, they look at none.

Scorers come and go. Work that one was given is its own for a while and anybody's afterwards, so one that is killed
loses nothing; and one that asks again has done with what it had, also when it was made anew.

Shapes: n examples, r rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from sampler_service import reports
from sampler_service.config import RunConfig
from sampler_service.datasets import Examples
from sampler_service.errors import ConfigError
from sampler_service.planning.randomness import Stream, generator
from sampler_service.planning.rescoring import benefits, most_beneficial
from sampler_service.table import Table
from sampler_service.types import Bool, Float32, Int32, Int64, Report, ReportBlock, ScoreReport, Work

WORK_S = 60.0
"""seconds after which work that did not come back is given to others"""

FAILED_S, MOST_DOUBLINGS = 60.0, 10
"""seconds for which rows that have no usable score are left alone, doubled each time they have none again, so many
times: what is not known comes first, and must not be all that is tried"""

SILENT_S = 30.0
"""seconds without a word after which a scorer does not count as there"""

ANSWER_S = 20.0
"""seconds after which it is said that no scorer has answered: processes, models and records take some to come up"""

IDLE_S = 5.0
"""seconds before the examples are looked through again when nothing was due: that costs O(n)"""

POOL_ROWS, POOL_SHARE = 4096, 64
"""examples that are chosen at once, at least; of large sets one in so many"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What choosing needs, taken under the lock; it takes O(n), so it is done outside."""

    norm_n: Float32
    gradient_step_n: Int64
    version_n: Int32
    rests_n: Bool
    """had no usable score of late, or was deleted"""
    taken_r: Int64
    """in other hands"""
    step: int
    version: int
    rng: np.random.Generator

    def pool(self) -> Int64:
        """Ids of the examples whose scores would be worth most, the best first."""
        due_n: Bool = (self.version_n != self.version) & (self.gradient_step_n <= self.step) & ~self.rests_n
        due_n[self.taken_r] = False
        # Of the step itself but by other weights: as good as one step old.
        age_n = np.maximum(self.step - self.gradient_step_n, 1)
        count = max(POOL_ROWS, len(age_n) // POOL_SHARE)
        return most_beneficial(benefits(self.norm_n, age_n), due_n, count, self.rng)


class Scores:
    """The scorers of one run and their work. Not thread-safe: the sampler holds its lock."""

    def __init__(self, config: RunConfig, examples: Examples, table: Table) -> None:
        self._config = config
        self._examples = examples
        self._table = table
        # Of length 0 until there are weights:
        self._version_n: Int32 = np.zeros(0, np.int32)  # by which each row was scored
        self._fault_n = np.zeros(0, np.uint8)  # how often each row in a row had no usable score
        self._rests_n: Float32 = np.zeros(0, np.float32)  # seconds of `_since` until when it is left alone
        self._since = 0.0
        self._pool: Int64 = np.empty(0, np.int64)
        self._looks = 0
        self._look_at = 0.0
        self._work: dict[str, tuple[Int64, float]] = {}  # of each scorer, and until when it is its own
        self._heard: dict[str, float] = {}
        self._error_version = 0
        self._unanswered_since: float | None = None
        self.expected = 0
        """scorers that the service has for the run; 0: unknown"""
        self.version = 0
        """of the newest weights; 0: none were published"""
        self.step = 0
        """at which they were"""
        self.rows = 0
        """scored, and taken in"""
        self.error = ""
        """the latest failure that no success followed"""
        self.rejected: Counter[str] = Counter()

    def check(self, step: int, now: int) -> None:
        """Raise ConfigError when weights can't be of this step. `now` is the latest step that the run has lent."""
        if step > now + reports.STEPS_AHEAD:
            raise ConfigError(
                f"weights of step {step}, the run is at step {now}; count optimiser steps from 0, or leave the step to "
                "the client"
            )

    def published(self, version: int, step: int) -> None:
        """There are new weights."""
        if version <= self.version:
            return
        if not len(self._version_n):
            n = self._config.num_examples
            self._version_n, self._fault_n = np.zeros(n, np.int32), np.zeros(n, np.uint8)
            self._rests_n = np.zeros(n, np.float32)
        if step < self.step:
            # The trainer went back to a checkpoint, or began anew. What is known is of steps that it is to do again;
            # as of now, so that scores by these weights are wanted and taken.
            self._table.date_back(step)
        self.version, self.step = version, step
        self._pool, self._look_at = self._pool[:0], 0.0

    def alive(self, now: float) -> int:
        """Scorers that were heard of lately."""
        return sum(now - at < SILENT_S for at in self._heard.values())

    def expect(self, scorers: int, now: float) -> None:
        """Weights are there for so many scorers, which should be heard of soon."""
        self.expected = scorers
        if self._unanswered_since is None:
            self._unanswered_since = now

    def status(self, now: float) -> str:
        """The latest failure; or that nobody is there, which may pass and is no failure."""
        if self.error or not self.expected or self._unanswered_since is None:
            return self.error
        if now - self._unanswered_since < ANSWER_S:
            return ""
        return (
            f"0 of {self.expected} scorers have answered since the weights of step {self.step} were published, or "
            f"earlier ones, {now - self._unanswered_since:.0f} s ago: are they still starting, or is the cluster short "
            "of GPUs?"
        )

    def hand_out(self, scorer: str, version: int, step: int, count: int, now: float) -> Work:
        """Work from what was chosen before; see `look` for when that is used up."""
        self._heard[scorer], self._unanswered_since = now, None
        self._work.pop(scorer, None)
        self.published(version, step)  # a run that was restarted hears of its weights from those who have them
        if version < self.version or not count:
            return Work(example_ids=self._pool[:0], version=self.version)
        ids, self._pool = self._pool[:count], self._pool[count:]
        ids = ids[self._version_n[ids] != self.version]  # a late answer may have come since
        deleted_r = self._examples.present.without(ids)
        ids = ids if deleted_r is None else ids[~deleted_r]
        if len(ids):
            self._work[scorer] = ids, now + WORK_S
        return Work(example_ids=ids, version=self.version)

    def look(self, version: int, now: float) -> Look | None:
        """What to choose more work by; None when a scorer of these weights can have none, or there is some."""
        if len(self._pool) or version < self.version or now < self._look_at or not version:
            return None
        self._looks += 1
        self._work = {name: (ids, until) for name, (ids, until) in self._work.items() if now < until}
        taken = [ids for ids, _ in self._work.values()]
        n, deleted_n = len(self._version_n), self._examples.present.deleted_n
        rests_n: Bool = self._rests_n > now - self._since
        return Look(
            norm_n=self._table.norm_n[:n],
            gradient_step_n=self._table.gradient_step_n[:n],
            version_n=self._version_n,
            rests_n=rests_n if deleted_n is None else rests_n | deleted_n[:n],
            taken_r=np.concatenate([self._pool, *taken]),
            step=self.step,
            version=self.version,
            rng=generator(Stream.SCORES, seed=self._config.seed, epoch=version, position=self._looks),
        )

    def refill(self, look: Look, pool: Int64, now: float) -> None:
        """Take what was chosen."""
        if look.version == self.version:
            self._pool = pool
            self._look_at = 0.0 if len(pool) else now + IDLE_S

    def take_in(self, report: ScoreReport, now: float) -> ReportBlock | None:
        """Put the sound rows of a scorer's work into the table; returns them for the shards.

        A gradient that was taken at a later step stays. Losses are left to trainers: theirs are of the training mode,
        of augmented records and of their own loss function, and no policy could compare both.
        """
        self._heard[report.scorer], self._unanswered_since = now, None
        self._work.pop(report.scorer, None)
        self.published(report.version, report.step)  # a run that was restarted may hear of its weights here first
        if len(report.failed_ids):
            # Where nothing worked it may be no fault of these rows: then they rest no longer with each time.
            self._leave_alone(report.failed_ids, now, faulty=len(report.example_ids) > 0)
            self.rejected["scoring_failed"] += len(report.failed_ids)
        if report.error:
            self.error, self._error_version = report.error, report.version
        elif report.version >= self._error_version and len(report.example_ids):
            self.error = ""
        if not len(report.example_ids):
            return None
        rows = Report(
            batch_id=0,
            step=report.step,
            example_ids=report.example_ids,
            losses=None,
            norms=report.scored.norms,
            sketches=report.scored.sketches,
        )
        rows, deleted = reports.left_of(rows, self._examples.present)
        if deleted:
            self.rejected["deleted"] += deleted
        misfit = reports.misfit(self._config, rows, report.step)
        if misfit:
            self.error, self._error_version = misfit, report.version
            self.rejected["scoring_failed"] += len(report.example_ids)
            self._leave_alone(report.example_ids, now, faulty=False)
            return None
        block, sound, reasons = reports.sound_rows([rows], len(self._version_n), self._table.gradient_step_n)
        self.rejected.update(reasons)
        self._version_n[report.example_ids] = report.version  # also where it is NaN: the same weights give it again
        left_out = np.setdiff1d(report.example_ids, block.example_ids)
        self._leave_alone(left_out[self._table.gradient_step_n[left_out] <= report.step], now, faulty=sound > 0)
        self._fault_n[block.example_ids] = 0
        self._table.apply(block, trained=False)
        self.rows += sound
        return block

    def _leave_alone(self, ids: Int64, now: float, *, faulty: bool) -> None:
        """These rows have no usable score: others first for a while, for longer each time where they are `faulty`."""
        self._since = self._since or now
        if faulty:
            self._fault_n[ids] = np.minimum(self._fault_n[ids] + 1, MOST_DOUBLINGS + 1)
        wait_r = FAILED_S * 2.0 ** np.maximum(self._fault_n[ids].astype(np.int64) - 1, 0)
        self._rests_n[ids] = now - self._since + wait_r
