"""Selective-Backprop: keep an example with a probability that rises with its loss. Biased on purpose.

Source: Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", arXiv 1910.00762.
Shapes: n examples, r of them with a known loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.policies.contract import Kind, check_within, known
from sampler_service.types import Sweep, TableView


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectiveBackprop:
    """Keep example i with probability max(s_min, CDF(loss_i)^beta), weight 1; unknown losses are kept.

    Chases label noise: an example that can never be learnt is kept for ever.
    """

    name: ClassVar[str] = "selective_backprop"
    unbiased = False
    needs: ClassVar[frozenset[str]] = frozenset({"loss"})
    kind: ClassVar[Kind] = "sweep"
    min_coverage: ClassVar[float] = 0.0  # the first epoch, with no losses, keeps everything, as in the paper

    beta: float = 3.0
    """Sharpness, at least 0; about 1/(1 + beta) of the examples are kept. 3 is the default of the authors'
    code."""
    s_min: float = 0.05
    """Least keep probability, in (0, 1]. The authors use 0, under which an example once easy is never seen
    again and its loss never corrected; 0.05 revisits it every 20 epochs or so and adds 1.4 % to the examples
    kept."""

    def __post_init__(self) -> None:
        check_within(self.name, "beta", self.beta, "[0, inf)")
        check_within(self.name, "s_min", self.s_min, "(0, 1]")

    def rates(self, view: TableView, *, progress: float) -> Sweep:  # noqa: ARG002 - the contract's signature
        known_n = known(view, "loss")
        loss_r = view.loss_n[known_n]
        # Share of the known losses that are not larger: equal losses get equal rates, the largest is kept.
        rising_r = np.argsort(loss_r)
        loss_r = loss_r[rising_r]  # searching for rising keys is ten times as quick
        cdf_r = np.empty(len(loss_r))
        cdf_r[rising_r] = np.searchsorted(loss_r, loss_r, side="right") / max(len(loss_r), 1)
        keep_n = np.ones(len(view))
        keep_n[known_n] = np.maximum(cdf_r**self.beta, self.s_min)
        return Sweep(keep_n=keep_n, weight_n=np.ones(len(view), dtype=np.float32))

    def aside(self, view: TableView) -> str:  # noqa: ARG002 - the contract's signature
        return ""
