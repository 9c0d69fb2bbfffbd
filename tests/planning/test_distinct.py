"""Weighted draws without replacement: different ids, the right chances, weights of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from sampler_service.planning.distinct import draw_distinct


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=40).filter(any), st.data())
def test_ids_are_different_and_of_positive_weight(weights, data):
    positive = np.count_nonzero(weights)
    count = data.draw(st.integers(1, positive))
    ids = draw_distinct(np.array(weights), count, np.random.default_rng(0))
    assert ids.dtype == np.int64
    assert len(set(ids.tolist())) == len(ids) == count
    assert (np.array(weights)[ids] > 0).all()


def test_fewer_draws_are_the_first_of_more():
    weight_n = np.random.default_rng(1).lognormal(size=500)
    many = draw_distinct(weight_n, 500, np.random.default_rng(2))
    assert sorted(many) == list(range(500))
    for count in (1, 17, 499):
        np.testing.assert_array_equal(draw_distinct(weight_n, count, np.random.default_rng(2)), many[:count])


@pytest.mark.parametrize("unit", [1.0, 1e-320, 1e307])
def test_the_first_has_the_chances_of_the_weights_in_any_unit(unit):
    rng, weight_n = np.random.default_rng(3), unit * np.array([1.0, 2.0, 5.0])
    first = np.bincount([draw_distinct(weight_n, 1, rng)[0] for _ in range(8000)], minlength=3)
    assert chisquare(first, np.array([1000, 2000, 5000])).pvalue > 0.001


def test_a_very_light_example_comes_last_but_comes():
    ids = draw_distinct(np.array([5e-324, 1e308, 1.0]), 3, np.random.default_rng(0))
    assert ids.tolist() == [1, 2, 0]
