"""Perfect ordering approximation: batches in the order in which they help most on held-out examples.

The source takes some candidate batches at each step, makes a real optimiser step on each, and keeps the one after which
the loss on a target batch fell most. To first order that drop is lr <gbar_target, gbar_batch>, so here a batch has the
inner product of its mean sketch with the mean sketch of held-out examples, which is the mean of its examples' own; no
step is made in vain. `sampler_client.pytorch.lookahead` is the source's exact form.

Source: Simionescu, "Deep Learning Training Procedure Augmentations", arXiv 2211.14395, and the authors' code, whose
target came from the test set; the form in sketches is ours. That the thesis' POA is that code is our reading. The
order is made when an epoch begins, from sketches of the one before: it holds where an epoch moves the model little, at
small learning rates or over few batches.

Shapes: n examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.policies.contract import Kind, check_within, known, shuffled
from sampler_service.types import BestOfSome, Rates, Sweep, TableView


@dataclass(frozen=True, slots=True, kw_only=True)
class Poa:
    """Every example once an epoch, weight 1; of `attempts` batches of the shuffled epoch the best comes next."""

    name: ClassVar[str] = "poa"
    unbiased = True
    needs: ClassVar[frozenset[str]] = frozenset({"alignment"})
    kind: ClassVar[Kind] = "sweep"
    min_coverage: ClassVar[float] = 0.5

    attempts: float = 8.0
    """Candidates for each step, a whole number; 1 leaves the order random, which is the control. 8 is the source's."""

    def __post_init__(self) -> None:
        check_within(self.name, "attempts", self.attempts, "[1, 1e9)", whole=True)

    def rates(self, view: TableView, *, progress: float) -> Rates:  # noqa: ARG002 - the contract's signature
        known_n = known(view, "alignment")
        if view.alignment_n is None or not known_n.any():
            return shuffled(len(view))
        # An example that was never sketched is neither favoured nor shunned.
        score_n = np.where(known_n, view.alignment_n, np.mean(view.alignment_n[known_n])).astype(np.float32)
        plain = shuffled(len(view))
        return Sweep(
            keep_n=plain.keep_n,
            weight_n=plain.weight_n,
            order=BestOfSome(score_n=score_n, attempts=int(self.attempts)),
        )

    def aside(self, view: TableView) -> str:
        return "" if known(view, "alignment").any() else "there is no sketch of held-out examples"
