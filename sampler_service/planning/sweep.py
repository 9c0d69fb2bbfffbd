"""The order of a sweep: every kept example once, in random order. Shapes: n examples, m kept ones."""

from __future__ import annotations

import math

import numpy as np

from sampler_service.planning.randomness import Stream, generator
from sampler_service.types import Float32, Int64, Rows, Sweep


def epoch_order(rates: Sweep, *, seed: int, epoch: int) -> Rows:
    """The epoch's kept examples in random order; a function of (rates, seed, epoch).

    The order and each example's keep coin do not depend on the rates, so a change of rates moves nothing
    else.

    Returns:
        m rows; `probabilities` are keep_i over the number of examples that there are, `weights` those of the rates.
    """
    num_examples = len(rates.keep_n)
    id_m = generator(Stream.ORDER, seed=seed, epoch=epoch).permutation(num_examples)
    if rates.keep_n.min() < 1:
        coin_n = generator(Stream.KEEP, seed=seed, epoch=epoch).random(num_examples)
        id_m = id_m[(coin_n < rates.keep_n)[id_m]]
    return Rows(
        example_ids=id_m,
        weights=rates.weight_n[id_m],
        probabilities=rates.keep_n[id_m] / rates.over,
    )


def cut_to_top(rows: Rows, score_n: Float32, *, top_fraction: float, size: int) -> Rows:
    """Cut every run of round(size / top_fraction) rows to its `size` highest scores, leaving their order.

    The last run may be shorter and is cut in proportion, to at least one row. Ties fall by place in the
    order, which is random. `size` is the global batch, so that one run makes one batch (RHO-LOSS's n_b of
    n_B).
    """
    run = max(round(size / top_fraction), size)
    num_whole = len(rows) // run
    score_m = score_n[rows.example_ids]
    top = _top_places(score_m[: num_whole * run].reshape(num_whole, run), size)
    places = (top + run * np.arange(num_whole)[:, None]).ravel()
    left_m = score_m[num_whole * run :]
    if len(left_m):
        last = _top_places(left_m[None], math.ceil(len(left_m) * size / run))[0]
        places = np.concatenate((places, last + num_whole * run))
    return rows.take(places)


def _top_places(score_rm: Float32, count: int) -> Int64:
    """(runs, count) places of the highest scores of each row, rising; ties fall to the earlier place."""
    ranked_rm = np.argsort(-score_rm, axis=1, kind="stable")[:, :count]
    return np.sort(ranked_rm, axis=1)
