"""The choice among candidates by enumeration, for tests on both sides of the wire."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from sampler_client.pytorch.two_stage.choose import chances, systematic


def expected_coefficients_of_choice(
    score_c, weight_c, keep: int, *, mix: float, orders: Sequence[tuple[int, ...]] = ()
) -> np.ndarray:
    """(c,) E[(1/b) sum of the weights with which each candidate is kept], over these orders, default every one, and
    every offset."""
    chance_c = chances(score_c, weight_c, keep, mix=mix)
    expected = np.zeros(len(score_c))
    orders = orders or list(itertools.permutations(range(len(score_c))))
    for order in orders:
        cuts = np.unique(np.concatenate(([0, 1], np.mod(np.cumsum(chance_c[list(order)]), 1).round(12))))
        for low, high in itertools.pairwise(cuts):
            index = systematic(chance_c, np.array(order), (low + high) / 2)
            assert len(set(index)) == keep, "as many as asked for, each once"
            weight_b = weight_c[index] * (keep / len(chance_c)) / chance_c[index]
            np.add.at(expected, index, (high - low) / len(orders) * weight_b / keep)
    return expected
