"""The move test equals the brute-force change of J, and J never rises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.index import hartigan, kernels
from sampler_service.index.statistics import ClusterStatistics
from sampler_service.types import NO_CLUSTER


def statistics_of(row_nd: np.ndarray, cluster_n: np.ndarray, num_clusters: int) -> ClusterStatistics:
    statistics = ClusterStatistics.zeros(num_clusters, row_nd.shape[1])
    known_n = cluster_n != NO_CLUSTER
    statistics.insert(row_nd[known_n], cluster_n[known_n])
    return statistics


def brute_force_objective(row_nd: np.ndarray, cluster_n: np.ndarray) -> float:
    total = 0.0
    for cluster in np.unique(cluster_n[cluster_n != NO_CLUSTER]):
        member_md = row_nd[cluster_n == cluster].astype(np.float64)
        total += len(member_md) * ((member_md - member_md.mean(axis=0)) ** 2).sum()
    return total


def problem(seed: int, rows: int = 60, dim: int = 5, num_clusters: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Blobs of very different width and size, off centre, with duplicates."""
    rng = np.random.default_rng(seed)
    width_n = 10.0 ** rng.integers(-2, 2, rows)
    row_nd = rng.standard_normal((rows, dim)) * width_n[:, None] + rng.standard_normal(dim) * 5
    row_nd[rows // 2 : rows // 2 + rows // 5] = row_nd[0]
    return row_nd.astype(np.float32), rng.integers(0, num_clusters, rows).astype(np.int32)


@pytest.mark.parametrize("seed", range(3))
def test_cost_difference_is_the_change_of_j_for_every_row_and_cluster(seed: int):
    row_nd, cluster_n = problem(seed, rows=25)
    cluster_n[cluster_n == 3] = 2  # cluster 3 is empty
    statistics, before = statistics_of(row_nd, cluster_n, 4), brute_force_objective(row_nd, cluster_n)
    for row, own in enumerate(cluster_n):
        row_d = row_nd[row].astype(np.float64)
        for other in range(4):
            if other == own:
                continue
            moved_n = cluster_n.copy()
            moved_n[row] = other
            change = hartigan.cost(row_d, other, statistics) - hartigan.cost(row_d, own, statistics)
            assert change == pytest.approx(brute_force_objective(row_nd, moved_n) - before, abs=1e-9 * before)


@pytest.mark.parametrize("seed", range(3))
def test_the_inner_product_search_finds_the_cheapest_cluster(seed: int):
    row_nd, cluster_n = problem(seed)
    statistics = statistics_of(row_nd, cluster_n, 4)
    best_n = hartigan._MoveSearch(row_nd, statistics).best_cluster(row_nd)
    cost_nk = np.array([[hartigan.cost(row_d, k, statistics) for k in range(4)] for row_d in row_nd.astype(float)])
    found_n = np.take_along_axis(cost_nk, best_n[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(found_n, cost_nk.min(axis=1), rtol=1e-3)  # fp32 may swap near-ties only


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.sampled_from([1, 7, 64]))
def test_j_never_rises_and_statistics_stay_those_of_the_rows(seed: int, num_clusters: int, chunk: int):
    row_nd, cluster_n = problem(seed, num_clusters=num_clusters)
    statistics = statistics_of(row_nd, cluster_n, num_clusters)
    filled = np.count_nonzero(statistics.count_k)
    before = statistics.objective
    for _ in range(6):
        moves = hartigan.refine(row_nd, cluster_n, statistics, chunk)
        scratch = statistics_of(row_nd, cluster_n, num_clusters)
        np.testing.assert_array_equal(statistics.count_k, scratch.count_k)
        assert np.count_nonzero(statistics.count_k) >= filled  # nothing was emptied
        assert statistics.objective == pytest.approx(scratch.objective, rel=1e-9)
        assert scratch.objective <= before * (1 + 1e-12)
        before = scratch.objective
        if moves == 0:
            break
    assert before == pytest.approx(brute_force_objective(row_nd, cluster_n), rel=1e-9)


def test_it_ends_where_no_single_move_lowers_j():
    row_nd, cluster_n = problem(5)
    statistics = statistics_of(row_nd, cluster_n, 4)
    while hartigan.refine(row_nd, cluster_n, statistics):
        pass
    for row, own in enumerate(cluster_n):
        row_d = row_nd[row].astype(np.float64)
        least = min(hartigan.cost(row_d, k, statistics) for k in range(4))
        assert statistics.count_k[own] == 1 or hartigan.cost(row_d, own, statistics) <= least * (1 + 1e-4)


def test_it_ends_far_below_kmeans_on_duplicates():
    """Five points that fill nine tenths get clusters of their own: no large cluster is left with scatter."""
    rng = np.random.default_rng(0)
    row_nd = rng.standard_normal((500, 16)).astype(np.float32)
    row_nd[50:] = row_nd[rng.integers(0, 5, 450)]
    cluster_n = kernels.nearest_centre(row_nd, kernels.kmeans(row_nd, 10, seed=0)).astype(np.int32)
    statistics = statistics_of(row_nd, cluster_n, 10)
    before = statistics.objective
    for _ in range(10):
        hartigan.refine(row_nd, cluster_n, statistics)
    assert statistics.objective < 0.5 * before


def test_new_rows_are_placed_and_the_others_stay_counted_once():
    row_nd, cluster_n = problem(9)
    cluster_n[::3] = NO_CLUSTER
    statistics = statistics_of(row_nd, cluster_n, 4)
    hartigan.refine(row_nd, cluster_n, statistics)
    assert (cluster_n != NO_CLUSTER).all()
    np.testing.assert_array_equal(statistics.count_k, np.bincount(cluster_n, minlength=4))
    assert statistics.objective == pytest.approx(brute_force_objective(row_nd, cluster_n), rel=1e-9)


def test_an_empty_cluster_is_filled_and_a_single_row_stays():
    row_nd = np.array([[0.0], [10.0], [0.5], [50.0]], np.float32)
    cluster_n = np.array([0, 0, 0, 1], np.int32)
    statistics = statistics_of(row_nd, cluster_n, 3)
    while hartigan.refine(row_nd, cluster_n, statistics):
        pass
    assert np.bincount(cluster_n, minlength=3).min() == 1
    assert cluster_n[3] == 1


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_unit_of_the_gradients_does_not_matter(scale: float):
    row_nd, cluster_n = problem(3)
    scaled_n = cluster_n.copy()
    hartigan.refine(row_nd, cluster_n, statistics_of(row_nd, cluster_n, 4))
    scaled_nd = row_nd.astype(np.float64) * scale
    hartigan.refine(scaled_nd.astype(np.float32), scaled_n, statistics_of(scaled_nd.astype(np.float32), scaled_n, 4))
    assert np.mean(scaled_n == cluster_n) > 0.9
