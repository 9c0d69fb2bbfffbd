"""Orders of an epoch that are not random all through: permutations of its rows, so that nothing is lost or repeated.

Shapes: n examples, m rows of the epoch, s whole batches, a anchors.
"""

from __future__ import annotations

import numpy as np

from sampler_service.planning.randomness import Stream, generator
from sampler_service.types import NO_ROW, BestOfSome, Bool, ByPlace, Int64, NearTogether, Order, Rows


def in_order(rows: Rows, order: Order, *, batch: int, world: int, seed: int, epoch: int) -> Rows:
    """The same rows in another order; a function of its arguments.

    Args:
        rows: in random order, each example once.
        order: which.
        batch: rows of one rank's part.
        world: ranks, whose parts make a global batch.
    """
    rng = generator(Stream.PLACES, seed=seed, epoch=epoch)
    if isinstance(order, ByPlace):
        return rows.take(np.argsort(order.place_n[rows.example_ids], kind="stable"))
    if isinstance(order, BestOfSome):
        return rows.take(_best_of_some(rows.example_ids, order, batch * world, rng))
    return rows.take(_near_together(rows.example_ids, order, batch, rng))


def _best_of_some(id_m: Int64, order: BestOfSome, size: int, rng: np.random.Generator) -> Int64:
    """(m,) places. At each step some of the batches that are left are drawn, and the best of them comes next; rows that
    fill no batch come last."""
    whole = len(id_m) // size
    mean_s = order.score_n[id_m[: whole * size]].reshape(whole, size).mean(axis=1, dtype=np.float64)
    left_s, chosen = np.arange(whole), np.empty(whole, dtype=np.int64)
    for step in range(whole):
        left = whole - step
        drawn = rng.choice(left, min(order.attempts, left), replace=False, shuffle=False)
        best = drawn[mean_s[left_s[drawn]].argmax()]
        chosen[step] = left_s[best]
        left_s[best] = left_s[left - 1]
    return np.append(_rows_of(chosen, size), np.arange(whole * size, len(id_m)))


def _near_together(id_m: Int64, order: NearTogether, size: int, rng: np.random.Generator) -> Int64:
    """(m,) places. Each batch begins with anchors and pairs of their bands, picked at random, up to its share; others
    fill it up. The batches then come in random order, so that no part of the epoch is harder than another."""
    anchor_a, near_am = order.nearby.anchor_a, order.nearby.near_am
    place_n = np.full(1 + max(id_m.max(initial=0), anchor_a.max(initial=0), near_am.max(initial=0)), NO_ROW)
    place_n[id_m] = np.arange(len(id_m))
    free_m: Bool = np.ones(len(id_m), dtype=bool)
    rest, mined = iter(range(len(id_m))), iter(rng.permutation(len(anchor_a)).tolist())
    chosen: list[int] = []
    for start in range(0, len(id_m), size):
        stop = min(start + size, len(id_m))
        hard = min(start + round(order.share * size), stop)
        while len(chosen) < hard and (anchor := next(mined, None)) is not None:
            first = place_n[anchor_a[anchor]]
            if first == NO_ROW or not free_m[first]:
                continue
            free_m[first] = False
            near = place_n[near_am[anchor][near_am[anchor] != NO_ROW]]
            near = rng.permutation(near[near != NO_ROW])
            near = near[free_m[near]][: min(order.together, hard - len(chosen) - 1)]
            free_m[near] = False
            chosen += [int(first), *near.tolist()]
        while len(chosen) < stop:
            place = next(rest)
            if free_m[place]:
                free_m[place] = False
                chosen.append(place)
    whole = len(id_m) // size
    places_m = np.array(chosen, dtype=np.int64)
    return np.append(places_m[_rows_of(rng.permutation(whole), size)], places_m[whole * size :])


def _rows_of(batch_s: Int64, size: int) -> Int64:
    """(s size,) rows of whole batches."""
    return (batch_s[:, None] * size + np.arange(size)).ravel()
