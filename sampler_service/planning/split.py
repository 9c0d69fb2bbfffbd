"""Exact epochs: how many rows each step takes, and how a step is shared by the ranks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.types import Int64, Rows


def batch_sizes(total: int, global_batch: int, drop_last: bool, world: int) -> Int64:
    """Rows of each global step of an epoch of `total` rows.

    Without `drop_last` the sizes sum to `total`; the remainder makes one more, shorter step, or, when it is
    smaller than `world`, makes some parts of the step before it one larger: a rank with an empty part would
    leave the others waiting in their collectives.

    Raises:
        ConfigError: fewer rows than ranks, or than one global batch under `drop_last`.
    """
    if total < world:
        raise ConfigError(f"{total} examples cannot be shared by {world} ranks; use at most {total} ranks")
    if drop_last and total < global_batch:
        raise ConfigError(
            f"drop_last leaves no step: {total} examples, global batch {global_batch}; use a smaller batch"
        )
    steps, remainder = divmod(total, global_batch)
    size_t = np.full(steps, global_batch, dtype=np.int64)
    if drop_last or remainder == 0:
        return size_t
    if remainder < world:
        size_t[-1] += remainder
        return size_t
    return np.append(size_t, remainder)


def split_ranks(rows: Rows, world: int) -> list[Rows]:
    """Consecutive parts, one per rank, that differ by at most one row. No copy."""
    bounds = [rank * len(rows) // world for rank in range(world + 1)]
    return [rows.take(slice(low, high)) for low, high in pairwise(bounds)]
