"""Auto: picks one of the other policies at the start of each epoch, by what the run can and does measure.

What is picked may still stand aside inside the epoch, as it would when it was asked for by name: clusters and norms
that are stale or even (`rates.py`), and two stages when they do not pay (`stages.py`), for which clusters or norms then
stand in.

Shapes: n examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.policies.contract import Kind, Policy, known
from sampler_service.policies.gradient_clustering import GradientClustering
from sampler_service.policies.importance import Importance
from sampler_service.policies.infobatch import InfoBatch
from sampler_service.policies.modes import Modes, two_modes
from sampler_service.policies.shuffle import Shuffle
from sampler_service.policies.trimmed_loss import TrimmedLoss
from sampler_service.policies.two_stage import TwoStage
from sampler_service.types import Rates, TableView

REDUNDANT = 0.9
"""share of a batch's variance that clusters may leave; when they are predicted or measured to leave more, they stand
aside"""

SKEW = 2.0
"""mean loss over median loss from which on most examples are learnt, and pruning them loses little"""


@dataclass(frozen=True, slots=True)
class Pick:
    """A policy, and why."""

    policy: Policy
    why: str = ""
    noisy: bool = False
    """labels look wrong"""
    otherwise: Pick | None = None
    """what acts while a second stage stands aside; None: shuffling"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Auto:
    """Picks by signals, in this order: wrong labels, a second stage, redundant gradients, norms, easy examples."""

    name: ClassVar[str] = "auto"
    needs: ClassVar[frozenset[str]] = frozenset()
    kind: ClassVar[Kind] = "draw"
    min_coverage: ClassVar[float] = 0.0

    prune: str = "no"
    """"yes" lets it pick policies whose epochs are shorter, trimmed_loss and infobatch: schedules that count steps must
    know. With "no" every pick is unbiased."""

    def __post_init__(self) -> None:
        if self.prune not in ("yes", "no"):
            raise ConfigError(f"policy {self.name!r}: option 'prune' must be 'yes' or 'no', got {self.prune!r}")

    @property
    def unbiased(self) -> bool:
        """Every pick is but trimmed_loss."""
        return self.prune == "no"

    def rates(self, view: TableView, *, progress: float) -> Rates:
        return self.pick(view, candidates=1, sketched=False).policy.rates(view, progress=progress)

    def aside(self, view: TableView) -> str:
        return self.pick(view, candidates=1, sketched=False).why

    def pick(
        self,
        view: TableView,
        *,
        candidates: int,
        sketched: bool,
        noisy: bool = False,
        fresh: bool = True,
        ratio: float = math.nan,
    ) -> Pick:
        """The policy for the epoch that starts.

        Args:
            view: what is known.
            candidates: most that trainers choose from, for each example; 1: they have no second stage.
            sketched: whether trainers report sketches.
            noisy: whether labels looked wrong when it was last asked.
            fresh: whether anything was reported since; without, old evidence of wrong labels is none.
            ratio: share of a batch's variance that the present clusters were measured to leave; NaN: not measured.
        """
        modes = _wrong_labels(view, noisy) if fresh else None
        if modes is not None:
            why = f"the losses of {modes.share:.0%} of the examples lie apart, as those of wrong labels do"
            if self.prune == "yes":
                return Pick(TrimmedLoss(), why, noisy=True)
            return Pick(Shuffle(), f"{why}, and hard examples are no longer preferred", noisy=True)
        alone = self._one_stage(view, sketched, ratio)
        if candidates > 1:
            why = "there is a second stage, which measures itself whether it pays"
            return Pick(TwoStage(), why, otherwise=alone)
        return alone

    def _one_stage(self, view: TableView, sketched: bool, ratio: float) -> Pick:
        """The pick where trainers choose nothing themselves."""
        said = ""
        if sketched:
            clusters = GradientClustering()
            how, left = ("predicted", clusters.predicted_ratio(view)) if math.isnan(ratio) else ("measured", ratio)
            if math.isnan(left):
                return Pick(clusters, "there are sketches, and their clusters are measured")
            said = f"clusters are {how} to leave {left:.2f} of a batch's variance"
            if left <= REDUNDANT:
                return Pick(clusters, f"gradients are redundant: {said}")
            said = f", and {said}"
        if known(view, "norm").mean() >= Importance.min_coverage:
            return Pick(Importance(), f"there are gradient norms{said}")
        loss_r = view.loss_n[known(view, "loss")]
        if self.prune == "yes" and len(loss_r):
            mean, middle = float(np.mean(loss_r, dtype=np.float64)), float(np.median(loss_r))
            if mean >= SKEW * middle:
                return Pick(InfoBatch(), f"most is learnt: the mean loss is {mean:.3g}, the median {middle:.3g}")
        nothing = "there are no gradient norms" if said else "there are neither sketches nor gradient norms"
        return Pick(Shuffle(), f"nothing is known by which to prefer examples: {nothing}{said}")


def _wrong_labels(view: TableView, noisy: bool) -> Modes | None:
    """The modes of the losses when they are those of wrong labels.

    Losses of the latest half epoch tell it soonest. Once labels look wrong, those that are left out have older ones.
    """
    known_n = known(view, "loss")
    recent_n = known_n & (view.step - view.step_n <= view.epoch_steps / 2)
    for chosen_n in (recent_n, known_n) if noisy else (recent_n,):
        modes = two_modes(view.loss_n[chosen_n])
        if modes is not None and modes.two:
            return modes
    return None
