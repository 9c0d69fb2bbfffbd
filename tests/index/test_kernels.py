"""Device choice and the exactness of the searches."""

import faiss
import numpy as np
import pytest

from sampler_service.errors import ConfigError
from sampler_service.index import kernels


def points(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def test_knn_is_exact_by_l2_and_by_inner_product():
    query_qd, base_nd = points(5, 8), points(40, 8, 1)
    distance_qn = ((query_qd[:, None] - base_nd[None]) ** 2).sum(-1)
    score_qk, row_qk = kernels.knn(query_qd, base_nd, 3)
    np.testing.assert_array_equal(row_qk, np.argsort(distance_qn, axis=1)[:, :3])
    np.testing.assert_allclose(score_qk, np.sort(distance_qn, axis=1)[:, :3], rtol=1e-4)
    product_qn = query_qd @ base_nd.T
    score_q, row_q = kernels.largest_inner_product(query_qd, base_nd)
    np.testing.assert_array_equal(row_q, product_qn.argmax(axis=1))
    np.testing.assert_allclose(score_q, product_qn.max(axis=1), rtol=1e-5)


def test_without_a_gpu_no_gpu_symbol_is_touched(monkeypatch: pytest.MonkeyPatch):
    """knn_gpu would abort the process, so the count must be asked for first."""
    asked = []

    def touched(*args: object, **options: object) -> None:
        raise AssertionError("a GPU symbol was used without a GPU")

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: asked.append(1) or 0)
    for symbol in ("knn_gpu", "StandardGpuResources"):
        monkeypatch.setattr(faiss, symbol, touched, raising=False)
    kernels.knn(points(2, 4), points(9, 4), 1)
    kernels.largest_inner_product(points(2, 4), points(9, 4))
    kernels.nearest_centre(points(9, 4), points(2, 4))
    kernels.kmeans(points(9, 4), 2, seed=0)
    assert len(asked) >= 4


def test_with_a_gpu_the_same_calls_go_there(monkeypatch: pytest.MonkeyPatch):
    calls = []

    class Resources:
        def setTempMemory(self, size: int) -> None:  # noqa: N802
            calls.append(size)

    def knn_gpu(resources: object, query: np.ndarray, base: np.ndarray, k: int, metric: int) -> tuple:
        assert isinstance(resources, Resources)
        calls.append(metric)
        return faiss.knn(query, base, k, metric=metric)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu)
    monkeypatch.setattr(faiss, "StandardGpuResources", Resources, raising=False)
    kernels._gpu_resources.cache_clear()
    kernels.knn(points(2, 4), points(9, 4), 1)
    kernels.largest_inner_product(points(2, 4), points(9, 4))
    kernels._gpu_resources.cache_clear()
    assert calls[1:] == [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT]
    assert calls[0] < 1 << 30  # a bounded scratch, not 18 % of the card


def test_kmeans_finds_separated_blobs_and_repeats():
    centre_kd = 50 * points(4, 6)
    rows = np.concatenate([centre + points(30, 6, seed) for seed, centre in enumerate(centre_kd)])
    found_kd = kernels.kmeans(rows, 4, seed=3)
    np.testing.assert_array_equal(found_kd, kernels.kmeans(rows, 4, seed=3))
    assert np.sqrt(((found_kd[:, None] - centre_kd[None]) ** 2).sum(-1)).min(axis=0).max() < 2.0


def test_no_queries_give_no_rows():
    assert kernels.nearest_centre(points(0, 4), points(3, 4)).shape == (0,)


@pytest.mark.parametrize("k", [0, 10])
def test_k_out_of_range_is_named(k: int):
    with pytest.raises(ConfigError, match="k must be 1"):
        kernels.knn(points(2, 4), points(9, 4), k)


def test_bad_arguments_are_named():
    with pytest.raises(ConfigError, match="unknown metric 'cosine'"):
        kernels.knn(points(2, 4), points(9, 4), 1, metric="cosine")
    with pytest.raises(ConfigError, match="at least 3 rows"):
        kernels.kmeans(points(2, 4), 3, seed=0)
    with pytest.raises(ConfigError, match="thread"):
        kernels.set_threads(0)
