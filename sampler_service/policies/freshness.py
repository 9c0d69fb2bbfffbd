"""How much an old report still says: half as much after each half-life.

Arrays are written in place: for a million examples fresh pages cost as much as the arithmetic.

Shapes: n examples, k clusters, g groups.
"""

from __future__ import annotations

import numpy as np

from sampler_service.policies.contract import known, steps
from sampler_service.types import NEVER, NO_CLUSTER, Float32, Float64, Int32, Int64, TableView


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
    norm_n = _known_values(view, "norm", view.norm_n)
    return _shrunk(norm_n, _norm_means(view, norm_n, fresh_n), fresh_n)


def aged_alignments(view: TableView, fresh_n: Float64) -> Float64:
    """(n,) the same of inner products with the held-out sketch, which must be there, and of the groups that the run was
    given, such as labels; without any all examples are one group."""
    assert view.alignment_n is not None
    alignment_n = _known_values(view, "alignment", view.alignment_n)
    return _shrunk(alignment_n, _means(alignment_n, fresh_n, view.group_n), fresh_n)


def fresh_means(view: TableView, fresh_n: Float64) -> Float64:
    """(n,) the mean m_i that `aged_norms` shrinks each norm toward."""
    return np.broadcast_to(_norm_means(view, _known_values(view, "norm", view.norm_n), fresh_n), len(view))


def _norm_means(view: TableView, norm_n: Float64, fresh_n: Float64) -> Float64:
    # 0: the examples without a cluster
    return _means(norm_n, fresh_n, view.cluster_n - NO_CLUSTER if len(view.cluster_sse_k) else None)


def _shrunk(value_n: Float64, mean_n: Float64, fresh_n: Float64) -> Float64:
    """f_i v_i + (1 - f_i) m_i, in the place of v."""
    value_n -= mean_n
    value_n *= fresh_n
    value_n += mean_n
    return value_n


def _means(value_n: Float64, fresh_n: Float64, group_n: Int32 | Int64 | None) -> Float64:
    """(n,) or, without groups 0 … g-1, () the means of fresh values."""
    total = float(fresh_n.sum())
    overall = float(fresh_n @ value_n) / total if total > 0 else 1.0
    if group_n is None:
        return np.array(overall)
    sum_g = np.bincount(group_n, fresh_n * value_n)
    fresh_g = np.bincount(group_n, fresh_n)
    return ((sum_g + overall) / (fresh_g + 1.0))[group_n]


def _known_values(view: TableView, need: str, value_n: Float32) -> Float64:
    """The column `need`, 0 where it is not known."""
    known_n = value_n.astype(np.float64)
    known_n[~known(view, need)] = 0.0
    return known_n
