"""Systematic allocation: exact in expectation, never a whole row off, and no starving strata."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.planning.systematic import systematic_block, systematic_counts

RATES = st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(lambda rates: sum(rates) > 1e-3)


@settings(deadline=None)  # a busy machine is no failure
@given(RATES, st.integers(1, 300), st.floats(0, 1, exclude_max=True))
def test_counts_are_within_one_of_the_rate_and_fill_the_batch(rates, size, offset):
    rate_k = np.array(rates) / sum(rates)
    (count_k,) = systematic_counts(rate_k[None], size, np.array([offset]))
    assert count_k.sum() == size
    assert (count_k >= 0).all()
    assert (np.abs(count_k - size * rate_k) < 1 + 1e-9).all()
    assert (count_k[rate_k == 0] == 0).all()


@settings(deadline=None)  # a busy machine is no failure
@given(RATES, st.integers(1, 50))
def test_the_expected_counts_are_exact(rates, size):
    """The offset is integrated exactly: between the points where a count can change, one offset stands for
    all."""
    rate_k = np.array(rates) / sum(rates)
    cuts = np.unique(np.concatenate((np.mod(size * np.cumsum(rate_k), 1), [0, 1])))
    middle, length = (cuts[:-1] + cuts[1:]) / 2, np.diff(cuts)
    counts = systematic_counts(np.tile(rate_k, (len(middle), 1)), size, middle)
    np.testing.assert_allclose(length @ counts, size * rate_k, atol=1e-9)


def test_the_last_point_survives_rounding():
    offset = np.nextafter(1, 0)
    for size in (1, 255, 256, 4096):
        assert systematic_counts(np.array([[0.1] * 10]), size, np.array([offset])).sum() == size


def largest_remainder(rate_k: np.ndarray, size: int) -> np.ndarray:
    """The rounding that systematic sampling replaces: floors first, then the largest remainders."""
    count_k = np.floor(size * rate_k).astype(int)
    count_k[np.argsort(count_k - size * rate_k)[: size - count_k.sum()]] += 1
    return count_k


def test_small_strata_do_not_starve_when_rates_are_refreshed_at_every_batch():
    """Largest remainder with a carry that each refresh resets gives strata below half a row nothing, for
    ever."""
    rate_k = np.array([0.69, 0.04, 0.27])
    assert largest_remainder(rate_k, 8)[1] == 0
    count_sk = systematic_block(rate_k, 8, num_batches=20_000, rng=np.random.default_rng(0))
    # The standard error of a count of at most one row is below sqrt(.25 / 20000) = .0035.
    np.testing.assert_allclose(count_sk.mean(axis=0), 8 * rate_k, atol=0.015)


def test_strata_come_in_random_order_and_empty_ones_never():
    """In list order, the two outer strata could never be drawn together: their points are too far apart."""
    rate_k = np.array([0.25, 0.0, 0.25, 0.25, 0.25])
    count_sk = systematic_block(rate_k, 2, num_batches=2000, rng=np.random.default_rng(1))
    pairs = {tuple(np.flatnonzero(count_k)) for count_k in count_sk}
    assert pairs == {(a, b) for a in (0, 2, 3, 4) for b in (0, 2, 3, 4) if a < b}
    assert (count_sk.sum(axis=1) == 2).all()


@pytest.mark.parametrize("num_strata", [1, 1000])
def test_more_strata_than_rows_and_a_single_one_fill_every_batch(num_strata):
    rate_k = np.full(num_strata, 1 / num_strata)
    count_sk = systematic_block(rate_k, 16, num_batches=50, rng=np.random.default_rng(2))
    assert (count_sk.sum(axis=1) == 16).all()
    assert count_sk.max() <= -(-16 // num_strata)
