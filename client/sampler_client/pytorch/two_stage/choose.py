"""Which of the candidates make the batch: fixed-size sampling with unequal chances, unbiased for any scores.

Candidate j has a chance pi_j of being kept, sum pi = b, and weight w_j b / (c pi_j) when it is: over the choice,
E[(1/b) sum_kept w g] = (1/c) sum_j w_j g_j, the estimate that all c candidates would have given.

Source: the two stages are ours; systematic sampling with unequal chances is Madow, Annals of
Mathematical Statistics 20, 1949; certainty units (chance 1 for what would come more than once) are Saerndal,
Swensson and Wretman, "Model Assisted Survey Sampling", 1992, 3.6.

Shapes: c candidates, b kept, d sketch length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moments:
    """E ||w g||^2 of one draw, estimated from the scores of the candidates: what variances go with, for small means."""

    uniform: float
    """under uniform draws, (1/c) sum w f^2"""
    proposed: float
    """under the proposals alone, (1/c) sum (w f)^2"""
    chosen: float
    """under both stages, (b/c^2) sum (w f)^2 / pi: b of c without replacement, its proposals' own variance included"""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was kept."""

    index: NDArray[np.intp]
    """(b,) places among the candidates, each at most once"""
    weights: NDArray[np.float32]
    """(b,) factors on the losses"""
    moments: Moments


def choose(
    score_c: NDArray[np.floating],
    weight_c: NDArray[np.floating],
    keep: int,
    *,
    mix: float,
    rng: np.random.Generator,
    order_c: NDArray[np.intp] | None = None,
) -> Choice:
    """Keep `keep` of the candidates, in random order.

    Args:
        score_c: (c,) sizes of the fresh gradients, at least 0, finite.
        weight_c: (c,) weights that the candidates were proposed with.
        keep: b, 1 … c.
        mix: share of chances that do not follow the score, in (0, 1]; weights grow at most 1/mix times.
        rng: of this choice alone.
        order_c: neighbours in it are rarely kept together; random when None.
    """
    chance_c = chances(score_c, weight_c, keep, mix=mix)
    if order_c is None:
        order_c = rng.permutation(len(chance_c))
    index = rng.permutation(systematic(chance_c, order_c, rng.random()))
    weights = weight_c[index] * (keep / len(chance_c)) / chance_c[index]
    return Choice(index, weights.astype(np.float32), _moments(score_c, weight_c, chance_c))


def _moments(score_c: NDArray[np.floating], weight_c: NDArray[np.floating], chance_c: Float64) -> Moments:
    size_c = np.asarray(weight_c, np.float64) * score_c
    square_c = size_c**2
    return Moments(
        uniform=float((size_c * score_c).mean()),
        proposed=float(square_c.mean()),
        chosen=float((square_c / chance_c).mean()) * float(chance_c.mean()),
    )


def chances(score_c: NDArray[np.floating], weight_c: NDArray[np.floating], keep: int, *, mix: float) -> Float64:
    """(c,) chances of being kept, in (0, 1], summing to `keep`: as (1-mix) w f + mix mean(w f), at most 1."""
    value_c = np.asarray(weight_c, np.float64) * score_c
    mean = value_c.mean()
    share_c = (1 - mix) * value_c + mix * mean if mean > 0 else np.ones(len(value_c))
    chance_c = share_c * (keep / share_c.sum())
    # What would come more than once comes for certain, and the others share what is left.
    certain_c = np.zeros(len(chance_c), dtype=bool)
    while (over_c := (chance_c > 1) & ~certain_c).any():
        certain_c |= over_c
        chance_c[certain_c] = 1
        rest = share_c[~certain_c].sum()
        chance_c[~certain_c] = share_c[~certain_c] * ((keep - np.count_nonzero(certain_c)) / rest)
    return chance_c


def systematic(chance_c: Float64, order_c: NDArray[np.intp], offset: float) -> NDArray[np.intp]:
    """Exactly round(sum chance_c) places: those whose stretch of the running sum holds offset + 0, 1, 2, …

    Chances are at most 1, so none holds two.
    """
    keep = round(float(chance_c.sum()))
    bound_c = np.cumsum(chance_c[order_c])
    bound_c *= keep / bound_c[-1]
    place_b = np.searchsorted(bound_c, offset + np.arange(keep), side="right")
    return order_c[np.minimum(place_b, len(order_c) - 1)]


def similar_together(sketch_cd: NDArray[np.floating], leaf: int) -> NDArray[np.intp]:
    """(c,) an order in which neighbours have similar sketches: halved along the principal axis down to `leaf` rows.

    With it, systematic sampling takes about one candidate from each group of like gradients: strata without a count.
    """
    rows = np.asarray(sketch_cd, np.float64)
    order: list[NDArray[np.intp]] = []
    pending = [np.arange(len(rows))]
    while pending:
        group = pending.pop()
        if len(group) <= leaf:
            order.append(group)
            continue
        ranked = group[np.argsort(_along_principal_axis(rows[group]), kind="stable")]
        half = len(group) // 2
        pending += [ranked[half:], ranked[:half]]
    return np.concatenate(order)


def _along_principal_axis(rows: Float64, passes: int = 4) -> Float64:
    """Coordinates along the direction of the largest spread, by power iteration: about is enough to halve by."""
    centred = rows - rows.mean(axis=0)
    axis = centred[np.argmax(np.einsum("rd,rd->r", centred, centred))]
    for _ in range(passes):
        length = np.linalg.norm(axis)
        if length == 0:
            break
        axis = centred.T @ (centred @ (axis / length))
    return centred @ axis
