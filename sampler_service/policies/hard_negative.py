"""Batches of pairs that are hard for one another: negatives mined from the whole set, not from luck.

A ranking loss learns from the negatives that a batch happens to hold. Here an anchor (l_i, r_i) is followed by pairs j
whose right halves are near to its left one, by the inner product <l_i, r_j> of the embeddings that trainers reported,
within a band of ranks: the very nearest are too often pairs that match as well.

Source: Faghri, Fleet, Kiros, Fidler, "VSE++", BMVC 2018, arXiv 1707.05612 (the hardest negative); Xiong et al.,
"Approximate Nearest Neighbor Negative Contrastive Learning", arXiv 2007.00808 (negatives from an index made anew
while training goes on). The composition of batches and the warm-up are ours.

Shapes: n pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.policies.contract import Kind, check_within, shuffled
from sampler_service.types import Int64, NearTogether, Rates, Sweep, TableView

MOST_EQUIVALENT = 1024
"""pairs of one group at most: as many are looked at beyond a band, so that it is filled when they are left out"""


def largest_group(group_n: Int64) -> int:
    """Pairs of the largest group, of groups (n,)."""
    return int(np.unique(group_n, return_counts=True)[1].max())


@dataclass(frozen=True, slots=True, kw_only=True)
class HardNegative:
    """Every pair once an epoch, weight 1; anchors and pairs of their bands come in one batch."""

    name: ClassVar[str] = "hard_negative"
    unbiased = True
    needs: ClassVar[frozenset[str]] = frozenset()
    uses: ClassVar[frozenset[str]] = frozenset({"nearby"})
    kind: ClassVar[Kind] = "sweep"
    min_coverage: ClassVar[float] = 0.0

    first: float = 5.0
    """Rank from which on pairs are taken, at least 1, the nearest."""
    last: float = 100.0
    """Rank up to which."""
    together: float = 7.0
    """Pairs that follow an anchor, at least 1."""
    begin: float = 0.1
    """Share of the run from which on anchors are followed by any; before, batches are random."""
    end: float = 0.3
    """Share of the run from which on all are; 0 with begin 0 for no warm-up."""

    def __post_init__(self) -> None:
        for option in ("first", "last", "together"):
            check_within(self.name, option, getattr(self, option), "[1, 10000]", whole=True)
        check_within(self.name, "begin", self.begin, "[0, 1]")
        check_within(self.name, "end", self.end, "[0, 1]")
        for low, high in (("first", "last"), ("begin", "end")):
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(
                    f"policy {self.name!r}: option {low!r} (= {getattr(self, low)}) is above {high!r} "
                    f"(= {getattr(self, high)})"
                )

    @property
    def by_progress(self) -> bool:
        """Whether a run must say how long it is going to be."""
        return self.end > 0

    def rates(self, view: TableView, *, progress: float) -> Rates:
        plain, share = shuffled(len(view)), self.hardness(progress)
        if view.nearby is None or share == 0:
            return plain
        order = NearTogether(nearby=view.nearby, together=int(self.together), share=share)
        return Sweep(keep_n=plain.keep_n, weight_n=plain.weight_n, order=order)

    def hardness(self, progress: float) -> float:
        """h: share of each batch that is anchors and what follows them."""
        if progress >= self.end:
            return 1.0
        return 0.0 if progress <= self.begin else (progress - self.begin) / (self.end - self.begin)

    def aside(self, view: TableView) -> str:
        return "no pairs were compared yet, or it warms up" if view.nearby is None else ""
