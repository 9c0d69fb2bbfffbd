"""The order of a sweep: a permutation of what is kept, fixed by seed and epoch."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from sampler_service.planning.sweep import cut_to_top, epoch_order
from sampler_service.types import Rows, Sweep


def sweep(keep_n, **options) -> Sweep:
    keep_n = np.asarray(keep_n, dtype=np.float64)
    return Sweep(keep_n=keep_n, weight_n=(1 / keep_n).astype(np.float32), **options)


def test_every_example_once_when_everything_is_kept():
    rows = epoch_order(sweep(np.ones(100)), seed=1, epoch=0)
    assert sorted(rows.example_ids) == list(range(100))
    assert (rows.weights == 1).all()
    assert (rows.probabilities == 0.01).all()


def test_neighbouring_seeds_and_epochs_share_no_order():
    rates = sweep(np.ones(50))
    orders = {
        tuple(epoch_order(rates, seed=seed, epoch=epoch).example_ids)
        for seed in (0, 1, 2, 1 << 32, (1 << 32) + 1)
        for epoch in range(5)
    }
    assert len(orders) == 25


def test_keep_coins_fall_with_their_probability_and_weights_undo_them():
    keep_n = np.tile([0.25, 1.0], 5000)
    rows = epoch_order(sweep(keep_n), seed=3, epoch=2)
    kept = np.bincount(rows.example_ids, minlength=10_000)
    assert kept.max() == 1
    assert (kept[1::2] == 1).all()
    assert binomtest(int(kept[::2].sum()), 5000, 0.25).pvalue > 0.001
    np.testing.assert_allclose(rows.weights, 1 / keep_n[rows.example_ids])
    np.testing.assert_allclose(rows.probabilities, keep_n[rows.example_ids] / 10_000)


def test_other_rates_keep_the_order_of_what_both_keep():
    full = epoch_order(sweep(np.ones(200)), seed=1, epoch=1).example_ids
    half = epoch_order(sweep(np.full(200, 0.5)), seed=1, epoch=1).example_ids
    third = epoch_order(sweep(np.full(200, 0.3)), seed=1, epoch=1).example_ids
    assert half.tolist() == [i for i in full if i in set(half)]
    assert third.tolist() == [i for i in half if i in set(third)], "a lower rate keeps a part of the same"


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 200), st.integers(1, 20), st.floats(0.05, 1), st.integers(0, 9))
def test_the_cut_takes_the_highest_of_every_run(num_examples, size, top_fraction, seed):
    rng = np.random.default_rng(seed)
    score_n = rng.integers(0, 20, num_examples).astype(np.float32)
    score_n[rng.random(num_examples) < 0.2] = np.inf
    order = epoch_order(sweep(np.ones(num_examples)), seed=seed, epoch=0)
    cut = cut_to_top(order, score_n, top_fraction=top_fraction, size=size)
    run = max(round(size / top_fraction), size)
    place = {example: i for i, example in enumerate(order.example_ids)}
    at = np.array([place[example] for example in cut.example_ids])
    assert (np.diff(at) > 0).all(), "the order is kept"
    for low in range(0, num_examples, run):
        run_scores = score_n[order.example_ids[low : low + run]]
        taken = cut.example_ids[(at >= low) & (at < low + run)]
        expected = size if len(run_scores) == run else int(np.ceil(len(run_scores) * size / run))
        assert sorted(score_n[taken]) == sorted(run_scores)[len(run_scores) - expected :]


def test_runs_of_the_cut_are_the_batches():
    order = Rows(example_ids=np.arange(8), weights=np.ones(8, dtype=np.float32), probabilities=np.full(8, 1 / 8))
    score_n = np.float32([1, 4, 2, 3, 9, 9, 0, 9])
    assert cut_to_top(order, score_n, top_fraction=0.5, size=2).example_ids.tolist() == [1, 3, 4, 5]
