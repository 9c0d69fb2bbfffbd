"""Statistics equal those computed from scratch, whatever was put in and taken out."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.index.statistics import ClusterStatistics


def from_scratch(row_nd: np.ndarray, cluster_n: np.ndarray, num_clusters: int) -> ClusterStatistics:
    statistics = ClusterStatistics.zeros(num_clusters, row_nd.shape[1])
    for row_d, cluster in zip(row_nd.astype(np.float64), cluster_n, strict=True):
        statistics.count_k[cluster] += 1
        statistics.sum_kd[cluster] += row_d
        statistics.square_k[cluster] += row_d @ row_d
    return statistics


def assert_same(left: ClusterStatistics, right: ClusterStatistics) -> None:
    np.testing.assert_array_equal(left.count_k, right.count_k)
    scale = 1.0 + float(np.abs(right.square_k).sum())
    np.testing.assert_allclose(left.sum_kd, right.sum_kd, atol=1e-12 * scale)
    np.testing.assert_allclose(left.square_k, right.square_k, atol=1e-12 * scale)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(1, 6))
def test_inserts_and_removes_equal_a_count_from_scratch(seed: int, rows: int, num_clusters: int):
    rng = np.random.default_rng(seed)
    row_nd = (rng.standard_normal((rows, 3)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    cluster_n = rng.integers(0, num_clusters, rows)
    gone_n = rng.random(rows) < 0.5
    statistics = ClusterStatistics.zeros(num_clusters, 3)
    statistics.insert(row_nd, cluster_n)
    assert_same(statistics, from_scratch(row_nd, cluster_n, num_clusters))
    statistics.remove(row_nd[gone_n], cluster_n[gone_n])
    assert_same(statistics, from_scratch(row_nd[~gone_n], cluster_n[~gone_n], num_clusters))
    halves = from_scratch(row_nd[::2], cluster_n[::2], num_clusters)
    halves += from_scratch(row_nd[1::2], cluster_n[1::2], num_clusters)
    assert_same(halves, from_scratch(row_nd, cluster_n, num_clusters))


def test_scatter_objective_and_inertia_are_their_definitions():
    rng = np.random.default_rng(1)
    row_nd, cluster_n = rng.standard_normal((50, 4)) + 3.0, rng.integers(0, 5, 50)
    statistics = ClusterStatistics.zeros(6, 4)  # cluster 5 stays empty
    statistics.insert(row_nd, cluster_n)
    sse_k = [((row_nd[cluster_n == k] - row_nd[cluster_n == k].mean(0)) ** 2).sum() for k in range(5)]
    np.testing.assert_allclose(statistics.sse_k, [*sse_k, 0.0], rtol=1e-10)
    np.testing.assert_allclose(statistics.inertia, sum(sse_k))
    np.testing.assert_allclose(statistics.objective, np.bincount(cluster_n) @ sse_k)
    np.testing.assert_array_equal(statistics.mean_kd[5], np.zeros(4))


def test_a_cluster_that_loses_all_rows_is_exactly_zero():
    statistics, row_rd = ClusterStatistics.zeros(2, 3), np.full((7, 3), 0.1, np.float32)
    statistics.insert(row_rd, np.zeros(7, int))
    for row in range(7):
        statistics.remove(row_rd[row : row + 1], np.zeros(1, int))
    assert not statistics.sum_kd.any()
    assert not statistics.square_k.any()


def test_a_copy_is_independent():
    statistics = ClusterStatistics.zeros(2, 3)
    copy = statistics.copy()
    copy.insert(np.ones((1, 3)), np.zeros(1, int))
    assert not statistics.count_k.any()
