"""Learned data weights: examples whose gradients point where those of held-out examples do are drawn more often.

One step of gradient descent on example i lowers the held-out loss by lr <g_i, g_held-out>, to first order. Weighting by
the positive part of it is Ren et al.'s rule for a whole set instead of a batch, and the score by which Hu et al. learn
weights and GLISTER picks subsets. Sketches stand for the gradients: one inner product for each example, where the
sources make a backward pass.

Source: Ren, Zeng, Yang, Urtasun, "Learning to Reweight Examples for Robust Deep Learning", ICML 2018, arXiv 1803.09050,
equations 8 to 12; Hu et al., "Learning Data Manipulation for Augmentation and Weighting", NeurIPS 2019,
arXiv 1910.12795; Killamsetty et al., "GLISTER", AAAI 2021, arXiv 2012.10630. Drawing by the weights instead of
multiplying losses with them, and the mix with even draws, are ours.

The positive part knows no measure: as soon as the held-out gradient leans to one side by a little, all that points to
the other is left out, until it leans to the other. With a target that comes some steps late training swings from class
to class and learns nothing else. So the share of draws by alignment is in proportion to how far the held-out gradients
agree with one another, A = |mean|^2 / mean |.|^2: where they pull in different ways, draws are even. That is ours, too.

So is what is done about age. A held-out gradient turns quickly: whole classes are wanted, and a few steps later not any
more; and an example that fitted when it was last drawn has a sketch near 0, of either sign. What it said is of another
time, but others of its class, or of whatever groups the run was given, were drawn since: some always are, as the even
draws are even over the groups. With f_i = 2^(-age_i / half_life), m_i the fresh mean of the group (`freshness.py`), and
G groups, of which that of i has n_i examples,

    p_i = A' a_i / sum(a) + (1 - A') / (G n_i),    A' = (1 - alpha) A,
    a_i = max(0, f_i <s_i, s_held-out> + (1 - f_i) m_i).

Without groups all examples are one.

Shapes: n examples, g groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.policies.contract import Kind, check_within, known, shuffled
from sampler_service.policies.freshness import aged_alignments, freshness
from sampler_service.types import Float64, Rates, TableView, WeightedDraw


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationAlignment:
    """Draw in proportion to the positive part of the alignment, see above; weight 1. Biased on purpose."""

    name: ClassVar[str] = "validation_alignment"
    unbiased = False
    needs: ClassVar[frozenset[str]] = frozenset({"alignment"})
    kind: ClassVar[Kind] = "draw"
    # What is not wanted is seldom drawn and grows old, by design; `half_life` makes up for it.
    min_coverage: ClassVar[float] = 0.1

    alpha: float = 0.1
    """Least share of even draws, in (0, 1]: what is pushed away now may be wanted later, and must be seen till then."""
    half_life: float = 1.0
    """Epochs in which an alignment loses half its say."""

    def __post_init__(self) -> None:
        check_within(self.name, "alpha", self.alpha, "(0, 1]")
        check_within(self.name, "half_life", self.half_life, "(0, inf)")

    def rates(self, view: TableView, *, progress: float) -> Rates:  # noqa: ARG002 - the contract's signature
        gain_n = self._gains(view)
        total = float(gain_n.sum())
        if not total > 0:
            return shuffled(len(view))
        sharp = (1 - self.alpha) * view.agreement
        probability_n = sharp * gain_n / total + (1 - sharp) * _even(view)
        return WeightedDraw(probability_n=probability_n, unbiased=False)

    def aside(self, view: TableView) -> str:
        if view.alignment_n is None or not known(view, "alignment").any():
            return "there is no sketch of held-out examples"
        return "" if self._gains(view).any() else "no example points where the held-out ones do"

    def _gains(self, view: TableView) -> Float64:
        """(n,) a_i; all 0 when nothing is known."""
        if not known(view, "alignment").any():
            return np.zeros(len(view))
        gain_n = aged_alignments(view, freshness(view, "alignment", half_life=self.half_life))
        return np.clip(gain_n, 0.0, None, out=gain_n)


def _even(view: TableView) -> Float64:
    """(n,) probabilities of draws in which each group is as frequent as any other, and each example of a group."""
    if view.group_n is None:
        return np.full(len(view), 1 / len(view))
    size_g = np.bincount(view.group_n)
    return 1 / (np.count_nonzero(size_g) * size_g[view.group_n])
