"""Whether the losses of a run fall into two groups, as those of wrongly labelled examples and the others do.

A model that has learnt the rule but not yet by heart gives an example with a wrong label a confident, wrong answer. Its
loss lies as far above the others as the model is sure of itself, so the losses have two modes, where those of hard
examples are the tail of one.

Source: Otsu, "A Threshold Selection Method from Gray-Level Histograms", IEEE SMC 9, 1979 (threshold and separability);
Arazo et al., "Unsupervised Label Noise Modeling and Loss Correction", ICML 2019, arXiv 1904.11238 (two modes of losses
under label noise). The bounds are ours, from clean, duplicated, long-tailed and mislabelled MNIST, digits and CIFAR-10.

Shapes: r losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sampler_service.types import Float32

SEPARATE = 0.74
"""Otsu's eta above which there are two groups, and one over the root of the number of losses more, since the best split
of a few is luck. Eta of an exponential distribution is 0.65, of a normal one 0.64, of a uniform one 0.75."""

LEAST_SHARE = 0.15
"""of the losses in the upper group: below it, it may as well be a rare class that is learnt last"""

FEWEST = 32
"""losses below which nothing is said"""


@dataclass(frozen=True, slots=True)
class Modes:
    """The best split of losses into two groups."""

    separation: float
    """eta, the variance between the groups over all variance, 0 … 1"""
    share: float
    """of the losses in the upper group"""
    threshold: float
    """the largest loss of the lower group"""
    count: int
    """r"""
    upper_mean: float
    """mean loss of the upper group"""

    @property
    def two(self) -> bool:
        """Whether these are two groups rather than one with a tail."""
        return self.separation >= SEPARATE + self.count**-0.5 and self.share >= LEAST_SHARE


def two_modes(loss_r: Float32) -> Modes | None:
    """The split of finite losses that leaves the least variance inside its groups; None of too few or equal ones."""
    rising_r = np.sort(loss_r.astype(np.float64))
    count = len(rising_r)
    if count < FEWEST or rising_r[0] == rising_r[-1]:
        return None
    sum_r = np.cumsum(rising_r)
    below_r = np.arange(1, count)  # a split after each loss but the last
    gap_r = (sum_r[-1] - sum_r[:-1]) / (count - below_r) - sum_r[:-1] / below_r
    between_r = below_r * (count - below_r) / count**2 * gap_r**2
    last = int(between_r.argmax())
    return Modes(
        separation=float(between_r[last] / rising_r.var()),
        count=count,
        share=1 - (last + 1) / count,
        threshold=float(rising_r[last]),
        upper_mean=float(rising_r[last + 1 :].mean()),
    )
