"""Histograms, rates and cluster figures, against their definitions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sampler_service.telemetry import (
    COUNTS,
    POWERS,
    expected_draws,
    histogram,
    lead_histogram,
    mean_by,
    principal_axes,
    redundancy,
)
from sampler_service.types import StratifiedDraw, Sweep, WeightedDraw


def test_every_value_is_in_the_bin_whose_lower_edge_it_has():
    values = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 7.0, 8.0, 1e9])
    found = histogram(values, COUNTS)
    by_edge = {edge: count for edge, count in zip(found.edges, found.counts, strict=False) if count}
    assert by_edge == {0.0: 1, 1.0: 1, 2.0: 2, 4.0: 2, 8.0: 1, 2.0**24: 1}
    assert found.sum == values.sum()
    assert sum(histogram(np.array([0.0, 1e-9, 1.0, 1e9]), POWERS).counts) == 4, "none is outside"


def test_leads_are_counted_as_often_as_they_came():
    leads = Counter({0: 5, 1: 2, 6: 3})
    assert lead_histogram(leads) == histogram(np.array(list(leads.elements()), np.int64), COUNTS)
    assert sum(lead_histogram(Counter()).counts) == 0


def test_expected_draws_of_an_epoch_sum_to_what_an_epoch_draws():
    ids = np.arange(6)
    p = np.array([0.3, 0.1, 0.1, 0.2, 0.2, 0.1])
    assert expected_draws(WeightedDraw(probability_n=p), None, ids) == pytest.approx(6 * p)
    strata = StratifiedDraw(stratum_n=np.array([0, 0, 0, 0, 1, 1], np.int32), rate_k=np.array([0.5, 0.5]))
    assert expected_draws(strata, np.array([4.0, 2.0]), ids) == pytest.approx([0.75] * 4 + [1.5] * 2)
    keep = np.array([1.0, 0.5, 1.0, 1.0, 0.5, 1.0])
    sweep = Sweep(keep_n=keep, weight_n=np.ones(6, np.float32))
    assert expected_draws(sweep, None, ids[1:3]).tolist() == [0.5, 1.0]


def test_the_map_keeps_the_distances_of_clusters_that_lie_in_a_plane():
    rng = np.random.default_rng(0)
    at_k2, turned_2d = rng.normal(size=(9, 2)), np.linalg.qr(rng.normal(size=(5, 5)))[0][:2]
    size_k = rng.integers(1, 50, 9)
    found_k2 = principal_axes(at_k2 @ turned_2d + 3.0, size_k)
    apart = np.linalg.norm(at_k2[:, None] - at_k2[None], axis=2)
    assert np.linalg.norm(found_k2[:, None] - found_k2[None], axis=2) == pytest.approx(apart)
    spread = np.sqrt(size_k @ (found_k2 - np.average(found_k2, axis=0, weights=size_k)) ** 2)
    assert spread[0] >= spread[1]


def test_a_map_of_one_number_or_of_no_cluster_is_a_map_all_the_same():
    assert np.abs(principal_axes(np.array([[1.0], [3.0]]), np.array([1, 1]))).tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert principal_axes(np.empty((0, 4)), np.empty(0, np.int64)).shape == (0, 2)


def test_copies_are_wholly_redundant_unrelated_gradients_and_single_ones_not():
    rng, d = np.random.default_rng(0), 512
    rows = {0: np.tile(rng.normal(size=d), (20, 1)), 1: rng.normal(size=(20, d)), 2: rng.normal(size=(1, d))}
    mean_kd = np.array([rows[k].mean(0) for k in range(3)])
    sse_k = np.array([((rows[k] - mean_kd[k]) ** 2).sum() for k in range(3)])
    found = redundancy(mean_kd, sse_k, np.array([20, 20, 1]))
    assert found[0] == pytest.approx(1.0)
    assert found[1] == pytest.approx(0.0, abs=0.02)
    assert found[2] == 0.0


def test_the_mean_loss_of_a_cluster_is_of_its_known_losses():
    found = mean_by(np.array([0, 0, 1, -1, 2], np.int32), np.array([1, 3, np.nan, 9, 4], np.float32), 4)
    assert found[[0, 2]].tolist() == [2.0, 4.0]
    assert np.isnan(found[[1, 3]]).all()
