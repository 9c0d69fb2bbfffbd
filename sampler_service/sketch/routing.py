"""Which shard keeps which example: shard = id mod S, row = id div S. Pure.

Shapes: r reported rows; S is the number of shards.
"""

from __future__ import annotations

import numpy as np

from sampler_service.types import Int64, ReportBlock


def shard_of(id_r: Int64, num_shards: int) -> Int64:
    """Shard of each example, (r,) int64, 0 … S-1; neighbouring ids spread evenly."""
    return id_r % num_shards


def row_of(id_r: Int64, num_shards: int) -> Int64:
    """Row of each example inside its shard, (r,) int64."""
    return id_r // num_shards


def id_of(row_r: Int64, shard: int, num_shards: int) -> Int64:
    """Example ids of a shard's rows, (r,) int64: the inverse of `shard_of` and `row_of`."""
    return row_r * num_shards + shard


def num_rows(num_examples: int, shard: int, num_shards: int) -> int:
    """How many of the ids 0 … num_examples-1 live on `shard`."""
    return len(range(shard, num_examples, num_shards))


def split(block: ReportBlock, num_shards: int) -> list[tuple[int, ReportBlock]]:
    """Split a block by shard: (shard, block) pairs in shard order, only for shards that get a row."""
    if num_shards == 1:
        return [(0, block)] if len(block) else []
    shard_r = shard_of(block.example_ids, num_shards)
    return [(int(shard), take(block, np.flatnonzero(shard_r == shard))) for shard in np.unique(shard_r)]


def split_ids(id_r: Int64, num_shards: int) -> list[tuple[int, Int64]]:
    """Ids by shard: (shard, ids) pairs in shard order, only for shards that get one."""
    shard_r = shard_of(id_r, num_shards)
    return [(int(shard), id_r[shard_r == shard]) for shard in np.unique(shard_r)]


def take(block: ReportBlock, index: Int64) -> ReportBlock:
    """The block's rows at `index`, in that order."""
    return ReportBlock(
        example_ids=block.example_ids[index],
        losses=block.losses[index],
        norms=block.norms[index],
        sketches=None if block.sketches is None else block.sketches[index],
        step=block.step if isinstance(block.step, int) else block.step[index],
    )
