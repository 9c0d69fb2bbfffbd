"""Weighted draws: the right frequencies, evenly spread, at any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sampler_service.errors import ConfigError
from sampler_service.planning.weighted import WeightedDrawer

ABOVE_2E24 = (1 << 24) + 1000


def drawer_of(weights, seed=0) -> WeightedDrawer:
    return WeightedDrawer(np.array(weights, dtype=np.float64), np.random.default_rng(seed))


def copies(ids: np.ndarray, num_examples: int) -> np.ndarray:
    return np.bincount(ids.ravel(), minlength=num_examples)


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(lambda w: sum(w) > 1e-3),
    st.integers(1, 6),
    st.integers(1, 20),
    st.integers(0, 3),
)
def test_a_block_draws_each_example_its_share_within_one(weights, num_batches, size, seed):
    probability_n = np.array(weights) / sum(weights)
    ids = drawer_of(weights).draw(num_batches=num_batches, size=size, rng=np.random.default_rng(seed))
    assert ids.shape == (num_batches, size)
    assert ids.dtype == np.int64
    block_n = copies(ids, len(weights))
    assert (np.abs(block_n - num_batches * size * probability_n) < 1 + 1e-6).all()
    assert (block_n[probability_n == 0] == 0).all()
    for batch in ids:  # one point in each b-th part of the total: never more than one beyond the parts touched
        assert (copies(batch, len(weights)) <= size * probability_n + 2 + 1e-6).all()


def test_frequencies_follow_the_weights():
    weight_n = np.random.default_rng(0).lognormal(0, 2, 200)
    drawer, rng = drawer_of(weight_n), np.random.default_rng(1)
    count_n = copies(drawer.draw(num_batches=20_000, size=16, rng=rng), 200)
    # One offset for the whole block: every count is within one row of its expectation.
    assert np.abs(count_n - 320_000 * weight_n / weight_n.sum()).max() < 1 + 1e-6


def test_single_batches_follow_the_weights():
    """Many small blocks, each with its own offset: the marginal of the first batch alone."""
    weight_n = np.array([0.0, 1, 2, 3, 10])
    drawer, rng = drawer_of(weight_n), np.random.default_rng(1)
    first = np.concatenate([drawer.draw(num_batches=3, size=2, rng=rng)[0] for _ in range(10_000)])
    expected = 20_000 * weight_n[1:] / 16
    assert copies(first, 5)[0] == 0
    # Spread draws vary less than independent ones, so a chi-square can only be too small.
    assert chisquare(copies(first, 5)[1:], expected).pvalue > 0.001


def test_a_batch_is_in_random_order():
    drawer, rng = drawer_of(np.ones(1000)), np.random.default_rng(0)
    place_n = np.empty(1000)
    place_n[drawer._order_n] = np.arange(1000)
    halves = [
        np.mean(place_n[batch[:8]]) < np.mean(place_n[batch[8:]])
        for batch in drawer.draw(num_batches=400, size=16, rng=rng)
    ]
    assert 140 < np.sum(halves) < 260


def test_even_weights_visit_everything_once_in_a_block_of_n():
    ids = drawer_of(np.ones(96)).draw(num_batches=6, size=16, rng=np.random.default_rng(0))
    assert sorted(ids.ravel()) == list(range(96))


@pytest.fixture(scope="module")
def large() -> tuple[np.ndarray, WeightedDrawer]:
    """More entries than a float32 can count: weight 2 for the first half, 1 for the second."""
    weight_n = np.ones(ABOVE_2E24)
    weight_n[: ABOVE_2E24 // 2] = 2
    return weight_n, WeightedDrawer(weight_n, np.random.default_rng(5))


def test_draws_above_2_to_the_24_follow_the_weights(large):
    """torch.multinomial refuses more than 2^24 entries, and a float32 running sum stops growing there."""
    weight_n, drawer = large
    rng = np.random.default_rng(6)
    ids = np.concatenate([drawer.draw(num_batches=64, size=256, rng=rng).ravel() for _ in range(25)])
    bins = 64
    observed = np.bincount(ids * bins // ABOVE_2E24, minlength=bins)
    expected = np.bincount(np.arange(ABOVE_2E24) * bins // ABOVE_2E24, weights=weight_n, minlength=bins)
    # Over bins of random members, evenly spaced points behave like draws without replacement, here 2.4 % of
    # n.
    assert 0.001 < chisquare(observed, expected / expected.sum() * len(ids)).pvalue < 0.9999
    assert (ids > 1 << 24).any()


def test_the_guide_finds_what_a_plain_search_finds(large):
    _, drawer = large
    point_m = np.sort(np.random.default_rng(0).random(20_000)) * drawer.total
    point_m[:3] = drawer._cumulative_n[[0, 7, 1 << 24]]  # on the edge: it belongs to the next one
    np.testing.assert_array_equal(drawer._locate(point_m), np.searchsorted(drawer._cumulative_n, point_m, side="right"))


def test_weights_over_many_orders_of_magnitude():
    """A guide cell then holds almost everything, and the bisection has to do the work."""
    weight_n = np.concatenate((10.0 ** np.arange(-300, 0), np.full(5000, 1e-12), [1e6]))
    drawer = drawer_of(weight_n)
    point_m = np.sort(np.random.default_rng(0).random(1000)) * drawer.total
    np.testing.assert_array_equal(drawer._locate(point_m), np.searchsorted(drawer._cumulative_n, point_m, side="right"))
    assert (drawer.draw(num_batches=2, size=64, rng=np.random.default_rng(0)) == 5300).all()


@pytest.mark.parametrize("weights", [[5e-324, 5e-324], [1e308, 1e-308], [3.0]])
def test_extreme_weights_are_drawn(weights):
    ids = drawer_of(weights).draw(num_batches=4, size=8, rng=np.random.default_rng(0))
    assert set(ids.ravel()) <= set(range(len(weights)))


def test_new_weights_replace_the_old_in_the_same_order():
    drawer = drawer_of(np.ones(50))
    order_n = drawer._order_n.copy()
    drawer.refresh(np.eye(50)[17])
    np.testing.assert_array_equal(drawer._order_n, order_n)
    assert (drawer.draw(num_batches=2, size=3, rng=np.random.default_rng(0)) == 17).all()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2, -3, -4], r"weight -3.0 of example 2 .* \(2 such\)"),
        ([1, np.nan, 1], r"weight nan of example 1 "),
        ([np.inf, 1], r"weight inf of example 0 "),
        ([0, 0, 0], r"all 3 weights are 0"),
        ([1e308, 1.5e308], r"overflows; example 1 has 1.5e\+308"),
    ],
)
def test_bad_weights_are_named_with_index_and_value(weights, message):
    with pytest.raises(ConfigError, match=message):
        drawer_of(weights)


class Highest:
    """A generator whose uniform number is the largest below 1, so that the last point rounds up to the total."""

    def random(self) -> float:
        return float(np.nextafter(1, 0))

    def permuted(self, values: np.ndarray, axis: int) -> np.ndarray:
        return values


def test_a_point_that_rounds_up_to_the_total_is_the_last_example_of_all():
    for weights in ([3.0], [0.1] * 10, [0.0, 0.7, 0.0], np.random.default_rng(0).random(1000)):
        ids = drawer_of(weights).draw(num_batches=4, size=64, rng=Highest())  # pyright: ignore
        assert (np.asarray(weights)[ids] > 0).all()
