"""What can be said of how a run samples: how even its draws are, and what they save. Pure.

Shapes: n examples, r rows, k strata or clusters, d sketch length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sampler_service.monitor import Window, effective_sample_size
from sampler_service.planning import draws
from sampler_service.types import Float32, Float64, Int32, Int64, Rates, StratifiedDraw, Sweep, WeightedDraw
from sampler_service.views import Histogram

POWERS = np.concatenate([[-np.inf], 2.0 ** np.arange(-6, 6.5, 0.5), [np.inf]])
"""edges for factors around 1: half octaves from 1/64 to 64"""

RANKED_ROWS = 1 << 16
"""examples at most, by whose scores the others are ranked"""

COUNTS = np.concatenate([[0.0], 2.0 ** np.arange(0, 25), [np.inf]])
"""edges for steps and other counts: 0, 1, 2-3, 4-7, …"""


def histogram(values: Float32 | Float64 | Int64, edges: Float64) -> Histogram:
    """How many of the values, none of them NaN, are between the edges; each bin has its lower edge in it."""
    bin_r = np.searchsorted(edges[1:-1], values, side="right")
    counts = np.bincount(bin_r, minlength=len(edges) - 1)
    return Histogram(edges=edges.tolist(), counts=counts.tolist(), sum=float(np.sum(values, dtype=np.float64)))


def lead_histogram(leads: Counter[int]) -> Histogram:
    """Batches by the lead that they were handed out with."""
    lead, times = (np.array(list(part), dtype=np.int64) for part in (leads.keys(), leads.values()))
    counts = np.bincount(np.searchsorted(COUNTS[1:-1], lead, side="right"), times, len(COUNTS) - 1)
    return Histogram(edges=COUNTS.tolist(), counts=counts.astype(int).tolist(), sum=float(lead @ times))


def expected_draws(
    rates: Rates, size_k: Float64 | None, example_ids: Int64, global_batch_size: int | None = None
) -> Float64:
    """Of each of these examples (r,) in n draws, an epoch's worth; for sweeps the probability of being kept.

    Args:
        rates: by which it is drawn.
        size_k: N_k (k,) of stratified draws.
        example_ids: (r,)
        global_batch_size: that a sweep cuts to the highest scores by; None: nothing is planned yet, all are visited.
    """
    if isinstance(rates, WeightedDraw):
        return rates.probability_n[example_ids] * rates.over
    if isinstance(rates, StratifiedDraw):
        assert size_k is not None, "made with the rates"
        stratum_r = rates.stratum_n[example_ids]
        return (rates.rate_k * rates.over / np.maximum(size_k, 1.0))[stratum_r]
    if rates.score_n is not None and global_batch_size is not None:
        return _chance_of_top(rates, rates.score_n, example_ids, global_batch_size)
    return rates.keep_n[example_ids].astype(np.float64)


def _chance_of_top(rates: Sweep, score_n: Float32, example_ids: Int64, size: int) -> Float64:
    """(r,) that an example is among the `size` highest of the `size / top_fraction` that its turn comes with.

    The share of higher scores among those is about normal around that among all, and where scores are equal each place
    is equally likely; the normal distribution is taken for a logistic one, which is off by 0.01 at most.
    """
    fraction, run = rates.top_fraction, size / rates.top_fraction
    if fraction >= 1:
        return np.ones(len(example_ids))
    score_m = score_n if not rates.alive else score_n[rates.keep_n > 0]
    score_m = np.sort(score_m[:: max(1, len(score_m) // RANKED_ROWS)])
    higher_r = 1 - np.searchsorted(score_m, score_n[example_ids], side="right") / len(score_m)
    not_lower_r = 1 - np.searchsorted(score_m, score_n[example_ids], side="left") / len(score_m)
    not_lower_r = np.maximum(not_lower_r, higher_r + 1 / len(score_m))
    slope = 1.702 / np.sqrt(fraction * (1 - fraction) / run)
    from_r, to_r = (np.logaddexp(0.0, slope * (fraction - share_r)) for share_r in (higher_r, not_lower_r))
    return (from_r - to_r) / (slope * (not_lower_r - higher_r))


def principal_axes(mean_kd: Float64, size_k: Int64) -> Float64:
    """(k, 2) coordinates of cluster means on the two axes along which they differ most, each mean by its size. The
    longer half of each axis is to the positive side."""
    if not len(mean_kd) or not size_k.any():
        return np.zeros((len(mean_kd), 2))
    away_kd = mean_kd - np.average(mean_kd, axis=0, weights=size_k)
    _, axis_dd = np.linalg.eigh((away_kd * size_k[:, None]).T @ away_kd)
    axis_d2 = axis_dd[:, ::-1][:, :2]
    at_k2 = np.zeros((len(mean_kd), 2))
    at_k2[:, : axis_d2.shape[1]] = away_kd @ axis_d2
    sign_2 = np.where(at_k2.max(0) >= -at_k2.min(0), 1.0, -1.0)
    return at_k2 * sign_2


def redundancy(mean_kd: Float64, sse_k: Float64, size_k: Int64) -> Float64:
    """(k,) share of each cluster's second moment, beyond one example's, that its mean explains."""
    mean_square_k = np.einsum("kd,kd->k", mean_kd, mean_kd)
    size_k = np.maximum(size_k, 1)
    second_k = mean_square_k + sse_k / size_k
    # The mean of m unrelated gradients explains 1/m of their second moment; that is no redundancy.
    explained_k = np.divide(mean_square_k, second_k, out=np.zeros_like(second_k), where=second_k > 0)
    alone_k = 1.0 / size_k
    return np.where(size_k > 1, np.clip((explained_k - alone_k) / np.where(size_k > 1, 1 - alone_k, 1.0), 0, 1), 0.0)


def mean_by(cluster_r: Int32, value_r: Float32, num_clusters: int) -> Float64:
    """(k,) mean of the values of each cluster; NaN where there is none. Rows without cluster or value are left out."""
    known_r = (cluster_r >= 0) & ~np.isnan(value_r)
    cluster_r, value_r = cluster_r[known_r], value_r[known_r]
    count_k = np.bincount(cluster_r, minlength=num_clusters)
    sum_k = np.bincount(cluster_r, value_r, num_clusters)
    return np.divide(sum_k, count_k, out=np.full(num_clusters, np.nan), where=count_k > 0)


def count_quantile(counts: Sequence[int], share: float) -> float:
    """The value that `share` of these whole numbers do not exceed; NaN of none."""
    return float(np.quantile(counts, share, method="inverted_cdf")) if counts else float("nan")


def stratum_sizes(rates: Rates) -> Float64 | None:
    """N_k (k,) of stratified draws; None for other rates. Costs O(n): made once for each new rates."""
    if not isinstance(rates, StratifiedDraw):
        return None
    return draws.stratum_sizes(rates).astype(np.float64)


def measured_ratio(window: Window, rates: Rates, size_k: Float64 | None, batch_size: int) -> float:
    """Variance of a global batch over that of an i.i.d. one, from fresh reports; NaN for sweeps, for draws that are
    biased on purpose, or of too few reports."""
    if isinstance(rates, StratifiedDraw):
        return window.ratio_to_iid(size_k=size_k, rate_k=rates.rate_k, batch_size=batch_size)
    return window.ratio_to_iid() if isinstance(rates, WeightedDraw) and rates.unbiased else float("nan")


def effective_sample_ratio(rates: Rates, size_k: Float64 | None) -> float:
    """Effective sample size of one draw over n: 1 when all examples are equally likely."""
    if isinstance(rates, StratifiedDraw) and size_k is not None:
        # sum_i p_i^2 = sum_k q_k^2 / N_k
        return 1.0 / (float(rates.rate_k**2 @ (1.0 / np.maximum(size_k, 1.0))) * float(size_k.sum()))
    if isinstance(rates, WeightedDraw):
        return effective_sample_size(rates.probability_n) / rates.over
    if isinstance(rates, StratifiedDraw):
        return float("nan")
    return effective_sample_size(rates.keep_n / rates.keep_n.sum()) / rates.over
