"""Learned data weights: examples whose gradients point where those of held-out examples do are drawn more often.

One step of gradient descent on example i lowers the held-out loss by lr <g_i, g_held-out>, to first order. Weighting by
the positive part of it is Ren et al.'s rule for a whole set instead of a batch, and the score by which Hu et al. learn
weights and GLISTER picks subsets. Sketches stand for the gradients: one inner product for each example, where the
sources make a backward pass.

Source: Ren, Zeng, Yang, Urtasun, "Learning to Reweight Examples for Robust Deep Learning", ICML 2018, arXiv 1803.09050,
equations 8 to 12; Hu et al., "Learning Data Manipulation for Augmentation and Weighting", NeurIPS 2019,
arXiv 1910.12795; Killamsetty et al., "GLISTER", AAAI 2021, arXiv 2012.10630. Drawing by the weights instead of
multiplying losses with them, and the mix with uniform draws, are ours.

Shapes: n examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.policies.contract import Kind, check_within, known, shuffled
from sampler_service.types import Rates, TableView, WeightedDraw


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationAlignment:
    """p_i = (1 - alpha) a_i / sum(a) + alpha / n, weight 1; a_i = max(0, <s_i, s_held-out>). Biased on purpose."""

    name: ClassVar[str] = "validation_alignment"
    unbiased = False
    needs: ClassVar[frozenset[str]] = frozenset({"alignment"})
    kind: ClassVar[Kind] = "draw"
    min_coverage: ClassVar[float] = 0.5

    alpha: float = 0.2
    """Share of uniform draws, in (0, 1]: what is pushed away now may be wanted later, and must be seen to be known."""

    def __post_init__(self) -> None:
        check_within(self.name, "alpha", self.alpha, "(0, 1]")

    def rates(self, view: TableView, *, progress: float) -> Rates:  # noqa: ARG002 - the contract's signature
        if self.aside(view):
            return shuffled(len(view))
        assert view.alignment_n is not None, "else it stands aside"
        gain_n = np.clip(view.alignment_n, 0.0, None, dtype=np.float64)
        # An example that was never sketched counts as the others do in the mean.
        gain_n = np.where(known(view, "alignment"), gain_n, np.nanmean(gain_n))
        uniform = 1 / len(view)
        return WeightedDraw(
            probability_n=(1 - self.alpha) * gain_n / gain_n.sum() + self.alpha * uniform, unbiased=False
        )

    def aside(self, view: TableView) -> str:
        known_n = known(view, "alignment")
        if view.alignment_n is None or not known_n.any():
            return "there is no sketch of held-out examples"
        return "" if (view.alignment_n[known_n] > 0).any() else "no example points where the held-out ones do"
