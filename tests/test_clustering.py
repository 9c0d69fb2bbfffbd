"""A partition is what the shards hold, warm or cold, and is refreshed when the rules say so."""

import numpy as np
import pytest

from sampler_service.clustering import Partition, recluster, refresh_due
from sampler_service.errors import ConfigError
from sampler_service.shards import LocalShards
from sampler_service.types import NO_CLUSTER, ReportBlock

NUM, DIM = 400, 8


def report(sketch_rd: np.ndarray, ids: np.ndarray | None = None) -> ReportBlock:
    rows = len(sketch_rd)
    return ReportBlock(
        example_ids=np.arange(rows) if ids is None else ids,
        losses=np.zeros(rows, np.float32),
        norms=np.linalg.norm(sketch_rd, axis=1).astype(np.float32),
        sketches=sketch_rd.astype(np.float32),
        step=0,
    )


def gradients(seed: int = 0) -> np.ndarray:
    """Most examples nearly converged, a few far from it, and duplicates: what a late gradient looks like."""
    rng = np.random.default_rng(seed)
    row_nd = rng.standard_normal((NUM, DIM)) * 10.0 ** rng.uniform(-2, 1, (NUM, 1))
    row_nd[300:] = row_nd[rng.integers(0, 5, 100)]
    return row_nd


def filled(num_shards: int = 2, *, rows: int = NUM) -> LocalShards:
    shards = LocalShards(NUM, DIM, num_shards, chunk_rows=50)
    shards.update(report(gradients()[:rows]))
    return shards


def assert_consistent(partition: Partition, shards: LocalShards) -> None:
    np.testing.assert_array_equal(partition.cluster_n, shards.clusters())
    known = np.flatnonzero(partition.cluster_n != NO_CLUSTER)
    row_rd, cluster_r = shards.rows(known).astype(np.float64), partition.cluster_n[known]
    np.testing.assert_array_equal(partition.size_k, np.bincount(cluster_r, minlength=len(partition)))
    for cluster in np.unique(cluster_r):
        member_md = row_rd[cluster_r == cluster]
        np.testing.assert_allclose(partition.mean_kd[cluster], member_md.mean(axis=0), atol=1e-9)
        sse = ((member_md - member_md.mean(axis=0)) ** 2).sum()
        np.testing.assert_allclose(partition.sse_k[cluster], sse, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("method", ["hartigan", "kmeans"])
def test_a_cold_partition_holds_every_example_and_improves_on_its_seeds(method: str, num_shards: int):
    shards = filled(num_shards)
    partition = recluster(shards, num_clusters=12, method=method, seed=3, warm=False)
    assert (partition.cluster_n != NO_CLUSTER).all()
    assert_consistent(partition, shards)
    assert partition.objective <= partition.objective_before
    assert 1 <= partition.passes <= 10
    again = recluster(filled(num_shards), num_clusters=12, method=method, seed=3, warm=False)
    np.testing.assert_array_equal(again.cluster_n, partition.cluster_n)


def test_each_method_is_better_at_its_own_objective():
    found = {}
    for method in ("hartigan", "kmeans"):
        shards = filled()
        recluster(shards, num_clusters=12, method=method, warm=False, max_passes=20)
        found[method] = shards.statistics()
    assert found["hartigan"].objective < 0.7 * found["kmeans"].objective
    assert found["kmeans"].inertia < found["hartigan"].inertia


@pytest.mark.parametrize("method", ["hartigan", "kmeans"])
def test_a_warm_start_keeps_what_there_is_and_places_what_is_new(method: str):
    shards = filled(rows=300)
    first = recluster(shards, num_clusters=12, method=method, warm=False)
    assert (first.cluster_n[300:] == NO_CLUSTER).all()
    shards.update(report(gradients()[300:], np.arange(300, NUM)))
    second = recluster(shards, num_clusters=12, method=method, warm=True)
    assert_consistent(second, shards)
    assert (second.cluster_n != NO_CLUSTER).all()
    settled = recluster(shards, num_clusters=12, method=method, warm=True)
    assert settled.passes <= second.passes
    assert np.mean(settled.cluster_n == second.cluster_n) > 0.9


def test_another_number_of_clusters_starts_cold():
    shards = filled()
    recluster(shards, num_clusters=12, warm=False)
    assert len(recluster(shards, num_clusters=7, warm=True)) == 7
    assert_consistent(recluster(shards, num_clusters=7, warm=True), shards)


@pytest.mark.parametrize("method", ["hartigan", "kmeans"])
def test_more_clusters_than_distinct_sketches_leave_some_empty(method: str):
    shards = LocalShards(20, DIM, 2)
    shards.update(report(np.repeat(np.eye(3, DIM), [6, 6, 8], axis=0)))
    partition = recluster(shards, num_clusters=5, method=method, warm=False)
    assert np.count_nonzero(partition.size_k) >= 3
    assert partition.size_k.sum() == 20
    assert partition.objective == pytest.approx(0.0, abs=1e-9)
    assert_consistent(partition, shards)


def test_fewer_examples_than_clusters_is_no_error():
    shards = LocalShards(20, DIM, 2)
    shards.update(report(gradients()[:3]))
    partition = recluster(shards, num_clusters=8, warm=False)
    assert np.count_nonzero(partition.size_k) == 3
    assert np.count_nonzero(partition.cluster_n == NO_CLUSTER) == 17


def test_a_partition_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        recluster(filled(), num_clusters=3).cluster_n[0] = 1


def test_bad_arguments_are_named():
    with pytest.raises(ConfigError, match="unknown clustering method 'spectral'"):
        recluster(filled(), num_clusters=3, method="spectral")
    with pytest.raises(ConfigError, match="num_clusters"):
        recluster(filled(), num_clusters=0)
    with pytest.raises(ConfigError, match="nothing to cluster"):
        recluster(LocalShards(5, DIM), num_clusters=3)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"fresh_rows": 10}, None),
        ({"fresh_rows": 50}, "coverage"),
        ({"fresh_rows": 10, "ratio": 0.95}, "ratio"),
        ({"fresh_rows": 10, "ratio": 0.85}, None),
        ({"fresh_rows": 9, "ratio": 5.0}, None),
        ({"fresh_rows": 49, "ratio": np.nan}, None),
        ({"fresh_rows": 1, "learning_rate_dropped": True}, "learning_rate"),
        ({"fresh_rows": 0, "learning_rate_dropped": True}, None),
        ({"fresh_rows": 60, "coverage": 1.0}, None),
    ],
)
def test_refresh_rules(facts: dict, reason: str | None):
    assert refresh_due(num_examples=100, **facts) == reason
