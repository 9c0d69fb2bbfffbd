"""Shards keep exact statistics through any sequence of calls, and any number of them act as one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.index.statistics import ClusterStatistics
from sampler_service.shard import Shard
from sampler_service.shards import LocalShards, Shards, relay, sample_shares, total
from sampler_service.types import NEVER, NO_CLUSTER, ReportBlock

NUM, DIM, K = 60, 4, 5


def report(rng: np.random.Generator, ids: np.ndarray, step: int, *, sketches: bool = True) -> ReportBlock:
    sketch_rd = (rng.standard_normal((len(ids), DIM)) + ids[:, None] % 3 * 4).astype(np.float32)
    return ReportBlock(
        example_ids=ids,
        losses=ids.astype(np.float32),
        norms=np.linalg.norm(sketch_rd, axis=1),
        sketches=sketch_rd if sketches else None,
        step=step,
    )


def filled(num_shards: int, *, num_examples: int = NUM, seed: int = 0, chunk_rows: int = 7) -> LocalShards:
    shards = LocalShards(num_examples, DIM, num_shards, chunk_rows=chunk_rows)
    shards.update(report(np.random.default_rng(seed), np.arange(num_examples), 0))
    return shards


def from_scratch(shards: Shards, num_clusters: int) -> ClusterStatistics:
    cluster_n = shards.clusters()
    id_n = np.flatnonzero(cluster_n != NO_CLUSTER)
    statistics = ClusterStatistics.zeros(num_clusters, shards.dim)
    statistics.insert(shards.rows(id_n), cluster_n[id_n])
    return statistics


def assert_same(left: ClusterStatistics, right: ClusterStatistics) -> None:
    np.testing.assert_array_equal(left.count_k, right.count_k)
    np.testing.assert_allclose(left.sum_kd, right.sum_kd, atol=1e-9)
    np.testing.assert_allclose(left.square_k, right.square_k, atol=1e-8)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_shards=st.integers(1, 3),
    calls=st.lists(st.sampled_from(["report", "losses", "assign", "refine", "delete", "grow"]), max_size=12),
)
def test_statistics_are_exact_after_any_sequence_of_calls(seed: int, num_shards: int, calls: list[str]):
    rng, shards = np.random.default_rng(seed), LocalShards(NUM, DIM, num_shards, chunk_rows=7)
    for step, call in enumerate(calls):
        ids = rng.permutation(shards.num_examples)[: rng.integers(0, 30)]
        if call in ("report", "losses"):
            shards.update(report(rng, ids, step, sketches=call == "report"))
        elif call == "grow":
            shards.grow(shards.num_examples + int(rng.integers(1, 20)))
        elif call == "delete":
            shards.delete(ids)
            assert np.isnan(shards.rows(ids)).all() and (shards.clusters()[ids] == NO_CLUSTER).all()
            assert np.isnan(shards.columns().loss_n[ids]).all() and (shards.columns().step_n[ids] == NEVER).all()
        elif call == "assign":
            shards.assign(rng.standard_normal((K, DIM)) * 4)
        else:
            shards.refine()
        statistics = shards.statistics()
        assert_same(statistics, from_scratch(shards, len(statistics)))
        assert statistics.count_k.sum() <= shards.sketched()


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_the_relay_lowers_j_over_all_shards_together(num_shards: int):
    shards = filled(num_shards, num_examples=200)
    before = shards.assign(np.random.default_rng(1).standard_normal((K, DIM)) * 4).objective
    for _ in range(8):
        refined = shards.refine()
        assert refined.placed == 0
        assert refined.statistics.objective <= before * (1 + 1e-12)
        assert_same(refined.statistics, shards.statistics())
        assert_same(refined.statistics, from_scratch(shards, K))
        before = refined.statistics.objective
    one = filled(1, num_examples=200)
    one.assign(np.random.default_rng(1).standard_normal((K, DIM)) * 4)
    for _ in range(8):
        one.refine()
    assert before == pytest.approx(one.statistics().objective, rel=0.3)  # other visiting order, like depth


@pytest.mark.parametrize("num_shards", [2, 3])
def test_many_shards_answer_as_one(num_shards: int):
    one, many = filled(1), filled(num_shards)
    centre_kd = np.random.default_rng(2).standard_normal((K, DIM)) * 4
    assert_same(one.assign(centre_kd), many.assign(centre_kd))
    np.testing.assert_array_equal(one.clusters(), many.clusters())
    for field in ("loss_n", "norm_n", "step_n"):
        np.testing.assert_array_equal(getattr(one.columns(), field), getattr(many.columns(), field))
    query_qd = one.rows(np.array([3, 7]))
    np.testing.assert_array_equal(one.nearest(query_qd, 6).example_ids_qk, many.nearest(query_qd, 6).example_ids_qk)
    np.testing.assert_array_equal(one.rows(np.array([9, 2, 5])), many.rows(np.array([9, 2, 5])))
    assert one.sketched() == many.sketched() == NUM
    for held in ("sketched", "memory_bytes", "away", "lost"):
        assert getattr(one.stock(), held) == getattr(many.stock(), held)
    assert [shard.shard for shard in many.stock().each] == list(range(num_shards))


def test_what_was_never_reported_is_marked():
    shards = LocalShards(5, DIM, 2)
    shards.update(report(np.random.default_rng(0), np.array([1, 4]), step=9))
    shards.flush()
    assert shards.sketched() == 2
    np.testing.assert_array_equal(np.isnan(shards.columns().loss_n), [True, False, True, True, False])
    np.testing.assert_array_equal(shards.columns().step_n, [NEVER, 9, NEVER, NEVER, 9])
    assert np.isnan(shards.rows(np.array([0, 1]))).all(axis=1).tolist() == [True, False]
    assert (shards.clusters() == NO_CLUSTER).all()
    assert len(shards.statistics()) == 0
    assert shards.nearest(np.zeros((1, DIM), np.float32), 3).example_ids_qk[0, 2] == -1


def test_the_stock_is_what_the_shards_hold():
    stock = filled(3).stock()
    assert (stock.sketched, stock.away, stock.lost) == (NUM, 0, 0)
    shards = LocalShards(NUM, DIM, 3)
    assert shards.stock() == replace(stock, each=[replace(shard, sketched=0) for shard in stock.each])
    assert shards._shards[0].stock()[0] != Shard(0, 3, NUM, DIM).stock()[0], "another life"


@pytest.mark.parametrize("num_shards", [1, 3])
def test_shards_that_were_not_told_of_growth_have_no_sketch_of_new_examples(num_shards: int):
    """Nobody tells them before the first report of it, and one that came back empty was never told."""
    shards, more = filled(num_shards), NUM + 20
    shards.assign(np.random.default_rng(1).standard_normal((K, DIM)) * 4)
    shards.grow(more)
    assert shards.stock().num_examples == NUM
    assert np.isnan(shards.rows(np.array([3, more - 1]))).all(axis=1).tolist() == [False, True]
    assert len(shards.clusters()) == len(shards.columns().loss_n) == len(shards.dots(np.ones(DIM, np.float32))) == more
    assert sorted(np.argsort(shards.balance(np.arange(more, dtype=np.float64)))) == list(range(more))
    shards.delete(np.arange(NUM - 2, more))
    shards.refine()
    shards.update(report(np.random.default_rng(2), np.array([more - 1]), 1))
    assert np.isnan(shards.columns().loss_n).tolist() == [NUM - 2 <= i < more - 1 for i in range(more)]
    assert (shards.stock().num_examples, shards.sketched()) == (more, NUM - 1)
    assert_same(shards.statistics(), from_scratch(shards, K))


def test_new_rows_join_at_the_next_refinement():
    shards = LocalShards(NUM, DIM, 2, chunk_rows=7)
    rng = np.random.default_rng(0)
    shards.update(report(rng, np.arange(30), 0))
    shards.assign(rng.standard_normal((K, DIM)) * 4)
    shards.update(report(rng, np.arange(30, NUM), 1))
    assert (shards.clusters()[30:] == NO_CLUSTER).all()
    refined = shards.refine()
    assert refined.placed == 30
    assert refined.statistics.count_k.sum() == NUM


def test_a_shard_that_comes_back_empty_takes_part_again():
    shards = filled(2)
    shards.assign(np.random.default_rng(1).standard_normal((K, DIM)) * 4)
    shards._shards[1] = Shard(1, 2, NUM, DIM)
    assert shards.statistics().count_k.sum() == NUM // 2
    shards.update(report(np.random.default_rng(5), np.arange(1, NUM, 2), 3))
    assert shards.refine().placed == NUM // 2
    assert_same(shards.statistics(), from_scratch(shards, K))


def test_a_report_between_two_chunks_of_a_pass_leaves_statistics_exact():
    shards = filled(2, chunk_rows=10)
    shards.assign(np.random.default_rng(1).standard_normal((K, DIM)) * 4)
    rng = np.random.default_rng(7)

    def refine(shard: int, others: ClusterStatistics, start: int, stop: int):
        shards.update(report(rng, rng.permutation(NUM)[:10], 1))
        return shards._shards[shard].refine(others, start, stop)

    relay(refine, [shard.statistics() for shard in shards._shards], NUM, 10)
    assert_same(shards.statistics(), from_scratch(shards, K))


def test_samples_are_rows_without_repeats_and_repeat_with_their_seed():
    shards = filled(3)
    sample_md = shards.sample_rows(20, seed=4)
    np.testing.assert_array_equal(sample_md, shards.sample_rows(20, seed=4))
    assert 20 <= len(sample_md) <= 22
    everything = {tuple(row) for row in shards.rows(np.arange(NUM)).tolist()}
    assert len({tuple(row) for row in sample_md.tolist()} & everything) == len(sample_md)
    assert len(shards.sample_rows(1000, seed=0)) == NUM
    assert LocalShards(5, DIM, 2).sample_rows(3, seed=0).shape == (0, DIM)


def test_sample_shares_follow_the_sketched_rows():
    assert sample_shares(10, [50, 50]) == [5, 5]
    assert sample_shares(10, [100, 0]) == [10, 0]
    assert sample_shares(1000, [3, 4]) == [3, 4]
    assert sample_shares(5, [0, 0]) == [0, 0]


def test_total_ignores_a_shard_of_another_size():
    assert len(total([ClusterStatistics.zeros(0, DIM), ClusterStatistics.zeros(K, DIM)])) == K


def test_gradients_of_another_unit_are_forgotten_once_and_losses_stay():
    shards = filled(2)
    shards.assign(np.random.default_rng(2).standard_normal((K, DIM)) * 4)
    assert not shards.scored()
    shards.forget_gradients()
    assert (shards.scored(), shards.sketched(), len(shards.statistics())) == (True, 0, 0)
    assert (shards.clusters() == NO_CLUSTER).all()
    assert np.isnan(shards.columns().norm_n).all() and np.isfinite(shards.columns().loss_n).all()
    shards.update(report(np.random.default_rng(0), np.array([1, 4]), step=9))
    shards.forget_gradients()
    assert shards.sketched() == 2, "what came since is of the new unit"


def test_gradients_that_are_forgotten_while_a_partition_is_made_leave_the_statistics_exact():
    shards = filled(1)
    centre_kd = np.random.default_rng(2).standard_normal((K, DIM)) * 4
    shards._shards[0].assign(centre_kd, 0, NUM // 2)
    shards.forget_gradients()
    shards.update(report(np.random.default_rng(0), np.arange(NUM), step=9))
    shards._shards[0].assign(centre_kd, NUM // 2, NUM)
    assert_same(shards.statistics(), from_scratch(shards, K))
