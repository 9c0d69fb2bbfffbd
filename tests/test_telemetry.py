"""Histograms, rates and cluster figures, against their definitions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sampler_service.planning.sweep import cut_to_top, epoch_order
from sampler_service.telemetry import (
    COUNTS,
    POWERS,
    count_quantile,
    effective_sample_ratio,
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


def test_of_a_scored_sweep_the_expected_draws_are_what_cutting_it_leaves():
    rng, n, size, epochs = np.random.default_rng(0), 600, 15, 400
    score_n = rng.normal(size=n).astype(np.float32)
    score_n[:60], score_n[60:90] = np.inf, 0.5  # not seen yet; all the same
    sweep = Sweep(keep_n=np.ones(n), weight_n=np.ones(n, np.float32), score_n=score_n, top_fraction=0.25)
    times_n = np.zeros(n)
    for epoch in range(epochs):
        order = epoch_order(sweep, seed=0, epoch=epoch)
        times_n[cut_to_top(order, score_n, top_fraction=0.25, size=size).example_ids] += 1
    expected_n = expected_draws(sweep, None, np.arange(n), size)
    assert expected_n.mean() == pytest.approx(0.25, abs=0.005)
    assert np.abs(expected_n - times_n / epochs).max() < 0.15
    assert np.abs(expected_n - times_n / epochs).mean() < 0.03
    assert expected_draws(sweep, None, np.arange(n)).tolist() == [1.0] * n, "nothing is cut yet"


def test_a_scored_sweep_in_which_all_are_equal_or_all_are_taken():
    score_n, ids = np.full(40, np.inf, np.float32), np.arange(40)
    for fraction in (0.1, 0.5, 1.0):
        sweep = Sweep(keep_n=np.ones(40), weight_n=np.ones(40, np.float32), score_n=score_n, top_fraction=fraction)
        assert expected_draws(sweep, None, ids, 8) == pytest.approx([fraction] * 40, abs=0.02)


def test_a_quantile_of_leads_is_the_least_lead_that_so_many_did_not_exceed():
    rng = np.random.default_rng(0)
    for leads in (rng.integers(0, 9, 50).tolist(), [3], [0, 0, 7]):
        for share in (0.5, 0.99, 1.0):
            least = min(lead for lead in leads if sum(other <= lead for other in leads) >= share * len(leads))
            assert count_quantile(leads, share) == least
    assert np.isnan(count_quantile([], 0.5))


def test_the_effective_sample_ratio_is_that_of_the_probabilities():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(50))
    assert effective_sample_ratio(WeightedDraw(probability_n=p), None) == pytest.approx(1 / (p**2).sum() / 50)
    stratum_n = rng.integers(0, 5, 50).astype(np.int32)
    size_k, rate_k = np.bincount(stratum_n, minlength=5).astype(np.float64), rng.dirichlet(np.ones(5))
    strata = StratifiedDraw(stratum_n=stratum_n, rate_k=rate_k)
    p = (rate_k / size_k)[stratum_n]
    assert p.sum() == pytest.approx(1.0)
    assert effective_sample_ratio(strata, size_k) == pytest.approx(1 / (p**2).sum() / 50)
    assert np.isnan(effective_sample_ratio(strata, None))
    even = StratifiedDraw(stratum_n=stratum_n, rate_k=size_k / 50)
    assert effective_sample_ratio(even, size_k) == pytest.approx(1.0)
    keep = np.array([1.0, 1.0, 0.5, 0.5])
    p = keep / keep.sum()
    assert effective_sample_ratio(Sweep(keep_n=keep, weight_n=np.ones(4, np.float32)), None) == pytest.approx(
        1 / (p**2).sum() / 4
    )


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
