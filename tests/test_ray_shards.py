"""Blocks on their way to shards that are actors, with stand-ins for the actors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sampler_service.errors import Unavailable
from sampler_service.runtime import ray_shards
from sampler_service.runtime.ray_shards import UPDATES_IN_FLIGHT, RayShards
from sampler_service.types import ReportBlock

ROWS, CALLS = 10, 20


class Actor:
    """Counts the rows that it is given; what is given to it while it is down is lost."""

    def __init__(self) -> None:
        self.down, self.rows = False, 0
        self.update = SimpleNamespace(remote=self._update)

    def _update(self, part: ReportBlock) -> bool:
        self.rows += 0 if self.down else len(part)
        return not self.down


def answer(stored: bool, _limit_s: float, whom: str) -> None:
    if not stored:
        raise Unavailable(f"{whom} is away")


def test_a_shard_that_is_down_keeps_nothing_from_the_others_and_each_lost_row_is_counted_once(monkeypatch):
    monkeypatch.setattr(ray_shards, "answer", answer)
    actors: list[Any] = [Actor(), Actor()]
    shards = RayShards(actors, 1000, 4, call_s=1.0)
    nothing = np.full(ROWS, np.nan, np.float32)
    block = ReportBlock(example_ids=np.arange(ROWS), losses=nothing, norms=nothing, sketches=None, step=0)
    lost = 0
    for actors[0].down in (True, False):
        lost += sum(shards.update(block) for _ in range(CALLS))
    assert actors[0].rows == CALLS * ROWS // 2
    assert actors[1].rows == 2 * CALLS * ROWS // 2
    assert lost == CALLS * ROWS // 2
    assert CALLS > UPDATES_IN_FLIGHT, "the losses are all known by now"


def test_a_fence_over_lost_rows_fails(monkeypatch):
    monkeypatch.setattr(ray_shards, "answer", answer)
    actors: list[Any] = [Actor(), Actor()]
    actors[1].down = True
    shards = RayShards(actors, 1000, 4, call_s=1.0)
    column = np.zeros(2, np.float32)
    shards.update(ReportBlock(example_ids=np.arange(2), losses=column, norms=column, sketches=None, step=0))
    for _ in range(2):
        with pytest.raises(Unavailable, match="shard 1 of 2 is away"):
            shards.flush()
