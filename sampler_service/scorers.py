"""What a scorer does all day: fetch weights when there are new ones, ask for examples, score them, send the scores.

Nothing in here ends a run or a scorer: what fails is told to the run, counted there, and tried again a little later.
The loop knows neither torch nor Ray: what scores is a `RowScorer`, whom it talks to a `Desk`.

Shapes: r rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from sampler_service.errors import SamplerError, Unavailable
from sampler_service.types import Int64, Scored, ScoreReport, Work

log = logging.getLogger(__name__)

IDLE_S, MOST_IDLE_S = 0.02, 0.5
"""pause when there is nothing to do, doubled with each one that follows it, up to the second: steps may take few
milliseconds, and so the next weights"""

BACKOFF_S, MOST_BACKOFF_S = 0.5, 30.0
"""pause after a failure, doubled with each one that follows it, up to the second"""

WORK_S = 1.0
"""of work that is asked for at a time, by the pace so far: the calls around it cost some milliseconds"""

MOST_ROWS = 65536
"""that are asked for at a time"""

MOST_FAILURES = 32
"""passes of one turn that may fail before what fails is no longer split: enough to find some rows at fault among
thousands, and few where nothing works at all"""

FRUITLESS = 3
"""turns without a usable score that are told as an error though the weights were good for others before"""

Weights = tuple[int, int, bytes]
"""version, step, and the bytes of a safetensors file"""


class RowScorer(Protocol):
    """A model with its records."""

    batch_size: int
    """rows of one forward pass"""

    def load(self, weights: bytes) -> None:
        """Take weights; raises when they do not fit, and scores with them no more."""
        ...

    def score(self, example_ids: Int64) -> Scored:
        """Read these records and run the model forward; raises when that fails."""
        ...


MakeScorer = Callable[[str, int, int], RowScorer]
"""(dataset, its number of examples, length of sketches) -> what scores it"""


class Desk(Protocol):
    """The run, seen from a scorer. Every call may raise SamplerError."""

    def weights(self, after: int) -> Weights | None:
        """The newest weights; None unless they are newer than version `after`."""
        ...

    def to_score(self, scorer: str, version: int, step: int, count: int) -> Work: ...

    def take_scores(self, report: ScoreReport) -> None: ...


class ScorerLoop:
    """One scorer of one run.

    Args:
        name: of the scorer, the same after it was restarted.
        make: makes the model and its records; slow, and may fail.
        desk: the run.
        clock: seconds; the pace is measured by it.
    """

    def __init__(
        self, name: str, make: Callable[[], RowScorer], desk: Desk, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._make = make
        self._desk = desk
        self._clock = clock
        self._scorer: RowScorer | None = None
        self._version, self._step = 0, 0
        self._fits = False
        self._good = False  # these weights had a usable score
        self._rows = 0  # to ask for
        self._failures = self._idle = 0

    def turn(self) -> float:
        """One round; returns the seconds to pause before the next. Never raises."""
        try:
            pause_s = self._turn()
        except SamplerError as error:  # the run is away, or is being restarted
            log.info("%s: %s", self._name, error)
            return self._back_off()
        except Exception as error:
            log.warning("%s: %s", self._name, _words(error))
            try:
                self._tell(error=_words(error))
            except Exception as untold:
                log.warning("%s: that could not be told: %s", self._name, _words(untold))
            return self._back_off()
        if pause_s == 0:
            self._failures = self._idle = 0
        return pause_s

    def _turn(self) -> float:
        if self._scorer is None:
            try:
                self._scorer = self._make()
            except Exception as error:
                raise _Failed(f"the scoring factory failed: {_words(error)}") from error
            self._rows = self._scorer.batch_size
        count = self._rows if self._fits else 0
        work = self._desk.to_score(self._name, self._version, self._step, count)
        if work.version > self._version or not self._version:
            return self._fetch(self._scorer)
        if not len(work.example_ids):
            return self._rest()
        return self._score(self._scorer, work)

    def _fetch(self, scorer: RowScorer) -> float:
        newest = self._desk.weights(self._version)
        if newest is None:
            return self._rest()
        # Also when they do not fit: the same ones will not fit later either.
        self._fits = self._good = False
        self._version, self._step, data = newest
        try:
            scorer.load(data)
        except Exception as error:
            raise _Failed(f"weights {self._version} can't be loaded: {_words(error)}") from error
        self._fits = True
        return 0.0

    def _score(self, scorer: RowScorer, work: Work) -> float:
        began = self._clock()
        turn = _Turn(scorer)
        for start in range(0, len(work.example_ids), scorer.batch_size):
            turn.score(work.example_ids[start : start + scorer.batch_size])
        spent_s = max(self._clock() - began, 1e-3)
        if turn.failed:
            log.warning("%s: %s", self._name, turn.words(self._version))
        self._good |= turn.usable
        # Rows at fault among sound ones are counted by the run. Where nothing can be used, that is an error: at once if
        # nothing ever could with these weights, else when it goes on, as when a disk is gone.
        fails = not turn.usable and (not self._good or self._failures + 1 >= FRUITLESS)
        pace = len(work.example_ids) / spent_s * WORK_S
        batches = min(max(1, int(pace / scorer.batch_size)), max(1, MOST_ROWS // scorer.batch_size))
        # Twice as much at most: the first passes say little about the pace.
        self._rows = min(batches * scorer.batch_size, 2 * self._rows) if turn.usable else scorer.batch_size
        self._tell(turn.done, turn.failed, turn.words(self._version) if fails else "")
        return 0.0 if turn.usable else self._back_off()

    def _tell(
        self, done: list[tuple[Int64, Scored]] | None = None, failed: list[Int64] | None = None, error: str = ""
    ) -> None:
        nothing = np.empty(0, np.int64)
        report = ScoreReport(
            scorer=self._name,
            version=self._version,
            step=self._step,
            example_ids=np.concatenate([nothing, *(ids for ids, _ in done or ())]),
            scored=_joined([scored for _, scored in done or ()]),
            failed_ids=np.concatenate([nothing, *(failed or ())]),
            error=error,
        )
        try:
            self._desk.take_scores(report)
        except Unavailable as away:
            log.info("%s: what was scored is lost: %s", self._name, away)

    def _rest(self) -> float:
        self._idle = min(self._idle + 1, 10)
        return min(IDLE_S * 2 ** (self._idle - 1), MOST_IDLE_S)

    def _back_off(self) -> float:
        self._failures += 1
        return min(BACKOFF_S * 2 ** (self._failures - 1), MOST_BACKOFF_S)


class _Turn:
    """What became of the rows of one turn."""

    def __init__(self, scorer: RowScorer) -> None:
        self._scorer = scorer
        self.done: list[tuple[Int64, Scored]] = []
        self.failed: list[Int64] = []
        self.failures = 0
        """passes that failed"""
        self.usable = False
        """some score is"""
        self._error = ""

    def score(self, ids: Int64) -> None:
        """Score these rows; what fails is halved until the rows at fault are alone."""
        try:
            scored = self._scorer.score(ids)
        except Exception as problem:
            self.failures += 1
            self._error = self._error or _words(problem)  # that of the whole batch says most
            if len(ids) == 1 or self.failures > MOST_FAILURES:
                self.failed.append(ids)
                return
            self.score(ids[: len(ids) // 2])
            self.score(ids[len(ids) // 2 :])
        else:
            self.done.append((ids, scored))
            self.usable |= bool((np.isfinite(scored.norms) & (scored.norms >= 0)).any())

    def words(self, version: int) -> str:
        """What went wrong, for people."""
        if self.failed:
            failed = sum(map(len, self.failed))
            total = failed + sum(len(ids) for ids, _ in self.done)
            return f"scoring {failed} of {total} examples with weights {version} failed: {self._error}"
        ids, scored = self.done[0]
        total = sum(len(ids) for ids, _ in self.done)
        return (
            f"none of {total} norms by weights {version} can be used, that of example {ids[0]} is {scored.norms[0]}: "
            "are the published weights finite?"
        )


class _Failed(Exception):
    """Scoring can't go on for now; its text is for people."""


def _joined(parts: list[Scored]) -> Scored:
    """The scores of several passes below each other; what one of them lacks, none has."""
    sketches = [part.sketches for part in parts if part.sketches is not None]
    return Scored(
        norms=np.concatenate([np.empty(0, np.float32), *(part.norms for part in parts)]),
        sketches=np.concatenate(sketches) if parts and len(sketches) == len(parts) else None,
    )


def _words(error: Exception) -> str:
    """An error in a line: our own by their text, others by their type and text."""
    return str(error) if isinstance(error, SamplerError | _Failed) else f"{type(error).__name__}: {error}"
