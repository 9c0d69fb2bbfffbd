"""Importance sampling by gradient norm, switched on only where the norms are uneven enough.

Source: Katharopoulos and Fleuret, "Not All Samples Are Created Equal", ICML 2018, arXiv 1803.00942: draw in
proportion to the norm, weight 1/(n p_i), and act only above a threshold of tau. The uniform part `alpha` is
ours: it bounds every weight by 1/alpha, and with it the harm that stale norms can do.

Shapes: n examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.policies.contract import Kind, check_within, known, shuffled
from sampler_service.types import Float64, Rates, TableView, WeightedDraw


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Draw example i with p_i = (1 - alpha) s_i / sum(s) + alpha / n, where s is the gradient norm."""

    name: ClassVar[str] = "importance"
    unbiased: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"norm"})
    kind: ClassVar[Kind] = "draw"
    min_coverage: ClassVar[float] = 0.5

    alpha: float = 0.5
    """Share of uniform draws, in (0, 1]."""
    gate: float = math.sqrt(2)
    """Least tau at which the policy acts, at least 1 (1: always). tau^2 is the factor by which exact
    importance sampling shrinks the second moment of a batch's gradient. Draws give up the evenness of
    shuffled epochs, so we ask for what a doubled batch would bring: tau^2 = 2. There, with exponentially
    distributed norms, the mix with alpha = 0.5 has 0.60 of the second moment of uniform draws. (The paper's
    threshold, 2, also pays for scoring by an extra forward pass; our norms come with the reports.)"""

    def __post_init__(self) -> None:
        check_within(self.name, "alpha", self.alpha, "(0, 1]")
        check_within(self.name, "gate", self.gate, "[1, inf)")

    def rates(self, view: TableView, *, progress: float) -> Rates:  # noqa: ARG002 - the contract's signature
        share_n = _norm_share(view)
        if self.gate > 1 and _tau(share_n) < self.gate:
            return shuffled(len(view))
        return WeightedDraw(probability_n=(1 - self.alpha) * share_n + self.alpha / len(view))

    def aside(self, view: TableView) -> str:
        tau = self.tau(view)
        if self.gate == 1 or tau >= self.gate:
            return ""
        return f"tau {tau:.2f} is below the gate {self.gate:.2f}, gradient norms are too even to gain by draws"

    def tau(self, view: TableView) -> float:
        """sqrt(n sum_i (s_i / sum s)^2), 1 for equal norms … sqrt(n) for a single large one (n / ESS =
        tau^2)."""
        return _tau(_norm_share(view))


def _tau(share_n: Float64) -> float:
    return math.sqrt(len(share_n) * float(share_n @ share_n))


def _norm_share(view: TableView) -> Float64:
    """s_i / sum(s); an unknown norm counts as the mean of the known ones."""
    norm_n = view.norm_n.astype(np.float64)
    known_n = known(view, "norm")
    mean = norm_n[known_n].mean() if known_n.any() else 0.0
    if mean <= 0:  # nothing known, or every norm is zero
        return np.full(len(view), 1 / len(view))
    norm_n[~known_n] = mean
    return norm_n / norm_n.sum()
