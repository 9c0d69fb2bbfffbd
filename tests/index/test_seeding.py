"""Seeds, assignment and what becomes of empty clusters."""

import numpy as np

from sampler_service.index.seeding import assign, means_with_reseeds, seed_centres
from sampler_service.index.statistics import ClusterStatistics


def test_assignment_is_exact_far_from_the_origin():
    """fp32 distances between rows at 1e4 with spread 1 would be noise; centred ones are not."""
    rng = np.random.default_rng(0)
    centre_kd = rng.standard_normal((7, 8)) + 1e4
    row_nd = (centre_kd[rng.integers(0, 7, 100)] + 0.3 * rng.standard_normal((100, 8))).astype(np.float32)
    distance_nk = ((row_nd[:, None].astype(np.float64) - centre_kd[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(assign(row_nd, centre_kd), distance_nk.argmin(axis=1))


def test_seeds_do_not_depend_on_the_unit():
    row_nd = np.random.default_rng(1).standard_normal((200, 4)).astype(np.float32)
    small_kd = seed_centres((row_nd * np.float32(2.0**-40)), 5, seed=1)
    np.testing.assert_allclose(small_kd * 2.0**40, seed_centres(row_nd, 5, seed=1), rtol=1e-3, atol=1e-3)


def test_fewer_rows_than_clusters_leave_clusters_empty():
    row_md = np.array([[0.0, 1.0], [5.0, 1.0]], np.float32)
    centre_kd = seed_centres(row_md, 4, seed=0)
    assert centre_kd.shape == (4, 2)
    assert set(assign(row_md, centre_kd)) == {0, 1}


def test_rows_that_are_all_alike_are_no_trouble():
    row_md = np.full((50, 3), 7.0, np.float32)
    centre_kd = seed_centres(row_md, 4, seed=0)
    np.testing.assert_allclose(centre_kd, 7.0)
    assert assign(row_md, centre_kd).max() < 4


def test_assigning_no_rows_gives_none():
    assert assign(np.empty((0, 3), np.float32), np.zeros((2, 3))).shape == (0,)


def test_an_empty_cluster_takes_half_of_the_one_with_the_most_scatter():
    rng = np.random.default_rng(2)
    row_nd = np.concatenate([rng.standard_normal((40, 3)), 100 + 20 * rng.standard_normal((40, 3))])
    cluster_n = np.repeat([0, 2], 40)
    statistics = ClusterStatistics.zeros(4, 3)
    statistics.insert(row_nd, cluster_n)
    counts = np.bincount(assign(row_nd.astype(np.float32), means_with_reseeds(statistics)), minlength=4)
    assert counts[0] == 40
    assert (counts > 0).all()
