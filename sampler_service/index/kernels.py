"""The calls into FAISS, and the only place that knows of devices.

Every search asks `num_gpus()` first and takes the CPU when there is none: `knn_gpu` aborts the whole process
without a GPU, and `get_num_gpus` exists in the CPU wheel too. With a GPU and the faiss-gpu wheel the same
calls run there, and nothing else changes.

Shapes: q query rows, n base rows, d length, k centres or neighbours.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import faiss
import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.types import Float32, Int64

_GPU_SCRATCH_BYTES = 256 << 20

_METRICS = {"l2": faiss.METRIC_L2, "inner_product": faiss.METRIC_INNER_PRODUCT}


def num_gpus() -> int:
    """GPUs that FAISS can use; 0 with the CPU wheel or on a machine without one."""
    return faiss.get_num_gpus()


def set_threads(count: int) -> None:
    """Set the OpenMP threads of FAISS in this process: an actor's number of CPUs, never more.

    Set OMP_WAIT_POLICY=PASSIVE in the process's environment as well: spinning on a busy core costs 15x.
    """
    if count < 1:
        raise ConfigError(f"FAISS needs at least one thread, got {count}")
    faiss.omp_set_num_threads(count)


def knn(query_qd: Float32, base_nd: Float32, k: int, metric: str = "l2") -> tuple[Float32, Int64]:
    """The k best base rows of each query, exactly, best first.

    Args:
        query_qd: (q, d) float32, finite.
        base_nd: (n, d) float32, finite, n >= 1.
        k: 1 … n.
        metric: "l2" (squared distance, smallest first) or "inner_product" (largest first).

    Returns:
        score (q, k) float32 and row (q, k) int64.

    Raises:
        ConfigError: an unknown metric, or k outside 1 … n.
    """
    if metric not in _METRICS:
        raise ConfigError(f"unknown metric {metric!r}; choose one of {sorted(_METRICS)}")
    if not 1 <= k <= len(base_nd):
        raise ConfigError(f"k must be 1 … {len(base_nd)} (rows searched), got {k}")
    query_qd, base_nd = np.ascontiguousarray(query_qd, np.float32), np.ascontiguousarray(base_nd, np.float32)
    if not len(query_qd):
        return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
    if num_gpus() > 0:
        return faiss.knn_gpu(_gpu_resources(), query_qd, base_nd, k, metric=_METRICS[metric])
    return faiss.knn(query_qd, base_nd, k, metric=_METRICS[metric])


def nearest_centre(row_nd: Float32, centre_kd: Float32) -> Int64:
    """The nearest centre of every row by L2, (n,) int64."""
    return knn(row_nd, centre_kd, 1)[1][:, 0]


def largest_inner_product(query_qd: Float32, base_kd: Float32) -> tuple[Float32, Int64]:
    """The base row with the largest inner product: score (q,) float32 and row (q,) int64."""
    score_q1, row_q1 = knn(query_qd, base_kd, 1, metric="inner_product")
    return score_q1[:, 0], row_q1[:, 0]


def kmeans(row_nd: Float32, num_clusters: int, seed: int, iterations: int = 20) -> Float32:
    """Centres of Lloyd's k-means from a k-means++ start (a random one if the wheel lacks it).

    Args:
        row_nd: (n, d) float32, finite, n >= num_clusters; all of it is used, so pass a sample.

    Returns:
        (k, d) float32.

    Raises:
        ConfigError: fewer rows than clusters.
    """
    if len(row_nd) < num_clusters:
        raise ConfigError(f"k-means needs at least {num_clusters} rows for as many clusters, got {len(row_nd)}")
    options: dict[str, Any] = {"min_points_per_centroid": 1, "max_points_per_centroid": len(row_nd)}
    if hasattr(faiss, "ClusteringInitMethod_KMEANS_PLUS_PLUS"):
        options["init_method"] = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    gpu = num_gpus() > 0
    seed = seed % (1 << 31)  # FAISS keeps it in a C int
    clustering = faiss.Kmeans(row_nd.shape[1], num_clusters, niter=iterations, seed=seed, gpu=gpu, **options)
    clustering.train(np.ascontiguousarray(row_nd, np.float32))
    return np.array(clustering.centroids, np.float32)


@cache
def _gpu_resources() -> Any:
    resources = faiss.StandardGpuResources()  # pyright: ignore[reportAttributeAccessIssue]
    resources.setTempMemory(_GPU_SCRATCH_BYTES)  # the default takes 18 % of the card
    return resources
