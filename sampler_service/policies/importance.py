"""Importance sampling by gradient norm, switched on only where the norms are uneven enough.

Source: Katharopoulos and Fleuret, "Not All Samples Are Created Equal", ICML 2018, arXiv 1803.00942: draw in
proportion to the norm, weight 1/(n p_i), and act only above a threshold of tau. The uniform part `alpha` is
ours: it bounds every weight by 1/alpha, and with it the harm that stale norms can do. That norms count the less the
older they are is ours, too: with f_i = 2^(-age_i / half_life) and its mean f over the known norms,

    p_i = (1 - alpha) f s_i / sum(s) + (1 - (1 - alpha) f) / n,    s_i = f_i norm_i + (1 - f_i) m_i,

m_i being the fresh mean norm of the example's cluster (`freshness.py`). Norms of just now give the plain mix, very
old ones uniform draws.

Shapes: n examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.policies.contract import Kind, check_within, known, shuffled
from sampler_service.policies.freshness import aged_norms, freshness
from sampler_service.types import Float64, Rates, TableView, WeightedDraw


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Draw in proportion to the gradient norm, and the more evenly the older the norms are (see above)."""

    name: ClassVar[str] = "importance"
    unbiased = True
    needs: ClassVar[frozenset[str]] = frozenset({"norm"})
    uses: ClassVar[frozenset[str]] = frozenset({"cluster"})  # where there are sketches
    kind: ClassVar[Kind] = "draw"
    min_coverage: ClassVar[float] = 0.5

    alpha: float = 0.5
    """Share of uniform draws when all norms are fresh, in (0, 1]; never less."""
    gate: float = math.sqrt(2)
    """Least tau at which the policy acts, at least 1 (1: always). tau^2 is the factor by which exact
    importance sampling shrinks the second moment of a batch's gradient. Draws give up the evenness of
    shuffled epochs, so we ask for what a doubled batch would bring: tau^2 = 2. There, with exponentially
    distributed norms, the mix with alpha = 0.5 has 0.60 of the second moment of uniform draws. (The paper's
    threshold, 2, also pays for scoring by an extra forward pass; our norms come with the reports.)"""
    half_life: float = 3.0
    """Epochs in which a norm loses half its say."""

    def __post_init__(self) -> None:
        check_within(self.name, "alpha", self.alpha, "(0, 1]")
        check_within(self.name, "gate", self.gate, "[1, inf)")
        check_within(self.name, "half_life", self.half_life, "(0, inf)")

    def rates(self, view: TableView, *, progress: float) -> Rates:  # noqa: ARG002 - the contract's signature
        fresh_n = freshness(view, "norm", half_life=self.half_life)
        share_n = _share(view, fresh_n)
        if self.gate > 1 and _tau(share_n) < self.gate:
            return shuffled(len(view))
        sharp = (1 - self.alpha) * float(fresh_n.sum()) / max(1, np.count_nonzero(known(view, "norm")))
        share_n *= sharp
        share_n += (1 - sharp) / len(view)
        return WeightedDraw(probability_n=share_n)

    def aside(self, view: TableView) -> str:
        tau = self.tau(view)
        if self.gate == 1 or tau >= self.gate:
            return ""
        return f"tau {tau:.2f} is below the gate {self.gate:.2f}, gradient norms are too even to gain by draws"

    def tau(self, view: TableView) -> float:
        """sqrt(n sum_i (s_i / sum s)^2), 1 for equal norms … sqrt(n) for a single large one (n / ESS =
        tau^2)."""
        return _tau(_share(view, freshness(view, "norm", half_life=self.half_life)))


def _tau(share_n: Float64) -> float:
    return math.sqrt(len(share_n) * float(share_n @ share_n))


def _share(view: TableView, fresh_n: Float64) -> Float64:
    """s_i / sum(s)."""
    share_n = aged_norms(view, fresh_n)
    total = float(share_n.sum())
    if not total > 0:
        return np.full(len(view), 1 / len(view))
    share_n /= total
    return share_n
