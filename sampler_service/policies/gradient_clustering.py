"""Strata of similar gradients, each with its share of every batch.

Source: Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning", arXiv 2007.04532 (equal
draws); Zhao and Zhang, "Accelerating Minibatch SGD using Stratified Sampling", arXiv 1405.3080 (Neyman
draws). The mix with proportional draws is ours: with q_k >= alpha N_k/N the variance of a batch is at most
1/alpha times that of uniform draws however stale the clusters are, and so is every weight N_k/(N q_k). That they count
the less the older they are is ours, too: with a_k the equal or Neyman share of a stratum, and f_k the mean of
2^(-age / half_life) over its sketches,

    t_k = f_k a_k + (1 - f_k) N_k/N,    q_k = (1 - alpha) t_k / sum(t) + alpha N_k/N.

Sketches of just now give the plain mix, and strata of very old ones come to their proportions.

Shapes: n examples, k strata (the clusters, then one for the examples without a cluster).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.policies.contract import Kind, check_within, shuffled
from sampler_service.policies.freshness import freshness
from sampler_service.types import NO_CLUSTER, Float64, Int64, Rates, StratifiedDraw, TableView

ALLOCATIONS = ("equal", "neyman")


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientClustering:
    """Draw from every cluster at rate q_k, uniformly inside it; weight N_k/(N q_k)."""

    name: ClassVar[str] = "gradient_clustering"
    unbiased = True
    needs: ClassVar[frozenset[str]] = frozenset({"cluster"})
    kind: ClassVar[Kind] = "draw"
    min_coverage: ClassVar[float] = 0.5

    alpha: float = 0.5
    """Share of proportional draws when all sketches are fresh, 0 … 1, never less; a smaller share gains more when
    fresh and loses more when stale."""
    allocation: str = "equal"
    """Equal draws belong to the partition that minimises sum N_k SSE_k, neyman draws to a k-means partition;
    one draw per k-means cluster can be worse than uniform sampling."""
    half_life: float = 3.0
    """Epochs in which a sketch loses half its say."""

    def __post_init__(self) -> None:
        if self.allocation not in ALLOCATIONS:
            raise ConfigError(
                f"policy {self.name!r}: option 'allocation' must be one of {ALLOCATIONS}, got {self.allocation!r}"
            )
        # A cluster of identical sketches has no scatter: without the mix, neyman would never draw from it.
        check_within(self.name, "alpha", self.alpha, "(0, 1]" if self.allocation == "neyman" else "[0, 1]")
        check_within(self.name, "half_life", self.half_life, "(0, inf)")

    def rates(self, view: TableView, *, progress: float) -> Rates:  # noqa: ARG002 - the contract's signature
        if self.aside(view):
            return shuffled(len(view))
        num_clusters = len(view.cluster_sse_k)
        stratum_n = np.where(view.cluster_n == NO_CLUSTER, num_clusters, view.cluster_n)
        size_k = np.bincount(stratum_n, minlength=num_clusters + 1)
        fresh_n = freshness(view, "cluster", half_life=self.half_life)
        fresh_k = np.bincount(stratum_n, fresh_n, num_clusters + 1) / np.maximum(size_k, 1)
        rate_k = self._rate(size_k, view.cluster_sse_k, fresh_k[:-1])
        return StratifiedDraw(stratum_n=stratum_n, rate_k=rate_k)

    def aside(self, view: TableView) -> str:
        return "" if (view.cluster_n != NO_CLUSTER).any() else "no example has a cluster yet"

    def predicted_ratio(self, view: TableView) -> float:
        """Variance of a batch over that of an i.i.d. one, as the clusters were when they were made: their scatter
        against the overall one, sum_k s_k^2 V_k / q_k over sum_k N_k (V_k + ||C_k - C||^2) / N with s_k = N_k / N and
        V_k = SSE_k / N_k. In sample, so it flatters; NaN without clusters."""
        rates = self.rates(view, progress=0.0)
        if not isinstance(rates, StratifiedDraw) or not view.cluster_scatter > 0:
            return math.nan
        size_k = np.bincount(rates.stratum_n, minlength=len(rates.rate_k))[:-1].astype(np.float64)
        total, rate_k = size_k.sum(), rates.rate_k[:-1] / rates.rate_k[:-1].sum()
        filled_k = size_k > 0
        drawn = (size_k * view.cluster_sse_k)[filled_k] / rate_k[filled_k]  # N^2 s_k^2 V_k / q_k
        return float(drawn.sum()) / (total * view.cluster_scatter)

    def _rate(self, size_k: Int64, cluster_sse_k: Float64, fresh_k: Float64) -> Float64:
        """Rates of all strata: the unclustered ones get their proportion, the clusters share the rest."""
        cluster_size_k, total = size_k[:-1], size_k.sum()
        proportional_k = cluster_size_k / cluster_size_k.sum()
        if self.allocation == "equal":
            sharp_k = (cluster_size_k > 0).astype(np.float64)
        else:  # N_k sqrt(V_k) with V_k = SSE_k / N_k, which is sqrt(N_k SSE_k)
            sharp_k = np.sqrt(cluster_size_k * np.maximum(cluster_sse_k, 0.0))
        scale = sharp_k.sum()
        sharp_k = sharp_k / scale if scale > 0 else proportional_k
        trusted_k = fresh_k * sharp_k + (1 - fresh_k) * proportional_k
        rate_k = (1 - self.alpha) * trusted_k / trusted_k.sum() + self.alpha * proportional_k
        unclustered = size_k[-1] / total
        return np.append((1 - unclustered) * rate_k, unclustered)
