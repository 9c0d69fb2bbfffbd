"""Exact epochs for any number of examples, batch size and ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.errors import ConfigError
from sampler_service.planning.split import batch_sizes, split_ranks
from sampler_service.types import Rows


def rows_of(count: int) -> Rows:
    return Rows(example_ids=np.arange(count), weights=np.ones(count, dtype=np.float32), probabilities=np.ones(count))


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_sizes_fill_the_epoch_and_leave_no_rank_empty(total, batch, world, drop_last):
    global_batch = batch * world
    if total < world or (drop_last and total < global_batch):
        with pytest.raises(ConfigError, match=str(total)):
            batch_sizes(total, global_batch, drop_last, world)
        return
    sizes = batch_sizes(total, global_batch, drop_last, world)
    assert (sizes[:-1] == global_batch).all()
    if drop_last:
        assert sizes.sum() == total - total % global_batch
        assert sizes[-1] == global_batch
    else:
        assert sizes.sum() == total
        assert world <= sizes[-1] < global_batch + world
    assert all(len(part) > 0 for part in split_ranks(rows_of(int(sizes[-1])), world))


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 100), st.integers(1, 12))
def test_parts_are_consecutive_and_differ_by_at_most_one(count, world):
    parts = split_ranks(rows_of(count), world)
    assert len(parts) == world
    assert np.concatenate([part.example_ids for part in parts]).tolist() == list(range(count))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


def test_a_remainder_smaller_than_the_world_joins_the_step_before():
    assert batch_sizes(19, 8, False, 4).tolist() == [8, 11]
    assert [len(part) for part in split_ranks(rows_of(11), 4)] == [2, 3, 3, 3]
    assert batch_sizes(20, 8, False, 4).tolist() == [8, 8, 4]
