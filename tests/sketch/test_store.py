"""The store keeps what was reported last, in eleven bits at any magnitude."""

import numpy as np
import pytest

from sampler_service.errors import ConfigError
from sampler_service.sketch.store import SketchStore, finite_rows
from sampler_service.types import NEVER, ReportBlock


def block(sketches: np.ndarray | None, count: int, *, step: int = 0, value: float = 1.0) -> ReportBlock:
    return ReportBlock(
        example_ids=np.arange(count),
        losses=np.full(count, value, np.float32),
        norms=np.full(count, value, np.float32),
        sketches=sketches,
        step=step,
    )


def test_a_fresh_store_knows_nothing():
    store = SketchStore(3, 4)
    assert np.isnan(store.loss_n).all()
    assert np.isnan(store.norm_n).all()
    assert (store.step_n == NEVER).all()
    assert store.num_sketched == 0
    assert not store.rows(slice(None)).any()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_float16_rows_keep_their_bits_at_any_magnitude(scale: float):
    sketch_rd = (np.random.default_rng(0).standard_normal((20, 8)) * scale).astype(np.float32)
    store = SketchStore(20, 8)
    store.upsert(np.arange(20), block(sketch_rd, 20))
    largest_r1 = np.abs(sketch_rd).max(axis=1, keepdims=True)
    assert (np.abs(store.rows(slice(None)) - sketch_rd) / largest_r1).max() < 2.0**-10


def test_float16_input_and_float32_stores_are_kept_exactly():
    sketch_rd = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float16)
    sketch_rd[2] = 0
    for dtype, given in (("float16", sketch_rd), ("float32", sketch_rd.astype(np.float32) * 1.001)):
        store = SketchStore(5, 8, dtype)
        store.upsert(np.arange(5), block(given, 5))
        np.testing.assert_array_equal(store.rows(np.arange(5)), given)


def test_a_row_that_comes_in_the_stores_precision_takes_the_place_of_a_scaled_one():
    store = SketchStore(1, 2)
    store.upsert(np.arange(1), block(np.array([[1e9, 3e9]], np.float32), 1))
    store.upsert(np.arange(1), block(np.array([[60000, 6e-8]], np.float16), 1))
    np.testing.assert_array_equal(store.rows(np.arange(1)), np.array([[60000, 6e-8]], np.float16))


def test_finite_rows_are_told_for_every_float16():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)[:, None]
    np.testing.assert_array_equal(finite_rows(every), np.isfinite(every[:, 0]))
    assert finite_rows(np.array([[1, np.nan], [2, 3]], np.float32)).tolist() == [False, True]
    assert finite_rows(np.empty((0, 4), np.float16)).tolist() == []


def test_the_latest_step_wins_and_nan_leaves_the_old_value():
    store, sketch_rd = SketchStore(4, 2), np.ones((2, 2), np.float32)
    store.upsert(np.array([3, 1]), block(sketch_rd, 2, step=5, value=2.0))
    store.upsert(np.array([1, 0]), block(None, 2, step=7, value=np.nan))
    assert store.step_n.tolist() == [7, 7, NEVER, 5]
    np.testing.assert_array_equal(store.loss_n, [np.nan, 2, np.nan, 2])
    assert store.sketched_n.tolist() == [False, True, False, True]


def test_rows_of_an_earlier_step_change_nothing_but_those_of_scorers_do():
    store, sketch_rd = SketchStore(3, 2), np.ones((2, 2), np.float32)
    store.upsert(np.array([0, 1]), block(sketch_rd, 2, step=5, value=5.0))
    store.upsert(np.array([1, 2]), block(2 * sketch_rd, 2, step=4, value=4.0))
    assert store.step_n.tolist() == [5, 5, 4]
    assert store.loss_n.tolist() == store.norm_n.tolist() == [5, 5, 4]
    np.testing.assert_array_equal(store.rows(np.arange(3))[:, 0], [1, 1, 2])
    store.upsert(np.array([0, 1]), block(3 * sketch_rd, 2, step=3, value=np.nan))
    assert store.step_n.tolist() == [5, 5, 4]
    np.testing.assert_array_equal(store.rows(np.arange(3))[:, 0], [3, 3, 2])


def test_a_sketch_that_is_not_finite_is_left_out():
    store = SketchStore(2, 2)
    store.upsert(np.arange(2), block(np.array([[1.0, 2.0], [np.nan, 1.0]], np.float32), 2))
    store.upsert(np.arange(2), block(np.array([[np.inf, 0.0], [3.0, 4.0]], np.float32), 2))
    np.testing.assert_array_equal(store.rows(np.arange(2)), [[1, 2], [3, 4]])


def test_memory_is_what_the_columns_hold():
    assert SketchStore(100, 64).memory_bytes == 100 * (2 * 64 + 2 + 1 + 8 + 4 + 4)


@pytest.mark.parametrize("arguments", [(3, 4, "int8"), (-1, 4, "float16"), (3, 0, "float16")])
def test_bad_arguments_are_named(arguments: tuple):
    with pytest.raises(ConfigError, match=r"dtype must be|num_rows >= 0"):
        SketchStore(*arguments)
