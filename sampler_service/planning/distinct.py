"""Weighted draws without replacement: one example after another, each in proportion to the weights of those left.

An example with weight w gets the key log(E / w), E exponential; the smallest keys are the draw, and their order is the
order of drawing. It needs one pass whatever the weights are, where drawing one by one needs one for each draw.

Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir", Information Processing Letters 97, 2006,
whose key u^(1/w) this is after two logarithms, without which light weights underflow. Shapes: n examples, m draws.
"""

from __future__ import annotations

import numpy as np

from sampler_service.types import Float64, Int64


def draw_distinct(weight_n: Float64, count: int, rng: np.random.Generator) -> Int64:
    """(m,) int64 different ids in the order of drawing.

    Args:
        weight_n: (n,) finite, at least 0. An example with weight 0 is never drawn.
        count: m, at most the number of positive weights.
    """
    id_n = np.flatnonzero(weight_n)
    with np.errstate(divide="ignore"):  # an exponential of exactly 0 comes first
        key_n = np.log(rng.standard_exponential(len(id_n))) - np.log(weight_n[id_n])
    if count < len(id_n):
        first_m = np.argpartition(key_n, count)[:count]
        id_n, key_n = id_n[first_m], key_n[first_m]
    return id_n[np.argsort(key_n, kind="stable")].astype(np.int64, copy=False)
