"""ClusterStatistics: count, sum and square of the rows of each cluster; additive over shards.

Shapes: r rows, d sketch length, k clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sampler_service.types import Float64, Int64

Clusters = NDArray[np.integer]
Rows = NDArray[np.floating]


@dataclass(slots=True)
class ClusterStatistics:
    """Sufficient statistics of a partition, in fp64; rows can be put in and taken out.

    With N_k, C_k and SSE_k the size, mean and scatter of a cluster, equal draws from every cluster have the
    variance K / B N^-2 J with J = sum_k N_k SSE_k (Faghri et al., arXiv 2007.04532, Prop. 3.1), and
    proportional draws the variance of the k-means inertia, sum_k SSE_k / (N B).
    """

    count_k: Int64
    """Rows in each cluster."""
    sum_kd: Float64
    """Sum of the rows of each cluster."""
    square_k: Float64
    """Sum of the squared norms of the rows of each cluster."""

    @classmethod
    def zeros(cls, num_clusters: int, dim: int) -> ClusterStatistics:
        return cls(np.zeros(num_clusters, np.int64), np.zeros((num_clusters, dim)), np.zeros(num_clusters))

    def __len__(self) -> int:
        return len(self.count_k)

    def __add__(self, other: ClusterStatistics) -> ClusterStatistics:
        return ClusterStatistics(
            self.count_k + other.count_k, self.sum_kd + other.sum_kd, self.square_k + other.square_k
        )

    def copy(self) -> ClusterStatistics:
        return ClusterStatistics(self.count_k.copy(), self.sum_kd.copy(), self.square_k.copy())

    def insert(self, row_rd: Rows, cluster_r: Clusters) -> None:
        """Put rows (r, d) into clusters (r,), each 0 … k-1."""
        count_k, sum_kd, square_k = _totals(row_rd, cluster_r, len(self))
        self.count_k += count_k
        self.sum_kd += sum_kd
        self.square_k += square_k

    def remove(self, row_rd: Rows, cluster_r: Clusters) -> None:
        """Take rows (r, d) out of clusters (r,); they must have been put in with the same values."""
        count_k, sum_kd, square_k = _totals(row_rd, cluster_r, len(self))
        self.count_k -= count_k
        self.sum_kd -= sum_kd
        self.square_k -= square_k
        empty_k = self.count_k == 0  # leave no rounding residue behind
        self.sum_kd[empty_k] = 0.0
        self.square_k[empty_k] = 0.0

    @property
    def mean_kd(self) -> Float64:
        """Mean C_k of each cluster, (k, d); zero where it is empty."""
        return self.sum_kd / np.maximum(self.count_k, 1)[:, None]

    @property
    def sse_k(self) -> Float64:
        """Scatter of each cluster, sum of squared distances to its mean, (k,)."""
        mean_square_k = np.einsum("kd,kd->k", self.sum_kd, self.sum_kd) / np.maximum(self.count_k, 1)
        return np.maximum(self.square_k - mean_square_k, 0.0)

    @property
    def objective(self) -> float:
        """J = sum_k N_k SSE_k, what Gradient Clustering minimises."""
        return float(self.count_k @ self.sse_k)

    @property
    def inertia(self) -> float:
        """sum_k SSE_k, what k-means minimises."""
        return float(self.sse_k.sum())


def _totals(row_rd: Rows, cluster_r: Clusters, num_clusters: int) -> tuple[Int64, Float64, Float64]:
    """Count (k,), sum (k, d) and sum of squared norms (k,) of the rows of each cluster."""
    row_rd = np.asarray(row_rd, np.float64)
    count_k = np.bincount(cluster_r, minlength=num_clusters)
    square_k = np.zeros(num_clusters) + np.bincount(cluster_r, np.einsum("rd,rd->r", row_rd, row_rd), num_clusters)
    sum_kd = np.zeros((num_clusters, row_rd.shape[1]))
    if len(row_rd):
        order_r = np.argsort(cluster_r, kind="stable")
        present = np.flatnonzero(count_k)
        start = np.concatenate(([0], np.cumsum(count_k[present])[:-1]))
        sum_kd[present] = np.add.reduceat(row_rd[order_r], start, axis=0)
    return count_k, sum_kd, square_k
