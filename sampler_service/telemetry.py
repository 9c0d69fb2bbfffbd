"""What can be said of how a run samples: how even its draws are, and what they save. Pure.

Shapes: n examples, k strata.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from sampler_service.monitor import VarianceMonitor, effective_sample_size
from sampler_service.types import Float64, Rates, StratifiedDraw, WeightedDraw


def lead_quantile(leads: Counter[int], share: float) -> float:
    """The lead that `share` of the batches did not exceed when they were lent; NaN before the first."""
    below, wanted = 0, share * leads.total()
    for lead, count in sorted(leads.items()):
        below += count
        if below >= wanted:
            return float(lead)
    return float("nan")


def stratum_sizes(rates: Rates) -> Float64 | None:
    """N_k (k,) of stratified draws; None for other rates. Costs O(n): made once for each new rates."""
    if not isinstance(rates, StratifiedDraw):
        return None
    return np.bincount(rates.stratum_n, minlength=len(rates.rate_k)).astype(np.float64)


def measured_ratio(monitor: VarianceMonitor, rates: Rates, size_k: Float64 | None, batch_size: int) -> float:
    """Variance of a global batch over that of an i.i.d. one, from fresh reports; NaN for sweeps or too few reports."""
    if isinstance(rates, StratifiedDraw):
        return monitor.ratio_to_iid(size_k=size_k, rate_k=rates.rate_k, batch_size=batch_size)
    return monitor.ratio_to_iid() if isinstance(rates, WeightedDraw) else float("nan")


def effective_sample_ratio(rates: Rates, size_k: Float64 | None) -> float:
    """Effective sample size of one draw over n: 1 when all examples are equally likely."""
    if isinstance(rates, StratifiedDraw) and size_k is not None:
        # sum_i p_i^2 = sum_k q_k^2 / N_k
        return 1.0 / (float(rates.rate_k**2 @ (1.0 / np.maximum(size_k, 1.0))) * float(size_k.sum()))
    if isinstance(rates, WeightedDraw):
        return effective_sample_size(rates.probability_n) / len(rates.probability_n)
    if isinstance(rates, StratifiedDraw):
        return float("nan")
    return effective_sample_size(rates.keep_n / rates.keep_n.sum()) / len(rates.keep_n)
