"""Whether a second stage pays, and with how many candidates: measured variance against measured cost.

Each scored step says what the second moment of a draw's gradient was under uniform draws, under the proposals alone
and under both stages, and what the step's parts cost. The more of the gradient of a step on B examples is its mean m,
the less there is to gain: steps needed go as ||m||^2 + variance / B, and c candidates pay when

    steps(c) cost(c) < steps(shuffled epochs)

    steps(c) = 1 - noise (1 - left(c))      over those needed with uniform draws
    left(c)  = variance over that of uniform draws
    noise    = (variance / B) / (||m||^2 + variance / B)
    cost(c)  = seconds over those of a step without candidates

Early in training there is little noise in a step, and little to be saved by having less. Of a scorer that can't tell
||m||^2 it is 0, noise 1, and variances are second moments.

All of it by the scores, which only measure what they measure: `witness.py` holds them against what was trained on.

Source: the gate of Katharopoulos and Fleuret, arXiv 1803.00942, section 3.3, with the measured cost in the place of
their 1:2 for a forward and a backward pass; steps by the share of noise: McCandlish et al., "An Empirical Model of
Large-Batch Training", 2018, arXiv 1812.06162; the interpolation between numbers of candidates is ours.
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

PROBE_FIRST, PROBE_EVERY, PROBE_GROWTH = 16, 256, 1.5
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
        self._batches: deque[int] = deque(maxlen=WINDOW)  # examples of their global batches
        self.kept_fresh = False
        """whether scorers beside the trainer keep scores fresh, so that proposals stay good without scoring passes"""
        self.proposes = False
        """whether a run that stands aside, and would shuffle, had better draw by its proposals alone"""
        self._at = most
        # Ratio and cost of all candidates, noise, and the ratio of the proposals alone, when it was last decided.
        self._measured = math.nan, math.nan, 1.0, math.nan
        self._aside, self._probing, self._pause = 0, 0, PROBE_FIRST

    def add(self, stage: Stage, candidates: int, batch: int = 1) -> None:
        """Take in one step that was scored with so many candidates for each example of its global batch."""
        values = (stage.uniform, stage.proposed, stage.chosen, stage.scoring_s, stage.training_s, stage.waiting_s)
        if candidates < 2 or not all(math.isfinite(value) and value >= 0 for value in values):
            return
        if candidates != self._at:
            self._clear()  # ratios and seconds of different numbers of candidates do not mix
            self._at = candidates
        self._steps.append(stage)
        self._batches.append(batch)

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

    @property
    def signal(self) -> float:
        """Squared norm of the mean gradient over the second moment of uniform draws, 0 … 1; 0 where no scorer tells."""
        told = [stage for stage in self._steps if math.isfinite(stage.signal)]
        uniform = sum(stage.uniform for stage in told)
        # Each estimate is without bias and may be negative: the sum is cut, not they.
        return min(1.0, max(0.0, sum(stage.signal for stage in told) / uniform)) if uniform > 0 else 0.0

    @property
    def noise(self) -> float:
        """Share of noise in the squared gradient of a uniform batch, 0 … 1."""
        if not self._batches:
            return 1.0
        variance = (1 - self.signal) / median(self._batches)
        return variance / (self.signal + variance) if variance > 0 else 0.0

    def steps_needed(self, ratio: float) -> float:
        """Steps needed, over those of uniform draws, when draws have `ratio` of their second moment."""
        left = max(0.0, ratio - self.signal) / (1 - self.signal) if self.signal < 1 else 1.0
        return 1 - self.noise * (1 - left)

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
            self._clear()  # what was measured long ago would outvote the probe
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
        ratio, cost, noise, proposed = self._measured
        of_noise = "" if noise == 1 else f", where a step is {noise:.0%} noise,"
        alone = f", and proposals alone leave {proposed:.2f}" if self.proposes else ""
        return (
            f"choosing among {self.most} candidates for each example would leave {ratio:.2f} of the variance{of_noise} "
            f"at {cost:.2f} times the cost of a step{alone}"
        )

    def decide(self) -> int:
        """The number of candidates that should reach the goal soonest, 1 … most."""
        if len(self._steps) >= ENOUGH:
            left = {c: self.ratio(c) * self.witness.flattery for c in range(2, self.most + 1)}
            self.proposes = self._shuffles and self.kept_fresh and self.ratio(1) < MARGIN * SHUFFLED
            alone = self.ratio(1) if self.proposes or not self._shuffles else SHUFFLED
            prices = {1: self.steps_needed(alone)} | {
                c: self.steps_needed(ratio) * self.cost(c) for c, ratio in left.items()
            }
            self._measured = left[self.most], self.cost(self.most), self.noise, self.ratio(1)
            best = min(prices, key=prices.__getitem__)  # a NaN is no minimum, and fails the comparison
            if prices[best] < MARGIN * prices[self.candidates]:
                self.candidates = best
        if self.witness.doubts:
            self.candidates = 1
        return self.candidates

    def _clear(self) -> None:
        self._steps.clear()
        self._batches.clear()
