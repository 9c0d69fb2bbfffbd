"""The measured ratio agrees with the exact one, from nothing but rows as a policy draws them."""

import numpy as np
import pytest

from sampler_service.monitor import VarianceMonitor, effective_sample_size, tau
from sampler_service.planning.draws import DrawPlanner
from sampler_service.types import StratifiedDraw

NUM, DIM, K = 2000, 16, 8


@pytest.fixture(scope="module")
def gradient_nd() -> np.ndarray:
    rng = np.random.default_rng(0)
    mean_kd = rng.standard_normal((K, DIM)) * 2
    width_k = 10.0 ** np.linspace(-1, 0.5, K)
    cluster_n = clusters()
    return mean_kd[cluster_n] + rng.standard_normal((NUM, DIM)) * width_k[cluster_n, None] + 1.0


def clusters() -> np.ndarray:
    return (np.sqrt(np.linspace(0, 0.999, NUM)) * K).astype(np.int32)  # sizes rise with the number


def trace_variance(row_nd: np.ndarray) -> float:
    return float(((row_nd - row_nd.mean(axis=0)) ** 2).sum(axis=1).mean())


def rates(size_k: np.ndarray, alpha: float) -> np.ndarray:
    return (1 - alpha) / K + alpha * size_k / NUM


def draw(monitor: VarianceMonitor, row_nd: np.ndarray, probability_n: np.ndarray, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(rows // 100):
        index_r = rng.choice(NUM, 100, p=probability_n)
        monitor.add(
            sketch_rd=row_nd[index_r].astype(np.float32),
            norm_r=np.linalg.norm(row_nd[index_r], axis=1).astype(np.float32),
            cluster_r=clusters()[index_r],
            weight_r=(1 / (NUM * probability_n[index_r])).astype(np.float32),
        )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_ratio_of_stratified_draws_is_the_exact_one(gradient_nd: np.ndarray, alpha: float):
    size_k = np.bincount(clusters(), minlength=K)
    rate_k = rates(size_k, alpha)
    variance_k = np.array([trace_variance(gradient_nd[clusters() == k]) for k in range(K)])
    exact = ((size_k / NUM) ** 2 / rate_k) @ variance_k / trace_variance(gradient_nd)
    estimates = []
    for seed in range(5):
        monitor = VarianceMonitor(dim=DIM)
        draw(monitor, gradient_nd, (rate_k / size_k)[clusters()], 2000, seed)
        estimates.append(monitor.window().ratio_to_iid(size_k=size_k, rate_k=rate_k))
    np.testing.assert_allclose(estimates, exact, rtol=0.15)
    np.testing.assert_allclose(np.mean(estimates), exact, rtol=0.05)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_the_ratio_of_weighted_draws_is_the_exact_one(gradient_nd: np.ndarray, alpha: float):
    norm_n = np.linalg.norm(gradient_nd, axis=1)
    probability_n = (1 - alpha) * norm_n / norm_n.sum() + alpha / NUM
    square = float((gradient_nd.mean(axis=0) ** 2).sum())
    exact = ((norm_n**2 / (NUM**2 * probability_n)).sum() - square) / ((norm_n**2).mean() - square)
    estimates = []
    for seed in range(5):
        monitor = VarianceMonitor(dim=DIM)
        draw(monitor, gradient_nd, probability_n, 3000, seed)
        estimates.append(monitor.window().ratio_to_iid())
    np.testing.assert_allclose(estimates, exact, rtol=0.12)
    np.testing.assert_allclose(np.mean(estimates), exact, rtol=0.05)


@pytest.mark.parametrize("batch_size", [8, 10, 30])
def test_given_the_batch_size_the_ratio_is_that_of_planned_batches(gradient_nd: np.ndarray, batch_size: int):
    """Integer counts cost variance where B q_k is far from an integer, and the closed form does not see it."""
    size_k, batches = np.bincount(clusters(), minlength=K), 4000
    rate_k = rates(size_k, 0.5)
    draws = DrawPlanner(NUM, seed=1)
    rows = draws.block(
        StratifiedDraw(stratum_n=clusters(), rate_k=rate_k), epoch=0, position=0, num_batches=batches, size=batch_size
    )
    weighted_md = rows.weights[:, None] * gradient_nd[rows.example_ids]
    away_sd = weighted_md.reshape(batches, batch_size, DIM).mean(axis=1) - gradient_nd.mean(axis=0)
    planned = (away_sd**2).sum(axis=1).mean() * batch_size / trace_variance(gradient_nd)
    monitor = VarianceMonitor(dim=DIM)
    draw(monitor, gradient_nd, (rate_k / size_k)[clusters()], 4000, seed=1)
    measured = monitor.window().ratio_to_iid(size_k=size_k, rate_k=rate_k, batch_size=batch_size)
    assert measured == pytest.approx(planned, rel=0.12)
    assert monitor.window().ratio_to_iid(size_k=size_k, rate_k=rate_k) < measured


def test_whole_counts_cost_nothing(gradient_nd: np.ndarray):
    size_k, monitor = np.bincount(clusters(), minlength=K), VarianceMonitor(dim=DIM)
    draw(monitor, gradient_nd, np.full(NUM, 1 / NUM), 2000, seed=0)
    whole = monitor.window().ratio_to_iid(size_k=size_k, rate_k=rates(size_k, 0.0), batch_size=2 * K)
    assert whole == monitor.window().ratio_to_iid(size_k=size_k, rate_k=rates(size_k, 0.0))


def test_rows_of_a_sweep_tell_what_a_stratified_policy_would_give(gradient_nd: np.ndarray):
    size_k = np.bincount(clusters(), minlength=K)
    rate_k = rates(size_k, 0.5)
    variance_k = np.array([trace_variance(gradient_nd[clusters() == k]) for k in range(K)])
    exact = ((size_k / NUM) ** 2 / rate_k) @ variance_k / trace_variance(gradient_nd)
    monitor = VarianceMonitor(dim=DIM)
    draw(monitor, gradient_nd, np.full(NUM, 1 / NUM), 3000, seed=1)
    assert monitor.window().ratio_to_iid(size_k=size_k, rate_k=rate_k) == pytest.approx(exact, rel=0.15)
    assert monitor.window().ratio_to_iid() == pytest.approx(1.0)  # the sweep itself is drawn like i.i.d.


def test_norms_alone_never_flatter(gradient_nd: np.ndarray):
    norm_n = np.linalg.norm(gradient_nd, axis=1)
    probability_n = 0.5 * norm_n / norm_n.sum() + 0.5 / NUM
    with_sketches, without = VarianceMonitor(dim=DIM), VarianceMonitor(dim=DIM)
    draw(with_sketches, gradient_nd, probability_n, 3000, seed=2)
    index_r = np.random.default_rng(2).choice(NUM, 3000, p=probability_n)
    without.add(
        sketch_rd=None,
        norm_r=norm_n[index_r].astype(np.float32),
        cluster_r=np.full(3000, -1, np.int32),
        weight_r=(1 / (NUM * probability_n[index_r])).astype(np.float32),
    )
    assert with_sketches.window().ratio_to_iid() < without.window().ratio_to_iid() < 1.0


def test_a_stale_partition_is_found_out(gradient_nd: np.ndarray):
    """Gradients that have moved away from the clusters cannot look as good as those that made them."""
    size_k, moved_nd = np.bincount(clusters(), minlength=K), np.random.default_rng(3).permutation(gradient_nd)
    rate_k = rates(size_k, 0.0)
    ratio = {}
    for name, row_nd in (("fresh", gradient_nd), ("stale", moved_nd)):
        monitor = VarianceMonitor(dim=DIM)
        draw(monitor, row_nd, (rate_k / size_k)[clusters()], 2000, seed=4)
        ratio[name] = monitor.window().ratio_to_iid(size_k=size_k, rate_k=rate_k)
    assert ratio["fresh"] < 0.9 < 1.0 < ratio["stale"]


def test_the_window_slides(gradient_nd: np.ndarray):
    size_k = np.bincount(clusters(), minlength=K)
    probability_n = np.full(NUM, 1 / NUM)
    slid, short = VarianceMonitor(dim=DIM, window_rows=500), VarianceMonitor(dim=DIM, window_rows=500)
    draw(slid, gradient_nd[::-1] * 100, probability_n, 700, seed=5)
    draw(slid, gradient_nd, probability_n, 500, seed=6)
    draw(short, gradient_nd, probability_n, 500, seed=6)
    rate_k = rates(size_k, 0.5)
    assert slid.num_rows == short.num_rows == 500
    assert slid.window().ratio_to_iid(size_k=size_k, rate_k=rate_k) == pytest.approx(
        short.window().ratio_to_iid(size_k=size_k, rate_k=rate_k)
    )


def test_a_block_longer_than_the_window_leaves_its_end(gradient_nd: np.ndarray):
    monitor = VarianceMonitor(dim=DIM, window_rows=300)
    for rows in (slice(0, 450), slice(450, 470)):
        count = rows.stop - rows.start
        monitor.add(
            sketch_rd=gradient_nd[rows].astype(np.float32),
            norm_r=np.zeros(count, np.float32),
            cluster_r=clusters()[rows],
            weight_r=np.ones(count, np.float32),
        )
    held = np.sort(monitor._sketch_rd[:, 0])
    np.testing.assert_array_equal(held, np.sort(gradient_nd[170:470, 0].astype(np.float32)))


def test_too_little_data_is_no_answer(gradient_nd: np.ndarray):
    monitor, size_k = VarianceMonitor(dim=DIM, min_rows=256), np.bincount(clusters(), minlength=K)
    assert np.isnan(monitor.window().ratio_to_iid())
    draw(monitor, gradient_nd, np.full(NUM, 1 / NUM), 200, seed=0)
    assert np.isnan(monitor.window().ratio_to_iid())
    draw(monitor, gradient_nd, np.full(NUM, 1 / NUM), 100, seed=0)
    assert np.isfinite(monitor.window().ratio_to_iid())
    many_k = np.ones(10 * NUM)  # hardly a stratum has two rows in the window
    assert np.isnan(monitor.window().ratio_to_iid(size_k=many_k, rate_k=many_k / many_k.sum()))
    monitor.reset()
    assert np.isnan(monitor.window().ratio_to_iid(size_k=size_k, rate_k=rates(size_k, 0.5)))


def test_gradients_that_are_all_zero_are_no_answer():
    monitor = VarianceMonitor(dim=DIM, min_rows=2)
    monitor.add(
        sketch_rd=np.zeros((9, DIM), np.float16),
        norm_r=np.zeros(9, np.float32),
        cluster_r=np.zeros(9, np.int32),
        weight_r=np.ones(9, np.float32),
    )
    assert np.isnan(monitor.window().ratio_to_iid())
    assert np.isnan(monitor.window().ratio_to_iid(size_k=np.array([9.0]), rate_k=np.array([1.0])))


def test_rows_that_do_not_count_are_left_out(gradient_nd: np.ndarray):
    """Padding has weight 0, and a report may name a cluster of the partition before."""
    size_k, monitor = np.bincount(clusters(), minlength=K), VarianceMonitor(dim=DIM)
    draw(monitor, gradient_nd, np.full(NUM, 1 / NUM), 1000, seed=0)
    before = monitor.window().ratio_to_iid(size_k=size_k, rate_k=rates(size_k, 0.5))
    for cluster, weight in ((0, 0.0), (K + 5, 1.0), (-1, 1.0)):
        monitor.add(
            sketch_rd=np.full((50, DIM), 1e3, np.float32),
            norm_r=np.ones(50, np.float32),
            cluster_r=np.full(50, cluster, np.int32),
            weight_r=np.full(50, weight, np.float32),
        )
    assert monitor.window().ratio_to_iid(size_k=size_k, rate_k=rates(size_k, 0.5)) == pytest.approx(before)


def test_effective_sample_size_and_tau():
    uniform_n, single_n = np.full(10, 0.1), np.eye(10)[0]
    assert effective_sample_size(uniform_n) == pytest.approx(10.0)
    assert tau(uniform_n) == pytest.approx(1.0)
    assert effective_sample_size(single_n) == pytest.approx(1.0)
    assert tau(single_n) == pytest.approx(np.sqrt(10))
