"""Neighbours are exact, and the same over any number of shards."""

import numpy as np
import pytest

from sampler_service.errors import ConfigError
from sampler_service.index import neighbours
from sampler_service.index.neighbours import merge, nearest
from sampler_service.types import NO_ROW


def search(row_nd: np.ndarray, id_n: np.ndarray, query_qd: np.ndarray, k: int, metric: str = "l2"):
    return nearest(lambda row: row_nd[row], np.arange(len(row_nd)), id_n, query_qd, k, metric)


@pytest.fixture
def row_nd() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((90, 6)).astype(np.float32)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_neighbours_equal_brute_force(row_nd: np.ndarray, metric: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(neighbours, "_BLOCK", 32)  # several blocks, one of them ragged
    query_qd = row_nd[:4] * 1.5
    if metric == "l2":
        distance_qn = ((query_qd[:, None] - row_nd[None]) ** 2).sum(-1)
    else:
        unit_nd = row_nd / np.linalg.norm(row_nd, axis=1, keepdims=True)
        distance_qn = 1 - (query_qd / np.linalg.norm(query_qd, axis=1, keepdims=True)) @ unit_nd.T
    found = search(row_nd, np.arange(90) * 3, query_qd, 5, metric)
    np.testing.assert_array_equal(found.example_ids_qk, np.argsort(distance_qn, axis=1)[:, :5] * 3)
    np.testing.assert_allclose(found.distance_qk, np.sort(distance_qn, axis=1)[:, :5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_shards", [2, 3])
def test_merged_shards_equal_one(row_nd: np.ndarray, num_shards: int):
    id_n, query_qd = np.arange(90), row_nd[:3]
    whole = search(row_nd, id_n, query_qd, 7)
    parts = [search(row_nd[shard::num_shards], id_n[shard::num_shards], query_qd, 7) for shard in range(num_shards)]
    np.testing.assert_array_equal(merge(parts, 7).example_ids_qk, whole.example_ids_qk)


def test_fewer_rows_than_k_are_padded(row_nd: np.ndarray):
    found = search(row_nd[:2], np.array([4, 9]), row_nd[:1], 3)
    assert found.example_ids_qk.tolist() == [[4, 9, NO_ROW]]
    assert np.isinf(found.distance_qk[0, 2])
    assert search(row_nd[:0], np.empty(0, np.int64), row_nd[:2], 2).example_ids_qk.tolist() == [[NO_ROW] * 2] * 2


def test_cosine_survives_tiny_and_zero_sketches(row_nd: np.ndarray):
    tiny_nd = row_nd * np.float32(1e-30)
    found = search(tiny_nd, np.arange(90), tiny_nd[5:6], 1, "cosine")
    assert found.example_ids_qk.tolist() == [[5]]
    assert search(row_nd * 0, np.arange(90), row_nd[:1], 1, "cosine").distance_qk == pytest.approx(1.0)


@pytest.mark.parametrize(("k", "metric"), [(0, "l2"), (1, "euclid")])
def test_bad_arguments_are_named(row_nd: np.ndarray, k: int, metric: str):
    with pytest.raises(ConfigError, match=r"k must be|metric must be"):
        search(row_nd, np.arange(90), row_nd[:1], k, metric)
