"""Whether the scores that a second stage chooses by measure gradients: what was trained on bears witness.

A choice by any scores is unbiased, and by any that vary the scores themselves say that it saves variance. What it did
is told by values that it was not made by: losses or gradient norms of the rows that were kept, which come with the
report of their training step (`sampler_client.evidence`).
"""

from __future__ import annotations

import math
from collections import deque

from sampler_service.types import Evidence

FEWEST_ROWS, FEWEST_STEPS = 512, 8
"""Rows and steps before anything is said. Losses have heavy tails: of windows of so many rows of right scores on
digits, in batches of 16 to 256, with smoothed and with wrong labels, one in a hundred lay above 1 + MARGIN, and one in
a thousand by SURE errors as well; of random scores that differ a thousandfold two in three at least."""

MOST_ROWS = 1024
"""that are looked back on, or FEWEST_STEPS steps where these have more"""

MARGIN, SURE = 0.1, 2.0
"""by how much, and by how many standard errors, the choice must have left more than all the variance"""


class Witness:
    """Evidence of the latest batches that were chosen by scores and trained on. Not thread-safe."""

    def __init__(self) -> None:
        self._by_norms, self._by_losses = _Window(), _Window()
        self._batch_rows = 1
        self.doubts = False
        """Whether the scores measure something else. It takes as much evidence to give up as to take up."""
        self.finding = ""
        """what was found when doubts were last taken up, in words"""
        self.flattery = 1.0
        """what the choice leaves by gradient norms, over what it leaves by scores; 1 where no norms were reported"""

    def add(self, evidence: Evidence) -> None:
        """Take in one batch; what is no number is left out."""
        moments = evidence.uniform, evidence.chosen, evidence.scored_uniform, evidence.scored_chosen
        if evidence.rows < 1 or not all(math.isfinite(moment) and moment > 0 for moment in moments):
            return
        self._batch_rows = evidence.rows
        (self._by_norms if evidence.by_norms else self._by_losses).add(evidence)
        window = self._window
        if not window.enough:
            return
        if window is self._by_norms:
            self.flattery = window.ratio / window.scored_ratio
        if window.ratio - max(MARGIN, SURE * window.error) > 1:
            self.doubts = True
            values = "gradient norms" if window is self._by_norms else "losses"
            self.finding = (
                f"by the {values} of what was trained on, the choice leaves {window.ratio:.2f} of the variance: the "
                "scores measure something else"
            )
        elif window.ratio < 1:
            self.doubts = False

    def forget(self) -> None:
        """What comes from now on is looked at by itself; doubts stay until there is enough of it."""
        self._by_norms, self._by_losses = _Window(), _Window()

    @property
    def heard_enough(self) -> bool:
        """since it last forgot"""
        return self._window.enough

    @property
    def ratio(self) -> float:
        """Second moment of what was done over that of uniform draws; NaN while there is too little to tell."""
        return self._window.ratio if self.heard_enough else math.nan

    @property
    def steps_needed(self) -> int:
        """Batches like the last that are enough."""
        return max(FEWEST_STEPS, math.ceil(FEWEST_ROWS / self._batch_rows))

    @property
    def _window(self) -> _Window:
        return self._by_norms if self._by_norms.enough else self._by_losses


class _Window:
    """The latest batches, by values of one kind."""

    def __init__(self) -> None:
        self._batches: deque[Evidence] = deque()
        self._rows = 0

    def add(self, evidence: Evidence) -> None:
        self._batches.append(evidence)
        self._rows += evidence.rows
        while len(self._batches) > FEWEST_STEPS and self._rows - self._batches[0].rows >= MOST_ROWS:
            self._rows -= self._batches.popleft().rows

    @property
    def enough(self) -> bool:
        return self._rows >= FEWEST_ROWS and len(self._batches) >= FEWEST_STEPS

    @property
    def ratio(self) -> float:
        return self._sum("chosen") / self._sum("uniform")

    @property
    def scored_ratio(self) -> float:
        return self._sum("scored_chosen") / self._sum("scored_uniform")

    @property
    def error(self) -> float:
        """Standard error of the ratio, from how it differs between batches."""
        ratio, count = self.ratio, len(self._batches)
        square = sum((batch.rows * (batch.chosen - ratio * batch.uniform)) ** 2 for batch in self._batches)
        return math.sqrt(square * count / (count - 1)) / self._sum("uniform")

    def _sum(self, moment: str) -> float:
        return sum(batch.rows * getattr(batch, moment) for batch in self._batches)
