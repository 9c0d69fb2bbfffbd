"""Balanced orders over shards: each walks its own examples, a part at a time, and the orders are interleaved.

Source: Lu, Guo, De Sa, "GraB", NeurIPS 2022, arXiv 2205.10733, algorithm 4. That shards walk by themselves is ours; in
Cooper et al., "CD-GraB", arXiv 2302.00845, they share one sum.

Shapes: n examples, r rows walked, d sketch length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sampler_service.sketch import routing
from sampler_service.types import Bool, Float32, Float64, Int64


def signs(row_rd: Float32, mean_d: Float64, sum_d: Float64) -> tuple[Bool, Float64]:
    """Which rows get a plus, and the signed sum after them.

    Args:
        row_rd: in the order of the walk.
        mean_d: that they are centred by.
        sum_d: signed sum of the rows before them.
    """
    away_rd, sum_d = row_rd - mean_d, sum_d.copy()
    plus_r = np.empty(len(row_rd), dtype=bool)
    for row, away_d in enumerate(away_rd):
        plus_r[row] = plus = sum_d @ away_d <= 0  # ||s + z|| <= ||s - z||
        if plus:
            sum_d += away_d
        else:
            sum_d -= away_d
    return plus_r, sum_d


def next_order(id_r: Int64, plus_r: Bool) -> Int64:
    """All with a plus as they came, then all others backwards."""
    return np.concatenate((id_r[plus_r], id_r[~plus_r][::-1]))


def balanced_places(
    call: Callable[..., Any], place_n: Float64, *, num_shards: int, dim: int, chunk_rows: int
) -> Float64:
    """(n,) places 0 … 1 of the next order.

    Args:
        call: (shard, method, arguments …) -> what the shard answers.
        place_n: of the present one; those of each shard are walked by them.
        num_shards: S.
        dim: d.
        chunk_rows: that one call walks.
    """
    next_n = np.empty_like(place_n)
    for shard in range(num_shards):
        id_m = np.arange(shard, len(place_n), num_shards)
        id_m = id_m[np.argsort(place_n[id_m], kind="stable")]
        starts = range(0, len(id_m), chunk_rows)
        sums = [call(shard, "sum_of", start, start + chunk_rows) for start in starts]
        mean_d = sum((total_d for _, total_d in sums), np.zeros(dim)) / max(1, sum(count for count, _ in sums))
        plus_m, sum_d = np.empty(len(id_m), dtype=bool), np.zeros(dim)
        for start in starts:
            part = slice(start, start + chunk_rows)
            row_r = routing.row_of(id_m[part], num_shards)
            plus_m[part], sum_d = call(shard, "signs", row_r, mean_d, sum_d)
        # The shards take turns: no two examples have the same place.
        next_n[next_order(id_m, plus_m)] = (np.arange(len(id_m)) + (shard + 0.5) / num_shards) / max(1, len(id_m))
    return next_n
