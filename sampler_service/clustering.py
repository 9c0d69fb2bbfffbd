"""Recluster a run's sketches, and say when it is due.

Partition and allocation must match: "hartigan" minimises J = sum_k N_k SSE_k and goes with equal draws from
every cluster, "kmeans" minimises sum_k SSE_k and goes with proportional or half-Neyman draws. One draw per
cluster on a k-means partition can be worse than no sampler (`benchmarks/variance.py` measures both).

Shapes: n examples, d sketch length, k clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.index.seeding import SAMPLE_PER_CLUSTER, means_with_reseeds, seed_centres
from sampler_service.index.statistics import ClusterStatistics
from sampler_service.shards import Shards
from sampler_service.types import Float64, Int32, Int64, freeze

METHODS = ("hartigan", "kmeans")

_TOLERANCE = 1e-3
"""share of the objective that a pass must gain for another to be worth its time"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Clusters of a run's examples, as they were when it was made."""

    cluster_n: Int32
    """Cluster of every example, 0 … k-1; NO_CLUSTER (-1) when it has no sketch."""
    size_k: Int64
    """N_k; 0 for a cluster that could not be filled (fewer distinct sketches than clusters)."""
    sse_k: Float64
    """Scatter, sum of squared distances to the mean."""
    mean_kd: Float64
    """C_k; zero where the cluster is empty."""
    objective_before: float
    """What the method minimises (J, or the inertia), over the rows clustered before the first pass."""
    objective: float
    """The same, now."""
    passes: int
    """Passes over the rows after seeding."""

    def __post_init__(self) -> None:
        freeze(self)

    def __len__(self) -> int:
        return len(self.size_k)

    @property
    def scatter(self) -> float:
        """Sum of squared distances of all clustered sketches to the mean of them all."""
        away_kd = self.mean_kd - self.size_k @ self.mean_kd / max(1, self.size_k.sum())
        return float(self.sse_k.sum() + self.size_k @ np.einsum("kd,kd->k", away_kd, away_kd))


def recluster(
    shards: Shards,
    *,
    num_clusters: int,
    method: str = "hartigan",
    seed: int = 0,
    warm: bool = True,
    max_passes: int = 10,
    timeout_s: float | None = None,
) -> Partition:
    """Partition every sketched example; passes stop when one improves the objective by less than 0.1 %.

    Args:
        num_clusters: k, at least 1.
        method: "hartigan" or "kmeans"; see the module's first lines for the allocation that goes with each.
        seed: of the sample and of k-means++; unused by a warm start.
        warm: start from the shards' present partition when it has k clusters (rows that are new join their
            best cluster) instead of from k-means on a sample.
        max_passes: of all rows, after seeding.
        timeout_s: bound on each call to the shards; None leaves it to them.

    Raises:
        ConfigError: an unknown method, k < 1, or no example has a sketch yet.
        Unavailable: a shard is away.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown clustering method {method!r}; choose one of {METHODS}")
    if num_clusters < 1:
        raise ConfigError(f"num_clusters must be at least 1, got {num_clusters}")
    statistics = shards.statistics(timeout_s)
    if not warm or len(statistics) != num_clusters or not statistics.count_k.any():
        sample_md = shards.sample_rows(SAMPLE_PER_CLUSTER * num_clusters, seed, timeout_s)
        if not len(sample_md):
            raise ConfigError("there is nothing to cluster: no example of this run has a sketch yet")
        statistics = shards.assign(seed_centres(sample_md, num_clusters, seed), timeout_s)
    objective_before = objective(statistics, method)
    passes = 0
    while passes < max_passes:
        before = objective(statistics, method)
        statistics, settled = _one_pass(shards, statistics, method, timeout_s)
        passes += 1
        if settled and objective(statistics, method) >= before * (1.0 - _TOLERANCE):
            break
    return Partition(
        cluster_n=shards.clusters(timeout_s),
        size_k=statistics.count_k,
        sse_k=statistics.sse_k,
        mean_kd=statistics.mean_kd,
        objective_before=objective_before,
        objective=objective(statistics, method),
        passes=passes,
    )


def objective(statistics: ClusterStatistics, method: str) -> float:
    """What the method minimises: J for "hartigan", the inertia for "kmeans"."""
    return statistics.objective if method == "hartigan" else statistics.inertia


def _one_pass(
    shards: Shards, statistics: ClusterStatistics, method: str, timeout_s: float | None
) -> tuple[ClusterStatistics, bool]:
    """Statistics after the pass, and whether the objectives before and after it are of the same rows."""
    if method == "hartigan":
        refined = shards.refine(timeout_s)
        return refined.statistics, refined.placed == 0
    rows_before = int(statistics.count_k.sum())
    statistics = shards.assign(means_with_reseeds(statistics), timeout_s)
    return statistics, int(statistics.count_k.sum()) == rows_before


def refresh_due(
    *,
    fresh_rows: int,
    num_examples: int,
    ratio: float = np.nan,
    learning_rate_dropped: bool = False,
    coverage: float = 0.5,
    worst_ratio: float = 0.9,
    least_coverage: float = 0.1,
) -> str | None:
    """Why a new partition is due, or None.

    Args:
        fresh_rows: sketches reported since the last refresh.
        ratio: the measured Var[policy] / Var[i.i.d.], NaN when unknown (`monitor.VarianceMonitor`).
        learning_rate_dropped: the trainer announced a lower learning rate since the last refresh.
        coverage: the share of the examples whose reports make a refresh due by themselves.
        worst_ratio: the ratio above which the partition is taken for stale.
        least_coverage: with fewer fresh rows than this share, a bad ratio alone changes nothing: the new
            partition would be made of the same old sketches.

    Returns:
        "learning_rate", "coverage", "ratio" or None.
    """
    share = fresh_rows / max(num_examples, 1)
    if learning_rate_dropped and fresh_rows > 0:
        return "learning_rate"
    if share >= coverage:
        return "coverage"
    if share >= least_coverage and ratio > worst_ratio:
        return "ratio"
    return None
