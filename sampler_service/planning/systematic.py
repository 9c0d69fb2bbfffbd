"""How many rows of a batch come from each stratum: systematic sampling.

Points (u + j) / B, j = 0 … B-1, with one uniform offset u, fall on the cumulative rates; m_k of them fall on
stratum k. Then E[m_k] = B q_k exactly and |m_k - B q_k| < 1. Rounding by largest remainder is not a
substitute: its carry is lost whenever the rates change, so strata with B q_k < 1/2 starve, and the weights
1/q_k no longer undo the rates.

Source: Madow and Madow, "On the Theory of Systematic Sampling", Annals of Mathematical Statistics 15, 1944.
Shapes: k strata, s batches.
"""

from __future__ import annotations

import numpy as np

from sampler_service.types import Float64, Int64


def systematic_counts(rate_sk: Float64, size: int, offset_s: Float64) -> Int64:
    """Rows per stratum for each batch, strata taken in the order given.

    Args:
        rate_sk: (s, k) rates of the strata, at least 0, in units of which each row's sum is one batch.
        size: B, rows in a batch.
        offset_s: (s,) u of every batch, in [0, 1).

    Returns:
        (s, k) int64; rows sum to `size`, a stratum with rate 0 gets 0.
    """
    cumulative_sk = np.cumsum(rate_sk, axis=1)
    cumulative_sk /= cumulative_sk[:, -1:]
    # Points below c: all j with u + j < B c. Rounding must not lose the last point, so 1 stands for all of
    # them.
    below_sk = np.ceil(size * cumulative_sk - offset_s[:, None])
    below_sk[cumulative_sk >= 1] = size
    return np.diff(np.clip(below_sk, 0, size).astype(np.int64), axis=1, prepend=0)


def systematic_block(rate_k: Float64, size: int, *, num_batches: int, rng: np.random.Generator) -> Int64:
    """(num_batches, k) int64 rows per stratum; every batch has its own offset and its own order of the
    strata.

    The random order is what keeps strata that are neighbours in the list from being drawn in fixed company.
    """
    drawable_j = np.flatnonzero(rate_k)
    order_sj = np.argsort(rng.random((num_batches, len(drawable_j))), axis=1)
    count_sj = systematic_counts(rate_k[drawable_j][order_sj], size, rng.random(num_batches))
    count_sk = np.zeros((num_batches, len(rate_k)), dtype=np.int64)
    np.put_along_axis(count_sk, drawable_j[order_sj], count_sj, axis=1)
    return count_sk
