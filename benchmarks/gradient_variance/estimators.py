"""Variance of every coordinate of mean-gradient estimates at one parameter vector, in closed form, and its summary.

All estimators are unbiased, so they share the mean. Draws are with replacement, as in the paper's Proposition 3.1.

Shapes: n examples, k strata, p coordinates.
"""

from __future__ import annotations

import numpy as np

from sampler_service.types import Float32, Float64, Int32, Int64, StratifiedDraw


def iid_variance(row_np: Float32) -> Float64:
    """(p,) of one uniform draw; a batch of B has 1/B of it."""
    return row_np.var(axis=0, dtype=np.float64)


def stratified_variance(row_np: Float32, draw: StratifiedDraw) -> Float64:
    """(p,) B times that of a batch of B with B q_k draws of stratum k: sum_k (N_k/N)^2 V_k / q_k.

    A draw's weight is N_k / (N q_k). With one draw of every stratum this is Proposition 3.1 of arXiv 2007.04532.
    """
    total_p = np.zeros(row_np.shape[1])
    for k in np.unique(draw.stratum_n):
        members_mp = row_np[draw.stratum_n == k]
        share = len(members_mp) / len(row_np)
        total_p += share**2 / draw.rate_k[k] * iid_variance(members_mp)
    return total_p


def svrg_variance(row_np: Float32, snapshot_np: Float32) -> Float64:
    """(p,) of one draw of g_i - h_i + mean(h), h_i an example's gradient at the snapshot (Johnson and Zhang, 2013)."""
    return iid_variance(row_np - snapshot_np)


def one_of_each(cluster_n: Int32 | Int64) -> StratifiedDraw:
    """The paper's draws: equally many from every cluster that has members."""
    size_k = np.bincount(cluster_n)
    return StratifiedDraw(stratum_n=cluster_n.astype(np.int32), rate_k=(size_k > 0) / np.count_nonzero(size_k))


def normalised(variance_p: Float64, mean_p: Float64) -> float:
    """The paper's normalised variance: mean over coordinates of Var[g_j] / E[g_j^2].

    Both moments are exact here; the paper estimates them from two sets of T batches, whose quotient tends to 1 + 1/T
    where noise is all there is, and adds 1e-7 to the denominator. As there, a coordinate that is always zero counts 0.
    """
    moment_p = variance_p + mean_p**2
    return float(np.divide(variance_p, moment_p, out=np.zeros_like(moment_p), where=moment_p > 0).mean())
