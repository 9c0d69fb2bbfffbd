"""Balanced orders: the signs of the walk, and partial sums that stay shorter than those of random orders."""

from __future__ import annotations

import numpy as np

from sampler_service.balancing import next_order, signs
from sampler_service.shards import LocalShards
from sampler_service.types import ReportBlock


def stored(row_nd: np.ndarray, num_shards: int, chunk_rows: int = 32) -> LocalShards:
    shards = LocalShards(len(row_nd), row_nd.shape[1], num_shards, "float32", chunk_rows)
    n = len(row_nd)
    shards.update(
        ReportBlock(
            example_ids=np.arange(n),
            losses=np.ones(n, np.float32),
            norms=np.ones(n, np.float32),
            sketches=row_nd.astype(np.float32),
            step=0,
        )
    )
    return shards


def herding(row_nd: np.ndarray, order: np.ndarray) -> float:
    """The longest partial sum of centred rows: what the source's bound is about."""
    return float(np.linalg.norm(np.cumsum((row_nd - row_nd.mean(0))[order], axis=0), axis=1).max())


def test_a_plus_is_what_keeps_the_sum_short():
    row_rd = np.array([[1.0], [1.0], [-3.0], [0.5]], np.float32)
    plus_r, sum_d = signs(row_rd, np.zeros(1), np.zeros(1))
    # 0 -> +1; 1 -> -1 gives 0; 0 -> + gives -3; -3 -> + gives -2.5
    assert plus_r.tolist() == [True, False, True, True]
    assert sum_d.tolist() == [-2.5]
    plus_r, sum_d = signs(row_rd[:1], np.zeros(1), np.array([0.25]))
    assert (plus_r.tolist(), sum_d.tolist()) == ([False], [-0.75])


def test_a_walk_in_parts_is_the_walk():
    row_rd = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    whole, last = signs(row_rd, np.ones(4), np.zeros(4))
    first, between = signs(row_rd[:20], np.ones(4), np.zeros(4))
    second, end = signs(row_rd[20:], np.ones(4), between)
    np.testing.assert_array_equal(np.concatenate((first, second)), whole)
    np.testing.assert_allclose(end, last)


def test_minuses_come_last_and_backwards():
    plus_r = np.array([True, False, False, True])
    assert next_order(np.array([7, 8, 9, 10]), plus_r).tolist() == [7, 10, 9, 8]


def test_places_are_a_permutation_that_herds_better_than_chance_over_any_number_of_shards():
    rng = np.random.default_rng(1)
    row_nd = rng.normal(size=(600, 8)) + 5
    by_chance = np.mean([herding(row_nd, rng.permutation(600)) for _ in range(10)])
    for num_shards in (1, 3):
        shards = stored(row_nd, num_shards)
        place_n = rng.permutation(600).astype(np.float64)
        for _ in range(6):
            place_n = shards.balance(place_n)
        assert place_n.min() > 0 and place_n.max() < 1
        order = np.argsort(place_n, kind="stable")
        assert sorted(order.tolist()) == list(range(600))
        assert herding(row_nd, order) < 0.6 * by_chance


def test_rows_without_a_sketch_do_not_tilt_the_walk():
    row_nd = np.random.default_rng(2).normal(size=(40, 3)) + 100
    shards = LocalShards(60, 3, 2, "float32")
    shards.update(
        ReportBlock(
            example_ids=np.arange(40),
            losses=np.ones(40, np.float32),
            norms=np.ones(40, np.float32),
            sketches=row_nd.astype(np.float32),
            step=0,
        )
    )
    place_n = shards.balance(np.arange(60.0))
    assert len(set(np.argsort(place_n).tolist())) == 60
    order = [i for i in np.argsort(place_n) if i < 40]
    assert herding(row_nd, np.array(order)) < 30
