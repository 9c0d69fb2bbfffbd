"""Draws with given probabilities, whole blocks of batches at a time: nested systematic sampling.

A block of s batches of size b takes s b evenly spaced points, with one random offset, on the cumulative
weights of the examples in random order. Each run of s neighbouring points is dealt to the s batches in random
order. A batch thus gets one uniform point in each b-th part of the total, so E[copies of i] = b p_i exactly
and the batch is spread over the order; and the block's points are evenly spaced, so it draws i between floor
and ceil of s b p_i times: almost without replacement. Inside a block no batch is preferred, since the dealing
is random.

Source: Madow and Madow 1944 (systematic sampling); Chen and Asau, "On generating random variates from an
empirical distribution", AIIE Transactions 6, 1974 (the guide table).

Shapes: n examples, g guide cells, s batches, b batch size, m = s b points.
"""

from __future__ import annotations

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.types import Float64, Int64

_ENTRIES_PER_CELL = 8  # 2 to 16 draw about equally fast; more entries make a shorter guide
_CHUNK = 1 << 17  # running sums put into cells at a time: what fits in a processor's cache


class WeightedDrawer:
    """Draws from up to 2^31 examples; float64 throughout, so that no entry drowns in the running sum."""

    def __init__(self, weight_n: Float64, rng: np.random.Generator) -> None:
        """Fix a random order of the examples and take the weights.

        Args:
            weight_n: (n,) at least 0, in any unit. An example with weight 0 is never drawn.

        Raises:
            ConfigError: a weight is negative, NaN or infinite (the message has its index), or all are zero.
        """
        num_examples = len(weight_n)
        self._order_n = rng.permutation(np.arange(num_examples, dtype=np.int32))
        self._num_cells = -(-num_examples // _ENTRIES_PER_CELL)
        # Kept from refresh to refresh: fresh pages for arrays of this size cost as much as the arithmetic.
        self._cumulative_n = np.empty(num_examples)
        self._first_g = np.empty(self._num_cells + 2, dtype=np.int64)
        self.refresh(weight_n)

    def refresh(self, weight_n: Float64) -> None:
        """Replace all weights, keeping the order; O(n). Raises ConfigError as `__init__` does, changing nothing."""
        check_weights(weight_n)
        weight_n.take(self._order_n, out=self._cumulative_n, mode="clip")
        np.cumsum(self._cumulative_n, out=self._cumulative_n)
        self.total = float(self._cumulative_n[-1])
        self._make_guide()

    def _make_guide(self) -> None:
        """For each cell, the number of running sums in lower cells: where the search for its points begins.

        Sums in a lower cell than a point's are below the point, in a higher one above it: the same monotone
        function makes both cells, so rounding cannot break the bracket.
        """
        self._first_g.fill(0)
        for low in range(0, len(self._cumulative_n), _CHUNK):
            cell_c = self._cell(self._cumulative_n[low : low + _CHUNK])
            count_g = np.bincount(cell_c - cell_c[0])
            self._first_g[cell_c[0] + 1 : cell_c[0] + 1 + len(count_g)] += count_g
        np.cumsum(self._first_g, out=self._first_g)

    def _cell(self, sum_m: Float64) -> Int64:
        return (sum_m / self.total * self._num_cells).astype(np.int64)

    def draw(self, *, num_batches: int, size: int, rng: np.random.Generator) -> Int64:
        """(num_batches, size) int64 example ids, each batch in random order."""
        point_m = (rng.random() + np.arange(num_batches * size)) * (self.total / (num_batches * size))
        point_m = np.minimum(point_m, np.nextafter(self.total, 0))
        id_m = self._order_n.take(self._locate(point_m)).astype(np.int64)
        dealt_bs = rng.permuted(id_m.reshape(size, num_batches), axis=1)
        return rng.permuted(dealt_bs.T, axis=1)

    def _locate(self, point_m: Float64) -> Int64:
        """First place in the order whose running sum exceeds the point, by bisection from the guide on."""
        cell_m = self._cell(point_m)
        place_m = self._first_g.take(cell_m)
        width = int((self._first_g.take(cell_m + 1) - place_m).max())
        step = (1 << width.bit_length()) >> 1
        while step:  # the place sought is fewer than 2 step ahead; past the end nothing is passed over
            place_m += step * (self._cumulative_n.take(place_m + (step - 1), mode="clip") <= point_m)
            step >>= 1
        return place_m


def check_weights(weight_n: Float64) -> None:
    """Raise ConfigError unless weights (n,) can be drawn by: finite, at least 0, with a positive and finite sum."""
    with np.errstate(over="ignore"):  # reported below, in our own words
        total = float(weight_n.sum())
    # Two passes find that something is wrong; only then do we look for what. A NaN fails both comparisons.
    if not (np.min(weight_n) >= 0 and 0 < total < np.inf):
        raise ConfigError(_complaint(weight_n))


def _complaint(weight_n: Float64) -> str:
    bad = np.flatnonzero(~((weight_n >= 0) & np.isfinite(weight_n)))
    if len(bad):
        return f"weight {weight_n[bad[0]]} of example {bad[0]} must be finite and at least 0 ({len(bad)} such)"
    if np.any(weight_n > 0):
        return f"the sum of the weights overflows; example {np.argmax(weight_n)} has {weight_n.max()}"
    return f"all {len(weight_n)} weights are 0, from example 0 on; at least one must be positive"
