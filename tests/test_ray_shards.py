"""Blocks on their way to shards that are actors, with stand-ins for the actors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sampler_service.errors import Unavailable
from sampler_service.index.neighbours import Neighbours
from sampler_service.runtime import ray_shards
from sampler_service.runtime.ray_shards import UPDATES_IN_FLIGHT, RayShards
from sampler_service.shard import Shard
from sampler_service.shards import LocalShards
from sampler_service.types import ReportBlock

ROWS, CALLS = 10, 20


class Actor:
    """Counts the rows that it is given; what is given to it while it is down is lost."""

    def __init__(self) -> None:
        self.down, self.rows = False, 0
        self.update = SimpleNamespace(remote=self._update)

    def _update(self, part: ReportBlock, _num_examples: int) -> bool:
        self.rows += 0 if self.down else len(part)
        return not self.down


@pytest.fixture(autouse=True)
def all_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_shards, "finished", lambda *_: True)


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


class Searched:
    """An actor of one real shard, that answers at once and remembers how many rows each search was of."""

    def __init__(self, shard: Shard, asked: list[tuple[int, int]]) -> None:
        self._shard, self._asked = shard, asked
        self.nearest = SimpleNamespace(remote=self._nearest)

    def _nearest(self, sketch_qd: Any, k: int, metric: str, start: int, stop: int) -> Neighbours:
        self._asked.append((start, stop))
        return self._shard.nearest(sketch_qd, k, metric, start, stop)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_neighbours_are_those_of_one_search_and_no_call_looks_at_many_rows(monkeypatch, metric: str):
    monkeypatch.setattr(ray_shards, "answer", lambda found, _limit_s, _whom: found)
    monkeypatch.setattr(ray_shards, "NEAREST_ROWS", 16)
    local, asked = LocalShards(101, 4, 2), []
    rows = np.random.default_rng(0).normal(size=(101, 4)).astype(np.float32)
    nothing = np.full(101, np.nan, np.float32)
    local.update(ReportBlock(example_ids=np.arange(101), losses=nothing, norms=nothing, sketches=rows, step=0))
    actors: list[Any] = [Searched(shard, asked) for shard in local._shards]
    found = RayShards(actors, 101, 4, call_s=10.0).nearest(rows[:3], 9, metric)
    assert found.example_ids_qk.tolist() == local.nearest(rows[:3], 9, metric).example_ids_qk.tolist()
    assert asked == [(start, start + 16) for start in range(0, 51, 16) for _ in actors]


class Called:
    """A shard behind the face of an actor, whose answers are there at once."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=getattr(self._shard, method))


def test_inner_products_and_balanced_orders_are_those_of_shards_in_process(monkeypatch):
    monkeypatch.setattr(ray_shards, "answer", lambda found, _limit_s, _whom: found)
    monkeypatch.setattr(ray_shards, "NEAREST_ROWS", 16)
    monkeypatch.setattr(ray_shards, "CHUNK_ROWS", 16)
    local, rng = LocalShards(101, 4, 3, "float32"), np.random.default_rng(0)
    nothing, ids = np.full(90, np.nan, np.float32), rng.permutation(101)[:90]
    rows = rng.normal(size=(90, 4)).astype(np.float32)
    local.update(ReportBlock(example_ids=ids, losses=nothing, norms=nothing, sketches=rows, step=0))
    actors: list[Any] = [Called(shard) for shard in local._shards]
    shards = RayShards(actors, 101, 4, call_s=10.0)
    vector, place_n = rng.normal(size=4).astype(np.float32), rng.random(101)
    dot_n = shards.dots(vector)
    np.testing.assert_allclose(dot_n[ids], rows @ vector, rtol=1e-5)
    assert np.isnan(np.delete(dot_n, ids)).all()
    np.testing.assert_array_equal(dot_n, local.dots(vector))
    np.testing.assert_array_equal(shards.balance(place_n), local.balance(place_n))


def test_a_search_that_takes_too_long_is_given_up_between_two_parts(monkeypatch):
    clock, limits = [0.0], []

    def answer_slowly(_found: Any, limit_s: float, _whom: str) -> Neighbours:
        clock[0] += 1.0
        limits.append(limit_s)
        return Neighbours(example_ids_qk=np.array([[0]]), distance_qk=np.zeros((1, 1), np.float32))

    monkeypatch.setattr(ray_shards, "answer", answer_slowly)
    monkeypatch.setattr(ray_shards.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ray_shards, "NEAREST_ROWS", 10)
    actor: Any = SimpleNamespace(nearest=SimpleNamespace(remote=lambda *_: None))
    with pytest.raises(Unavailable, match=r"30% of the sketches were compared within 2\.5 s"):
        RayShards([actor], 100, 4, call_s=10.0).nearest(np.ones((1, 4), np.float32), 1, "cosine", 2.5)
    assert limits == [2.5, 1.5, 0.5]


class Silent:
    """Takes what it is given, and answers nothing until it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.update = SimpleNamespace(remote=self._update)

    def _update(self, part: ReportBlock, _num_examples: int) -> int:
        self.calls += 1
        return self.calls


def block_of(*ids: int, step: int = 0) -> ReportBlock:
    column = np.zeros(len(ids), np.float32)
    return ReportBlock(example_ids=np.array(ids), losses=column, norms=column, sketches=None, step=step)


def test_one_report_waits_for_a_shard_that_is_away_and_no_other(monkeypatch):
    waits: list[float] = []
    stored = 0

    def finished(call: int, within_s: float = 0.0) -> bool:
        waits.append(within_s)
        return call <= stored

    monkeypatch.setattr(ray_shards, "finished", finished)
    monkeypatch.setattr(ray_shards, "answer", lambda *_: None)
    silent: Any = Silent()
    shards = RayShards([silent], 100, 4, call_s=20.0)
    lost = [shards.update(block_of(0, 1)) for _ in range(3 * UPDATES_IN_FLIGHT)]
    assert [wait for wait in waits if wait] == [pytest.approx(ray_shards.HELD_UP_S, abs=1)]
    assert silent.calls == UPDATES_IN_FLIGHT + 1, "what waits for it is bounded"
    assert sum(lost) == 2 * (3 * UPDATES_IN_FLIGHT - silent.calls), "what is not put before it is lost at once"
    stored = silent.calls
    assert shards.update(block_of(0, 1)) == 0
    assert silent.calls == UPDATES_IN_FLIGHT + 2, "it is back"


def test_a_fence_waits_for_every_block_since_calls_that_are_made_again_come_in_any_order(monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(ray_shards, "answer", lambda reference, *_: asked.append(reference))
    silent: Any = Silent()
    shards = RayShards([silent], 100, 4, call_s=1.0)
    for step in range(3):
        shards.update(block_of(0, step=step))
    shards.flush()
    assert asked == [1, 2, 3]


def test_what_shards_that_answer_hold_is_had_without_one_that_is_away(monkeypatch):
    column = np.arange(2, dtype=np.float32)
    held = {0: (column, column, np.array([3, 4])), 1: None}

    def answer_of(shard: int, *_: object) -> Any:
        if held[shard] is None:
            raise Unavailable(f"sketch shard {shard} of 2 is away")
        return held[shard]

    monkeypatch.setattr(ray_shards, "answer", answer_of)
    monkeypatch.setattr(ray_shards.ray, "wait", lambda *_, **__: None)
    actors: list[Any] = [SimpleNamespace(columns=SimpleNamespace(remote=lambda n=n: n)) for n in (0, 1)]
    shards = RayShards(actors, 4, 4, call_s=1.0)
    with pytest.raises(Unavailable, match="shard 1 of 2 is away"):
        shards.columns()
    columns = shards.columns(partial=True)
    assert columns.step_n.tolist() == [3, -1, 4, -1]
    np.testing.assert_array_equal(columns.loss_n, [0, np.nan, 1, np.nan])


def test_growth_and_deletion_are_those_of_shards_in_process(monkeypatch):
    monkeypatch.setattr(ray_shards, "answer", lambda found, _limit_s, _whom: found)
    monkeypatch.setattr(ray_shards, "NEAREST_ROWS", 16)
    monkeypatch.setattr(ray_shards.ray, "wait", lambda references, **_: (references, []))
    local, ids = LocalShards(40, 4, 3, "float32"), np.arange(70)
    local.grow(70)
    actors: list[Any] = [Called(shard) for shard in local._shards]
    shards = RayShards(actors, 40, 4, call_s=10.0)
    shards.grow(70)
    rows, nothing = np.random.default_rng(0).normal(size=(70, 4)).astype(np.float32), np.full(70, np.nan, np.float32)
    shards.update(ReportBlock(example_ids=ids, losses=nothing, norms=nothing, sketches=rows, step=0))
    assert shards.stock().num_examples == 70, "told with the rows"
    shards.delete(np.array([0, 69, 7]))
    vector = np.ones(4, np.float32)
    assert np.flatnonzero(np.isnan(shards.dots(vector))).tolist() == [0, 7, 69]
    np.testing.assert_array_equal(shards.dots(vector), local.dots(vector))
    np.testing.assert_array_equal(shards.clusters(), local.clusters())
    assert shards.columns().step_n.tolist() == local.columns().step_n.tolist()


def test_a_deletion_that_a_shard_misses_is_an_error_unless_it_is_made_up_for_later(monkeypatch):
    told: list[int] = []

    def answer_of(shard: int, *_: object) -> None:
        told.append(shard)
        if shard == 0:
            raise Unavailable("sketch shard 0 of 2 is away")

    monkeypatch.setattr(ray_shards, "answer", answer_of)
    actors: list[Any] = [SimpleNamespace(delete=SimpleNamespace(remote=lambda _, n=n: n)) for n in (0, 1)]
    shards = RayShards(actors, 4, 4, call_s=1.0)
    shards.delete(np.array([0, 1]), partial=True)
    assert told == [0, 1], "one that is away keeps nothing from the others"
    with pytest.raises(Unavailable, match="shard 0 of 2 is away"):
        shards.delete(np.array([0, 1]))
