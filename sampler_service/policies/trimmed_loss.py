"""Trimmed loss: leave out the examples whose labels look wrong. Biased on purpose.

Source: Shen and Sanghavi, "Learning with Bad Training Data via Iterative Trimmed Loss Minimization", ICML 2019,
arXiv 1810.11874. There the share to leave out is given; here it follows from the losses (`modes.py`), and what is left
out is looked at again now and then.

Shapes: n examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.policies.contract import Kind, check_within, known, shuffled
from sampler_service.policies.modes import two_modes
from sampler_service.types import Sweep, TableView


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmedLoss:
    """Keep examples of the upper mode of the losses with probability `revisit`, all others always, weight 1.

    Stands aside until the losses have two modes, `separation` apart. Epochs get shorter by what is left out.
    """

    name: ClassVar[str] = "trimmed_loss"
    unbiased = False
    needs: ClassVar[frozenset[str]] = frozenset({"loss"})
    kind: ClassVar[Kind] = "sweep"
    # Of losses that are fresh: what is left out has old ones, by design. Unknown ones are kept.
    min_coverage: ClassVar[float] = 0.0

    separation: float = 0.8
    """Share of the losses' variance that lies between the modes, in (0, 1), from which on anything is left out. Whole
    classes that are learnt late are lost with a lower one."""
    revisit: float = 0.1
    """Probability that an example of the upper mode is kept in an epoch, in (0, 1]."""

    def __post_init__(self) -> None:
        check_within(self.name, "separation", self.separation, "(0, 1)")
        check_within(self.name, "revisit", self.revisit, "(0, 1]")

    def rates(self, view: TableView, *, progress: float) -> Sweep:  # noqa: ARG002 - the contract's signature
        known_n = known(view, "loss")
        modes = two_modes(view.loss_n[known_n])
        if modes is None or self.aside(view):
            return shuffled(len(view))
        # Hard examples lie between the modes: they are kept.
        bound = (modes.threshold + modes.upper_mean) / 2
        keep_n = np.where(known_n & (view.loss_n > bound), self.revisit, 1.0)
        return Sweep(keep_n=keep_n, weight_n=np.ones(len(view), dtype=np.float32))

    def aside(self, view: TableView) -> str:
        modes = two_modes(view.loss_n[known(view, "loss")])
        if modes is None:
            return "too few losses to tell whether labels are wrong"
        if modes.two and modes.separation >= self.separation:
            return ""
        share, separation = modes.share, modes.separation
        return f"no label looks wrong: losses {separation:.2f} apart, {share:.0%} of them in the upper part"
