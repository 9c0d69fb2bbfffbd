"""Routing is a bijection, and splitting a block loses nothing."""

import numpy as np
import pytest

from sampler_service.sketch import routing
from sampler_service.types import ReportBlock


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
def test_every_id_has_one_row_on_one_shard(num_shards: int):
    id_n = np.arange(50)
    shard_n, row_n = routing.shard_of(id_n, num_shards), routing.row_of(id_n, num_shards)
    np.testing.assert_array_equal(routing.id_of(row_n, shard_n, num_shards), id_n)
    for shard in range(num_shards):
        own_r = row_n[shard_n == shard]
        np.testing.assert_array_equal(own_r, np.arange(routing.num_rows(50, shard, num_shards)))


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7])
@pytest.mark.parametrize("with_sketches", [True, False])
def test_split_keeps_every_row_whole_and_in_order(num_shards: int, with_sketches: bool):
    id_r = np.random.default_rng(0).permutation(20)[:13]
    block = ReportBlock(
        example_ids=id_r,
        losses=id_r.astype(np.float32),
        norms=id_r.astype(np.float32) * 2,
        sketches=np.repeat(id_r[:, None], 4, axis=1).astype(np.float16) if with_sketches else None,
        step=3,
    )
    parts = routing.split(block, num_shards)
    assert sorted(np.concatenate([part.example_ids for _, part in parts])) == sorted(id_r)
    for shard, part in parts:
        assert part.step == 3
        assert (part.example_ids % num_shards == shard).all()
        np.testing.assert_array_equal(part.norms, part.losses * 2)
        np.testing.assert_array_equal(part.example_ids, id_r[np.isin(id_r, part.example_ids)])
        assert (part.sketches is not None) == with_sketches
        if part.sketches is not None:
            np.testing.assert_array_equal(part.sketches[:, 0], part.example_ids)


def test_a_block_without_rows_goes_nowhere():
    empty = np.empty(0, np.float32)
    block = ReportBlock(example_ids=np.empty(0, np.int64), losses=empty, norms=empty, sketches=None, step=0)
    assert routing.split(block, 1) == []
    assert routing.split(block, 3) == []
