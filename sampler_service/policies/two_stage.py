"""The first stage of two-stage selection: what was known of the examples proposes candidates.

The trainer scores them by a forward pass and keeps the best, without bias (`sampler_client.pytorch.two_stage`).
Scores grow old: an example's own counts for less the longer ago it was reported, and the fresh mean of its cluster
for more, which makes the rates flatter where the table knows less.

Source: ours; mixing with uniform draws as in `importance.py`.

Shapes: n examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.policies.contract import Kind, check_within, known
from sampler_service.policies.freshness import aged_norms, fresh_means, freshness
from sampler_service.types import Float64, Rates, TableView, WeightedDraw

PROPOSALS = ("norm", "cluster", "both")

FIRST_ALPHA = 0.3
"""until the run knows better"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoStage:
    """Propose example i with p_i = (1 - alpha) s_i / sum(s) + alpha / n; s is its norm, seen through its age."""

    name: ClassVar[str] = "two_stage"
    unbiased = True
    needs: ClassVar[frozenset[str]] = frozenset()  # without any scores it proposes evenly, and gets some
    uses: ClassVar[frozenset[str]] = frozenset({"cluster"})  # where there are sketches
    kind: ClassVar[Kind] = "draw"
    min_coverage: ClassVar[float] = 0.0

    alpha: float = 0.0
    """Share of uniform proposals, in (0, 1]; 0: the run adapts it to what fresh scores say of the old ones."""
    propose: str = "both"
    """"norm": by each example's own norm; "cluster": by the mean norm of its cluster; "both": from the one to the
    other as the example's report grows old."""
    half_life: float = 1.0
    """Epochs in which an example's own norm loses half its say, under "both"."""

    def __post_init__(self) -> None:
        check_within(self.name, "alpha", self.alpha, "[0, 1]")
        check_within(self.name, "half_life", self.half_life, "(0, inf)")
        if self.propose not in PROPOSALS:
            raise ConfigError(
                f"policy {self.name!r}: option 'propose' must be one of {PROPOSALS}, got {self.propose!r}"
            )

    def rates(self, view: TableView, *, progress: float) -> Rates:  # noqa: ARG002 - the contract's signature
        score_n = self._score(view)
        total = score_n.sum()
        uniform = np.full(len(view), 1 / len(view))
        share_n = score_n / total if total > 0 else uniform
        alpha = self.alpha or FIRST_ALPHA
        return WeightedDraw(probability_n=(1 - alpha) * share_n + alpha * uniform)

    def aside(self, view: TableView) -> str:  # noqa: ARG002 - the run's stage monitor decides, by what scoring pays
        return ""

    def _score(self, view: TableView) -> Float64:
        """s (n,)."""
        known_n = known(view, "norm")
        fresh_n = freshness(view, "norm", half_life=self.half_life)
        if self.propose == "both" or not known_n.any():
            return aged_norms(view, fresh_n)
        mean_n = fresh_means(view, fresh_n)
        return np.where(known_n, view.norm_n, mean_n) if self.propose == "norm" else mean_n
