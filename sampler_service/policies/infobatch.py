"""InfoBatch: prune a random part of the easy examples each epoch, scale up those of them that stay.

Source: Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024,
arXiv 2303.04947. Shapes: n examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.policies.contract import Kind, check_within, known, shuffled
from sampler_service.types import Sweep, TableView


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoBatch:
    """Drop each example below the mean loss with probability `prune_ratio`; survivors weigh 1/(1 -
    prune_ratio).

    Unbiased over an epoch: the expected sum of weighted gradients is that of all examples. A pruned epoch has
    fewer steps, so each batch's mean gradient is larger by n over the number kept, on purpose: the same way
    in fewer steps.
    """

    name: ClassVar[str] = "infobatch"
    unbiased = True
    needs: ClassVar[frozenset[str]] = frozenset({"loss"})
    kind: ClassVar[Kind] = "sweep"
    min_coverage: ClassVar[float] = 0.0  # examples without a loss are kept: blind it is plain shuffling

    prune_ratio: float = 0.5
    """Probability that an easy example is left out of an epoch, in [0, 1)."""
    delta: float = 0.875
    """Share of the run after which nothing is pruned, so that it ends on full epochs."""

    def __post_init__(self) -> None:
        check_within(self.name, "prune_ratio", self.prune_ratio, "[0, 1)")
        check_within(self.name, "delta", self.delta, "[0, 1]")

    def rates(self, view: TableView, *, progress: float) -> Sweep:
        known_n = known(view, "loss")
        if progress >= self.delta or not known_n.any():
            return shuffled(len(view))
        mean = view.loss_n[known_n].mean(dtype=np.float64)
        keep_n = np.where(known_n & (view.loss_n < mean), 1 - self.prune_ratio, 1.0)
        return Sweep(keep_n=keep_n, weight_n=(1 / keep_n).astype(np.float32))

    def aside(self, view: TableView) -> str:  # noqa: ARG002 - the contract's signature
        return ""
