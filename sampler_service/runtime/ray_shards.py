"""The port `Shards` on actors.

Shapes: n examples, r rows, d sketch length, k clusters or neighbours, q queries.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from sampler_service.balancing import balanced_places
from sampler_service.errors import Unavailable
from sampler_service.index.neighbours import Neighbours, merge
from sampler_service.index.statistics import ClusterStatistics
from sampler_service.runtime.calls import answer, finished
from sampler_service.shard import Refined
from sampler_service.shards import (
    CHUNK_ROWS,
    KEEPER,
    Columns,
    Stock,
    gather,
    gather_columns,
    relay,
    sample_shares,
    total,
)
from sampler_service.sketch import routing
from sampler_service.types import NO_CLUSTER, Float32, Float64, Given, Int32, Int64, ReportBlock
from sampler_service.views import ShardView

log = logging.getLogger(__name__)

UPDATES_IN_FLIGHT = 8
"""blocks per shard that may wait before a report is held up: back-pressure, and a bound on memory"""

NEAREST_ROWS = 1 << 15
"""rows that one call searches, some 20 ms of 64 numbers each: reports and fences are served in between"""

HELD_UP_S = 5.0
"""for which a report is held up at most. A shard that has stored nothing by then is away: no other report waits for it,
and what can't be put before it is lost, until it has stored what lies there."""

STOCK_S = 2.0
"""within which a shard must say what it holds, or it is away: a person waits for the answer"""


class RayShards:
    """Storage of one run's sketches over S actors of `Shard`; see the port for what each call does."""

    def __init__(self, actors: list[ActorHandle], num_examples: int, dim: int, call_s: float) -> None:
        self._actors = actors
        self._num_examples = num_examples
        self._dim = dim
        self._call_s = call_s
        self._lock = threading.Lock()  # reports and fences come from several threads
        self._in_flight: list[deque[tuple[Any, int]]] = [deque() for _ in actors]  # and how many rows each has
        self._away: set[int] = set()
        self._lives: list[str | None] = [None for _ in actors]
        self._lost = 0

    @property
    def num_shards(self) -> int:
        return len(self._actors)

    @property
    def num_examples(self) -> int:
        return self._num_examples

    @property
    def dim(self) -> int:
        return self._dim

    def grow(self, num_examples: int) -> None:
        self._num_examples = num_examples

    def delete(self, example_ids: Int64, timeout_s: float | None = None, *, partial: bool = False) -> None:
        until = self._until(timeout_s)
        told = [
            (shard, self._actors[shard].delete.remote(own))
            for shard, own in routing.split_ids(example_ids, self.num_shards)
        ]
        for shard, reference in told:
            with suppress(Unavailable) if partial else nullcontext():
                self._answer(reference, shard, until - time.monotonic())

    def update(self, block: ReportBlock) -> int:
        lost, until = 0, time.monotonic() + min(HELD_UP_S, self._call_s / 2)
        full: list[tuple[int, Any]] = []
        with self._lock:
            for shard, part in routing.split(block, self.num_shards):
                waiting = self._in_flight[shard]
                if len(waiting) >= UPDATES_IN_FLIGHT:
                    lost += self._clear(shard)
                if len(waiting) > UPDATES_IN_FLIGHT and shard in self._away:
                    lost += len(part)
                    continue
                waiting.append((self._actors[shard].update.remote(part, self._num_examples), len(part)))
                if len(waiting) > UPDATES_IN_FLIGHT:
                    full.append((shard, waiting[0][0]))
        # Every shard has its part by now: one that is away keeps nothing from the others, nor do two wait in turn.
        for shard, oldest in full:
            if not finished(oldest, max(0.0, until - time.monotonic())):
                with self._lock:
                    self._away.add(shard)
                log.warning("%s is away: rows that are reported for it are lost until it answers", self._name(shard))
        return lost

    def _clear(self, shard: int) -> int:
        """Take leave of blocks that were stored, or will never be; how many rows the latter have."""
        lost, waiting = 0, self._in_flight[shard]
        while waiting and finished(waiting[0][0]):
            reference, rows = waiting.popleft()
            try:
                self._answer(reference, shard, STOCK_S)
                self._away.discard(shard)
            except Unavailable as error:
                log.warning("%d reported rows are lost: %s", rows, error)
                lost += rows
        return lost

    def flush(self, timeout_s: float | None = None) -> None:
        until = self._until(timeout_s)
        for shard, waiting in enumerate(self._in_flight):
            with self._lock:
                references = [reference for reference, _ in waiting]
            # All of them, since calls that are made again after a shard died come in any order. They stay in the queue:
            # another fence has to wait for them too, and one that failed must fail again.
            for reference in references:
                self._answer(reference, shard, until - time.monotonic())

    def sketched(self, timeout_s: float | None = None) -> int:
        return sum(self._each("num_sketched", timeout_s))

    def sample_rows(self, count: int, seed: int, timeout_s: float | None = None) -> Float32:
        share_s = sample_shares(count, self._each("num_sketched", timeout_s))
        references = [actor.sample_rows.remote(share, seed) for actor, share in zip(self._actors, share_s, strict=True)]
        return np.concatenate([self._answer(r, s, timeout_s) for s, r in enumerate(references)])

    def assign(self, centre_kd: Float64, timeout_s: float | None = None) -> ClusterStatistics:
        rows = routing.num_rows(self._num_examples, 0, self.num_shards)
        for start in range(0, max(rows, 1), CHUNK_ROWS):
            self._each("assign", timeout_s, centre_kd, start, start + CHUNK_ROWS)
        return self.statistics(timeout_s)

    def refine(self, timeout_s: float | None = None) -> Refined:
        def call(shard: int, others: ClusterStatistics, start: int, stop: int) -> Refined:
            return self._answer(self._actors[shard].refine.remote(others, start, stop), shard, timeout_s)

        return relay(call, self._each("statistics", timeout_s), self._num_examples)

    def statistics(self, timeout_s: float | None = None) -> ClusterStatistics:
        return total(self._each("statistics", timeout_s))

    def clusters(self, timeout_s: float | None = None) -> Int32:
        return gather(self._each("clusters", timeout_s), self._num_examples, NO_CLUSTER)

    def columns(self, timeout_s: float | None = None, *, partial: bool = False) -> Columns:
        here = dict(self._here("columns", timeout_s, partial))
        return gather_columns([here.get(shard) for shard in range(self.num_shards)], self._num_examples)

    def forget_gradients(self, timeout_s: float | None = None, *, partial: bool = False) -> None:
        self._here("forget_gradients", timeout_s, partial)

    def scored(self, timeout_s: float | None = None, *, partial: bool = False) -> bool:
        # One that came back empty has forgotten it.
        return any(scored for _, scored in self._here("scored", timeout_s, partial))

    def keep(self, name: str, value: Any) -> None:
        self._actors[KEEPER].keep.remote(name, value)  # nobody waits for it: calls of one actor come in their order

    def given(self, timeout_s: float | None = None, *, partial: bool = False) -> Given:
        with suppress(Unavailable) if partial else nullcontext():
            return self._answer(self._actors[KEEPER].given.remote(), KEEPER, timeout_s)
        return Given()

    def nearest(self, sketch_qd: Float32, k: int, metric: str = "l2", timeout_s: float | None = None) -> Neighbours:
        limit_s = self._call_s if timeout_s is None else timeout_s
        rows, until, found = routing.num_rows(self._num_examples, 0, self.num_shards), time.monotonic() + limit_s, []
        for start in range(0, max(rows, 1), NEAREST_ROWS):
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise Unavailable(f"{start / rows:.0%} of the sketches were compared within {limit_s:g} s")
            found += self._each("nearest", left_s, sketch_qd, k, metric, start, start + NEAREST_ROWS)
        return merge(found, k)

    def rows(self, example_ids: Int64, timeout_s: float | None = None) -> Float32:
        shard_r = routing.shard_of(example_ids, self.num_shards)
        row_rd = np.empty((len(example_ids), self._dim), np.float32)
        for shard in np.unique(shard_r):
            own = shard_r == shard
            reference = self._actors[shard].rows.remote(example_ids[own])
            row_rd[own] = self._answer(reference, shard, timeout_s)
        return row_rd

    def dots(self, vector_d: Float32, timeout_s: float | None = None) -> Float32:
        n, until = self._num_examples, self._until(timeout_s)
        rows = routing.num_rows(n, 0, self.num_shards)
        found = [
            self._each("dots", until - time.monotonic(), vector_d, start, start + NEAREST_ROWS)
            for start in range(0, rows, NEAREST_ROWS)
        ]
        return gather([np.concatenate(parts) for parts in zip(*found, strict=True)], n, np.nan)

    def balance(self, place_n: Float64, timeout_s: float | None = None) -> Float64:
        def call(shard: int, method: str, *args: Any) -> Any:
            return self._answer(getattr(self._actors[shard], method).remote(*args), shard, timeout_s)

        return balanced_places(call, place_n, num_shards=self.num_shards, dim=self._dim, chunk_rows=CHUNK_ROWS)

    def stock(self, timeout_s: float | None = None) -> Stock:
        references: list[Any] = [actor.stock.remote() for actor in self._actors]
        limit_s = min(STOCK_S, self._call_s if timeout_s is None else timeout_s)
        here, _ = ray.wait(references, num_returns=len(references), timeout=limit_s)
        each: list[ShardView] = []
        told = 0
        for shard, reference in enumerate(references):
            try:
                if reference not in here:
                    raise Unavailable(f"shard {shard} did not answer within {limit_s:g} s")
                life, rows, size, num_examples = self._answer(reference, shard, timeout_s)
            except Unavailable as error:
                log.warning("%s", error)
                each.append(ShardView(shard=shard, away=True, sketched=0, memory_bytes=0))
                continue
            each.append(ShardView(shard=shard, away=False, sketched=rows, memory_bytes=size))
            self._note_life(shard, life)
            told = max(told, num_examples)
        return Stock(each=each, lost=self._lost, num_examples=told)

    def _note_life(self, shard: int, life: str) -> None:
        with self._lock:
            before, self._lives[shard] = self._lives[shard], life
            if before in (None, life):
                return
            self._lost += 1
        log.warning("sketch shard %d of %d has come back empty; its sketches are lost", shard, self.num_shards)

    def _each(self, method: str, timeout_s: float | None, *args: Any) -> list[Any]:
        """The answers of all shards, which work at the same time."""
        until = self._until(timeout_s)
        references = [getattr(actor, method).remote(*args) for actor in self._actors]
        return [self._answer(reference, shard, until - time.monotonic()) for shard, reference in enumerate(references)]

    def _here(self, method: str, timeout_s: float | None, partial: bool) -> list[tuple[int, Any]]:
        """The answers with the numbers of their shards; `partial`: of those that answer."""
        if not partial:
            return list(enumerate(self._each(method, timeout_s)))
        references: list[Any] = [getattr(actor, method).remote() for actor in self._actors]
        ray.wait(references, num_returns=len(references), timeout=self._call_s if timeout_s is None else timeout_s)
        found: list[tuple[int, Any]] = []
        for shard, reference in enumerate(references):
            with suppress(Unavailable):
                found.append((shard, self._answer(reference, shard, 0.0)))
        return found

    def _until(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self._call_s if timeout_s is None else timeout_s)

    def _name(self, shard: int) -> str:
        return f"sketch shard {shard} of {self.num_shards}"

    def _answer(self, reference: Any, shard: int, timeout_s: float | None) -> Any:
        limit_s = self._call_s if timeout_s is None else max(0.0, timeout_s)
        return answer(reference, limit_s, self._name(shard))
