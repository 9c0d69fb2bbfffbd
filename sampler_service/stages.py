"""Whether a second stage pays, and with how many candidates: measured variance against measured cost.

Each scored step says what the second moment of a draw's gradient was under uniform draws, under the proposals alone
and under both stages, and what the step's parts cost. Steps needed go with the variance, so c candidates pay when

    ratio(c) cost(c) < SHUFFLED,    ratio(c) = second moment over that of uniform draws,    cost(c) = seconds over those
                             of a step without candidates.

All of it by the scores, which only measure what they measure: `witness.py` holds them against what was trained on.

Source: the gate of Katharopoulos and Fleuret, arXiv 1803.00942, section 3.3, with the measured cost in the place of
their 1:2 for a forward and a backward pass; the interpolation between numbers of candidates is ours.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from sampler_service.types import Stage
from sampler_service.witness import Witness

WINDOW = 8
"""scored steps that a decision looks back on"""

ENOUGH = 4
"""scored steps that it needs"""

PROBE_FIRST, PROBE_EVERY, PROBE_GROWTH = 32, 256, 2.0
"""A run that stands aside still scores some steps now and then, to see whether it would pay by now: after so many steps
at first, at last, and by how much the pauses grow. Probes of ENOUGH steps at twice the cost then take 1.6 % of it.
Where scores are in doubt it takes more steps to clear them, and pauses are longer in proportion."""

SHUFFLED = 0.85
"""The price of standing aside. What is measured are draws, of which uniform ones would be 1; but a run that stands
aside shuffles epochs, in which no example waits long, and neither scores nor plans. An assumption, on the safe side."""

MARGIN = 0.95
"""another number of candidates must promise this share of the present price at most: no flutter around a tie"""


class StageMonitor:
    """What the second stage measured of late, and what follows. Not thread-safe.

    Args:
        most: candidates for each example of a batch, at most; 1: there is no second stage.
        shuffles: whether a run that stands aside shuffles epochs; else it draws by its proposals alone.
    """

    def __init__(self, most: int, *, shuffles: bool = True) -> None:
        self.most = most
        self._shuffles = shuffles
        self.candidates = most
        """for each example of a batch, at present; 1: the run stands aside"""
        self.witness = Witness()
        """takes what training steps say of the choices"""
        self._steps: deque[Stage] = deque(maxlen=WINDOW)
        self.kept_fresh = False
        """whether scorers beside the trainer keep scores fresh, so that proposals stay good without scoring passes"""
        self.proposes = False
        """whether a run that stands aside, and would shuffle, had better draw by its proposals alone"""
        self._at = most
        # Ratio and cost of all candidates, and the ratio of the proposals alone, when it was last decided.
        self._measured = math.nan, math.nan, math.nan
        self._aside, self._probing, self._pause = 0, 0, PROBE_FIRST

    def add(self, stage: Stage, candidates: int) -> None:
        """Take in one step that was scored with so many candidates for each example."""
        values = (stage.uniform, stage.proposed, stage.chosen, stage.scoring_s, stage.training_s, stage.waiting_s)
        if candidates < 2 or not all(math.isfinite(value) and value >= 0 for value in values):
            return
        if candidates != self._at:
            self._steps.clear()  # ratios and seconds of different numbers of candidates do not mix
            self._at = candidates
        self._steps.append(stage)

    def ratio(self, candidates: int) -> float:
        """Second moment with so many candidates over that of uniform draws; NaN before there are measures."""
        uniform = sum(stage.uniform for stage in self._steps)
        if uniform == 0:
            return math.nan
        proposed = sum(stage.proposed for stage in self._steps) / uniform
        chosen = sum(stage.chosen for stage in self._steps) / uniform
        # proposed / c + limit (1 - 1/c): what the proposals leave, and what no number of candidates improves on
        limit = max(0.0, (chosen - proposed / self._at) / (1 - 1 / self._at))
        return limit + (proposed - limit) / candidates

    def cost(self, candidates: int) -> float:
        """Seconds of a step with so many candidates over one without; NaN before there are measures."""
        timed = [stage for stage in self._steps if stage.training_s > 0]
        if not timed:
            return math.nan
        training_s = median(stage.training_s for stage in timed)
        scoring_s = median(stage.scoring_s for stage in timed) / self._at if candidates > 1 else 0.0
        waiting_s = median(stage.waiting_s for stage in timed) / self._at
        return (training_s + candidates * (scoring_s + waiting_s)) / (training_s + waiting_s)

    def plan(self, steps: int) -> int:
        """Candidates for the next so many steps; while the run stands aside, now and then a probe."""
        if self.decide() > 1 or self.most == 1:
            self._aside, self._probing, self._pause = 0, 0, PROBE_FIRST
            return self.candidates
        if self._probing > 0:
            self._probing -= steps
            if self._probing <= 0 or (self.witness.doubts and self.witness.heard_enough):
                self._probing = 0
                self._aside, self._pause = 0, min(int(PROBE_GROWTH * self._pause), PROBE_EVERY)
            return self.most
        self._aside += steps
        probe = self.witness.steps_needed if self.witness.doubts else ENOUGH
        if self._aside >= self._pause * probe // ENOUGH:
            self._probing = probe
            self._steps.clear()  # what was measured long ago would outvote the probe
            if self.witness.doubts:
                self.witness.forget()
        return 1

    @property
    def reason(self) -> str:
        """Why the run stands aside, in words."""
        if self.most == 1:
            return "one candidate for each example leaves nothing to choose"
        if self.witness.doubts:
            return self.witness.finding
        ratio, cost, proposed = self._measured
        alone = f", and proposals alone leave {proposed:.2f}" if self.proposes else ""
        return (
            f"choosing among {self.most} candidates for each example would leave {ratio:.2f} of the variance at "
            f"{cost:.2f} times the cost of a step{alone}"
        )

    def decide(self) -> int:
        """The number of candidates that should reach the goal soonest, 1 … most."""
        if len(self._steps) >= ENOUGH:
            left = {c: self.ratio(c) * self.witness.flattery for c in range(2, self.most + 1)}
            self.proposes = self._shuffles and self.kept_fresh and self.ratio(1) < MARGIN * SHUFFLED
            alone = self.ratio(1) if self.proposes or not self._shuffles else SHUFFLED
            prices = {1: alone} | {c: ratio * self.cost(c) for c, ratio in left.items()}
            self._measured = left[self.most], self.cost(self.most), self.ratio(1)
            best = min(prices, key=prices.__getitem__)  # a NaN is no minimum, and fails the comparison
            if prices[best] < MARGIN * prices[self.candidates]:
                self.candidates = best
        if self.witness.doubts:
            self.candidates = 1
        return self.candidates
