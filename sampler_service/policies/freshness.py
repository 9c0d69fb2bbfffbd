"""How much an old report still says: half as much after each half-life.

Shapes: n examples, k clusters.
"""

from __future__ import annotations

import numpy as np

from sampler_service.policies.contract import known, steps
from sampler_service.types import NEVER, NO_CLUSTER, Float64, TableView


def freshness(view: TableView, need: str, *, half_life: float) -> Float64:
    """(n,) 2^(-age / half_life) of the column `need`, 1 for a report of just now, 0 for none; half_life in epochs."""
    step_n = steps(view, need)
    fresh_n = np.exp2((step_n - view.step) / (half_life * view.epoch_steps))
    return np.where(known(view, need) & (step_n != NEVER), fresh_n, 0.0)


def aged_norms(view: TableView, fresh_n: Float64) -> Float64:
    """(n,) f_i norm_i + (1 - f_i) m_i: each norm, shrunk toward the fresh mean of its cluster as it grows old.

    m_i is the mean over the cluster's norms, each by its freshness f, and one more of the mean over all of them: a
    cluster that nobody has seen of late is like any other. An unknown norm counts as m_i; with none known all are 1.
    """
    return fresh_n * _known_norms(view) + (1 - fresh_n) * fresh_means(view, fresh_n)


def fresh_means(view: TableView, fresh_n: Float64) -> Float64:
    """(n,) the mean m_i that `aged_norms` shrinks each norm toward."""
    norm_n, total = _known_norms(view), float(fresh_n.sum())
    overall = float(fresh_n @ norm_n) / total if total > 0 else 1.0
    num_clusters = len(view.cluster_sse_k)
    if not num_clusters:
        return np.full(len(view), overall)
    group_n = np.where(view.cluster_n == NO_CLUSTER, num_clusters, view.cluster_n)
    sum_k = np.bincount(group_n, fresh_n * norm_n, num_clusters + 1)
    fresh_k = np.bincount(group_n, fresh_n, num_clusters + 1)
    return ((sum_k + overall) / (fresh_k + 1.0))[group_n]


def _known_norms(view: TableView) -> Float64:
    return np.where(known(view, "norm"), view.norm_n, 0.0).astype(np.float64)
