"""First centres for a partition: FAISS k-means on a sample of the sketches.

Shapes: m sampled rows, n rows, d sketch length, k clusters.
"""

from __future__ import annotations

import numpy as np

from sampler_service.index import kernels
from sampler_service.index.statistics import ClusterStatistics
from sampler_service.types import Float32, Float64, Int32

SAMPLE_PER_CLUSTER = 256
"""rows per cluster that k-means looks at; more changes its centres little"""


def seed_centres(sample_md: Float32, num_clusters: int, seed: int) -> Float64:
    """Centres of k-means on a sample, (k, d) float64.

    With no more rows than clusters every row is a centre and the rest repeat the first one, so those clusters
    stay empty.

    Args:
        sample_md: (m, d) float32, finite, m >= 1.
    """
    if len(sample_md) <= num_clusters:
        index_k = np.where(np.arange(num_clusters) < len(sample_md), np.arange(num_clusters), 0)
        return sample_md[index_k].astype(np.float64)
    centre_d, scale = _frame(sample_md)
    scaled_md = ((sample_md - centre_d) * scale).astype(np.float32)
    return kernels.kmeans(scaled_md, num_clusters, seed) / scale + centre_d


def assign(row_nd: Float32, centre_kd: Float64) -> Int32:
    """The nearest centre of every row by L2, (n,) int32; the lowest number wins a tie."""
    if not len(row_nd):
        return np.empty(0, np.int32)
    centre_d, scale = _frame(centre_kd)
    scaled_nd = ((row_nd - centre_d) * scale).astype(np.float32)
    scaled_kd = ((centre_kd - centre_d) * scale).astype(np.float32)
    return kernels.nearest_centre(scaled_nd, scaled_kd).astype(np.int32)


def means_with_reseeds(statistics: ClusterStatistics) -> Float64:
    """Means for the next Lloyd pass, (k, d): each empty cluster takes half of the one with the most scatter.

    The two halves start close together on either side of its mean, as in FAISS, in a direction of their own.
    """
    mean_kd, sse_k = statistics.mean_kd, statistics.sse_k
    for empty in np.flatnonzero(statistics.count_k == 0):
        largest = int(np.argmax(sse_k))
        if sse_k[largest] <= 0.0:
            mean_kd[empty] = mean_kd[largest]
            continue
        width = np.sqrt(sse_k[largest] / statistics.count_k[largest] / mean_kd.shape[1]) / 64
        step_d = width * np.random.default_rng(int(empty)).standard_normal(mean_kd.shape[1])
        mean_kd[empty] = mean_kd[largest] + step_d
        mean_kd[largest] -= step_d
        sse_k[largest] /= 2
        sse_k[empty] = 0.0
    return mean_kd


def _frame(row_nd: Float32 | Float64) -> tuple[Float64, float]:
    """Mean (d,) and 1 / rms distance from it: centred, scaled rows lose least in fp32."""
    centre_d = row_nd.mean(axis=0, dtype=np.float64)
    spread = float(np.mean((row_nd - centre_d) ** 2)) * row_nd.shape[1]
    return centre_d, 1.0 / np.sqrt(spread) if spread > 0.0 else 1.0
