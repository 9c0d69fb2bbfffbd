"""RHO-LOSS: of every run of candidates take those that are learnable and not yet learnt. Biased on purpose.

Source: Mindermann et al., "Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet
Learnt", ICML 2022, arXiv 2206.07137. Shapes: n examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.policies.contract import Kind, check_within, known, shuffled
from sampler_service.types import Rates, Sweep, TableView


@dataclass(frozen=True, slots=True, kw_only=True)
class RhoLoss:
    """Score = loss - reference loss; batches are the highest `top_fraction` of the shuffled epoch, weight 1.

    The reference loss is that of a model trained on held-out data only, so an example that nobody can learn
    (a wrong label) scores low. The paper scores candidates by a fresh forward pass; here the last reported
    loss stands in.
    """

    name: ClassVar[str] = "rho_loss"
    unbiased = False
    needs: ClassVar[frozenset[str]] = frozenset({"reference_loss"})
    """Losses are not among them: an example without one is seen first, so they come by themselves."""
    kind: ClassVar[Kind] = "sweep"
    min_coverage: ClassVar[float] = 0.5

    top_fraction: float = 0.1
    """Share of the candidates that is trained on, in (0, 1]. 0.1 is the paper's (32 of 320; 0.2 on
    ImageNet)."""

    def __post_init__(self) -> None:
        check_within(self.name, "top_fraction", self.top_fraction, "(0, 1]")

    def rates(self, view: TableView, *, progress: float) -> Rates:  # noqa: ARG002 - the contract's signature
        plain = shuffled(len(view))
        if view.reference_loss_n is None:
            return plain
        score_n = view.loss_n - view.reference_loss_n
        known_n = np.isfinite(score_n)
        # An example without a reference is neither favoured nor shunned; one without a loss is seen first.
        score_n[~known_n] = score_n[known_n].mean() if known_n.any() else 0.0
        score_n[~known(view, "loss")] = np.inf
        return Sweep(keep_n=plain.keep_n, weight_n=plain.weight_n, score_n=score_n, top_fraction=self.top_fraction)

    def aside(self, view: TableView) -> str:
        return "the run has no reference losses" if view.reference_loss_n is None else ""
