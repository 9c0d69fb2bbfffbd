"""How much an old report still says: half as much after each half-life.

Arrays are written in place: for a million examples fresh pages cost as much as the arithmetic.

Shapes: n examples, k clusters.
"""

from __future__ import annotations

import numpy as np

from sampler_service.policies.contract import known, steps
from sampler_service.types import NEVER, NO_CLUSTER, Float64, TableView


def freshness(view: TableView, need: str, *, half_life: float) -> Float64:
    """(n,) 2^(-age / half_life) of the column `need`, 1 for a report of just now, 0 for none; half_life in epochs."""
    step_n = steps(view, need)
    fresh_n = np.subtract(step_n, view.step, dtype=np.float64)
    fresh_n /= half_life * view.epoch_steps
    np.exp2(fresh_n, out=fresh_n)
    fresh_n[~known(view, need) | (step_n == NEVER)] = 0.0
    return fresh_n


def aged_norms(view: TableView, fresh_n: Float64) -> Float64:
    """(n,) f_i norm_i + (1 - f_i) m_i: each norm, shrunk toward the fresh mean of its cluster as it grows old.

    m_i is the mean over the cluster's norms, each by its freshness f, and one more of the mean over all of them: a
    cluster that nobody has seen of late is like any other. An unknown norm counts as m_i; with none known all are 1.
    """
    norm_n = _known_norms(view)
    mean_n = _means(view, norm_n, fresh_n)
    norm_n -= mean_n
    norm_n *= fresh_n
    norm_n += mean_n
    return norm_n


def fresh_means(view: TableView, fresh_n: Float64) -> Float64:
    """(n,) the mean m_i that `aged_norms` shrinks each norm toward."""
    return np.broadcast_to(_means(view, _known_norms(view), fresh_n), len(view))


def _means(view: TableView, norm_n: Float64, fresh_n: Float64) -> Float64:
    """(n,) or, without clusters, () the means of fresh norms."""
    total = float(fresh_n.sum())
    overall = float(fresh_n @ norm_n) / total if total > 0 else 1.0
    num_clusters = len(view.cluster_sse_k)
    if not num_clusters:
        return np.array(overall)
    group_n = view.cluster_n - NO_CLUSTER  # 0: the examples without a cluster
    sum_k = np.bincount(group_n, fresh_n * norm_n, num_clusters + 1)
    fresh_k = np.bincount(group_n, fresh_n, num_clusters + 1)
    return ((sum_k + overall) / (fresh_k + 1.0))[group_n]


def _known_norms(view: TableView) -> Float64:
    norm_n = view.norm_n.astype(np.float64)
    norm_n[~known(view, "norm")] = 0.0
    return norm_n
