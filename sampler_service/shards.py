"""The port `Shards`, all that the rest of the service knows of storage, and its in-process form.

A shard keeps the sketches of the examples with id mod S = its number. The port's calls that visit many rows
are loops over `Shard` calls of a bounded number of rows each, so that reports are served in between when the
shards are actors; `relay` is that loop for the move test, and shared by every form of the port.

Shapes: n examples, r rows, d sketch length, k clusters or neighbours, q queries.
"""
# ruff: noqa: ARG002  (LocalShards never waits, so it has no use for timeout_s)

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sampler_service.balancing import balanced_places
from sampler_service.index.neighbours import Neighbours, merge
from sampler_service.index.statistics import ClusterStatistics
from sampler_service.shard import Refined, Shard
from sampler_service.sketch import routing
from sampler_service.types import NEVER, NO_CLUSTER, Float32, Float64, Given, Int32, Int64, ReportBlock, freeze
from sampler_service.views import ShardView

CHUNK_ROWS = 2048
"""rows visited by one call to a shard: 1 ms of assignment, some tens of a first pass of moves"""

KEEPER = 0
"""shard that keeps what a run was given beside reports"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What was last reported of every example, in id order."""

    loss_n: Float32
    norm_n: Float32
    step_n: Int64

    def __post_init__(self) -> None:
        freeze(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What the shards that answer hold."""

    each: list[ShardView]
    """every shard, in order"""
    lost: int = 0
    """times that a shard was seen to have come back empty"""
    num_examples: int = 0
    """of the run, as far as any of them was told"""

    @property
    def sketched(self) -> int:
        """Examples with a sketch."""
        return sum(shard.sketched for shard in self.each)

    @property
    def memory_bytes(self) -> int:
        """Of the shards' columns."""
        return sum(shard.memory_bytes for shard in self.each)

    @property
    def away(self) -> int:
        """Shards that did not answer."""
        return sum(shard.away for shard in self.each)


class Shards(Protocol):
    """Storage of one run's sketches over S shards.

    `timeout_s` bounds the wait for an answer, in seconds; None leaves it to the implementation. Every call
    may raise `Unavailable` when a shard is away; none of them does in process.
    """

    @property
    def num_shards(self) -> int: ...

    @property
    def num_examples(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def grow(self, num_examples: int) -> None:
        """The run has so many examples, at least as many as before; the shards hear of it with what is reported next.
        Answers are as long as this from now on."""
        ...

    def delete(self, example_ids: Int64, timeout_s: float | None = None, *, partial: bool = False) -> None:
        """Forget all that was reported of these examples, (r,): they are in no cluster, sum or answer any more. A
        repeat changes nothing. `partial`: those that are away are passed over; they come back empty, or are told
        again."""
        ...

    def update(self, block: ReportBlock) -> int:
        """Take reported rows, ids 0 … num_examples-1; may return before they are stored (see `flush`).

        Returns:
            How many rows, of this block or of earlier ones, turned out to be lost with a shard that is away; each is
            counted once. This call never raises `Unavailable`: the other shards take their rows all the same.
        """
        ...

    def flush(self, timeout_s: float | None = None) -> None:
        """Return when every block given to `update` so far is stored."""
        ...

    def sketched(self, timeout_s: float | None = None) -> int:
        """How many examples have a sketch."""
        ...

    def sample_rows(self, count: int, seed: int, timeout_s: float | None = None) -> Float32:
        """About `count` sketches (r, d) float32, uniform without replacement; all of them if fewer."""
        ...

    def assign(self, centre_kd: Float64, timeout_s: float | None = None) -> ClusterStatistics:
        """Begin a new partition: every sketched row to its nearest centre. Returns the whole's statistics."""
        ...

    def refine(self, timeout_s: float | None = None) -> Refined:
        """One Hartigan pass over all rows, shard by shard in relay; see `relay`."""
        ...

    def statistics(self, timeout_s: float | None = None) -> ClusterStatistics:
        """Sum of the shards' statistics; of length 0 before the first partition."""
        ...

    def clusters(self, timeout_s: float | None = None) -> Int32:
        """Cluster of every example, (n,) int32, NO_CLUSTER where it has none."""
        ...

    # `partial`, of the three below: without the shards that are away, instead of raising Unavailable.

    def columns(self, timeout_s: float | None = None, *, partial: bool = False) -> Columns:
        """Losses, norms and steps of every example; unknown those of a shard that is away."""
        ...

    def forget_gradients(self, timeout_s: float | None = None, *, partial: bool = False) -> None:
        """Drop all norms, sketches and clusters: those that come next are of another unit, that of scorers. A repeat
        reaches only shards that did not do it, or came back empty."""
        ...

    def scored(self, timeout_s: float | None = None, *, partial: bool = False) -> bool:
        """Whether norms and sketches were forgotten for those of scorers."""
        ...

    def keep(self, name: str, value: Any) -> None:
        """Keep one column of `Given` for a run that may have to begin anew. One shard does: what it has is lost with
        it."""
        ...

    def given(self, timeout_s: float | None = None, *, partial: bool = False) -> Given:
        """What was kept; nothing where the shard that keeps it came back empty."""
        ...

    def nearest(self, sketch_qd: Float32, k: int, metric: str = "l2", timeout_s: float | None = None) -> Neighbours:
        """The k nearest examples of each sketch, by "l2", "cosine" or "dot". Looks at all rows, in parts; `timeout_s`
        bounds all of them together."""
        ...

    def rows(self, example_ids: Int64, timeout_s: float | None = None) -> Float32:
        """Sketches (r, d) float32 of the examples; NaN where there is none."""
        ...

    def dots(self, vector_d: Float32, timeout_s: float | None = None) -> Float32:
        """Inner product (n,) float32 of every example's sketch with a vector; NaN where there is none."""
        ...

    def balance(self, place_n: Float64, timeout_s: float | None = None) -> Float64:
        """Places (n,) of the next balanced order, from those of the present one; see `balancing`."""
        ...

    def stock(self, timeout_s: float | None = None) -> Stock:
        """What the shards hold. Never raises: a shard that does not answer soon is counted as away."""
        ...


class LocalShards:
    """The port in this process: S plain shards, for tests, benchmarks and one machine."""

    def __init__(
        self,
        num_examples: int,
        dim: int,
        num_shards: int = 1,
        dtype: str = "float16",
        chunk_rows: int = CHUNK_ROWS,
    ) -> None:
        self._shards = [Shard(shard, num_shards, num_examples, dim, dtype) for shard in range(num_shards)]
        self._num_examples = num_examples
        self._dim = dim
        self._chunk_rows = chunk_rows

    @property
    def num_shards(self) -> int:
        return len(self._shards)

    @property
    def num_examples(self) -> int:
        return self._num_examples

    @property
    def dim(self) -> int:
        return self._dim

    def grow(self, num_examples: int) -> None:
        self._num_examples = num_examples

    def delete(self, example_ids: Int64, timeout_s: float | None = None, *, partial: bool = False) -> None:
        for shard, own in routing.split_ids(example_ids, self.num_shards):
            self._shards[shard].delete(own)

    def update(self, block: ReportBlock) -> int:
        for shard, part in routing.split(block, self.num_shards):
            self._shards[shard].update(part, self._num_examples)
        return 0

    def flush(self, timeout_s: float | None = None) -> None:
        """Nothing waits in process."""

    def sketched(self, timeout_s: float | None = None) -> int:
        return sum(shard.num_sketched() for shard in self._shards)

    def sample_rows(self, count: int, seed: int, timeout_s: float | None = None) -> Float32:
        count_s = sample_shares(count, [shard.num_sketched() for shard in self._shards])
        return np.concatenate(
            [shard.sample_rows(share, seed) for shard, share in zip(self._shards, count_s, strict=True)]
        )

    def assign(self, centre_kd: Float64, timeout_s: float | None = None) -> ClusterStatistics:
        for shard in self._shards:
            for start in range(0, max(len(shard), 1), self._chunk_rows):
                shard.assign(centre_kd, start, start + self._chunk_rows)
        return self.statistics()

    def refine(self, timeout_s: float | None = None) -> Refined:
        def call(shard: int, others: ClusterStatistics, start: int, stop: int) -> Refined:
            return self._shards[shard].refine(others, start, stop)

        local = [shard.statistics() for shard in self._shards]
        return relay(call, local, self.num_examples, self._chunk_rows)

    def statistics(self, timeout_s: float | None = None) -> ClusterStatistics:
        return total([shard.statistics() for shard in self._shards])

    def clusters(self, timeout_s: float | None = None) -> Int32:
        return gather([shard.clusters() for shard in self._shards], self._num_examples, NO_CLUSTER)

    def columns(self, timeout_s: float | None = None, *, partial: bool = False) -> Columns:
        return gather_columns([shard.columns() for shard in self._shards], self._num_examples)

    def forget_gradients(self, timeout_s: float | None = None, *, partial: bool = False) -> None:
        for shard in self._shards:
            shard.forget_gradients()

    def scored(self, timeout_s: float | None = None, *, partial: bool = False) -> bool:
        return any(shard.scored() for shard in self._shards)

    def keep(self, name: str, value: Any) -> None:
        self._shards[KEEPER].keep(name, value)

    def given(self, timeout_s: float | None = None, *, partial: bool = False) -> Given:
        return self._shards[KEEPER].given()

    def nearest(self, sketch_qd: Float32, k: int, metric: str = "l2", timeout_s: float | None = None) -> Neighbours:
        return merge([shard.nearest(sketch_qd, k, metric, 0, len(shard)) for shard in self._shards], k)

    def rows(self, example_ids: Int64, timeout_s: float | None = None) -> Float32:
        shard_r = routing.shard_of(example_ids, self.num_shards)
        row_rd = np.empty((len(example_ids), self._dim), np.float32)
        for number in np.unique(shard_r):
            row_rd[shard_r == number] = self._shards[number].rows(example_ids[shard_r == number])
        return row_rd

    def dots(self, vector_d: Float32, timeout_s: float | None = None) -> Float32:
        return gather([shard.dots(vector_d, 0, len(shard)) for shard in self._shards], self._num_examples, np.nan)

    def balance(self, place_n: Float64, timeout_s: float | None = None) -> Float64:
        def call(shard: int, method: str, *args: Any) -> Any:
            return getattr(self._shards[shard], method)(*args)

        return balanced_places(call, place_n, num_shards=self.num_shards, dim=self._dim, chunk_rows=self._chunk_rows)

    def stock(self, timeout_s: float | None = None) -> Stock:
        held = [shard.stock() for shard in self._shards]
        return Stock(
            each=[
                ShardView(shard=number, away=False, sketched=sketched, memory_bytes=size)
                for number, (_, sketched, size, _) in enumerate(held)
            ],
            num_examples=max(num_examples for *_, num_examples in held),
        )


def gather(parts: Sequence[Any], num_examples: int, fill: float) -> Any:
    """One column (n,) in id order of those of the shards; `fill` where a shard, or the end of its column, is missing.

    Args:
        parts: of each shard, in order; None: it is away. At least one is there.
        num_examples: n.
        fill: of the column.
    """
    dtype = next(part.dtype for part in parts if part is not None)
    column_n = np.full(num_examples, fill, dtype)
    for number, part in enumerate(parts):
        if part is not None:
            own = column_n[number :: len(parts)]
            own[: len(part)] = part[: len(own)]
    return column_n


def gather_columns(parts: Sequence[tuple[Float32, Float32, Int64] | None], num_examples: int) -> Columns:
    """`gather` of losses, norms and steps; unknown all those of shards that are away."""
    nothing = np.empty(0, np.float32), np.empty(0, np.float32), np.empty(0, np.int64)
    loss_s, norm_s, step_s = zip(*(part or nothing for part in parts), strict=True)
    return Columns(
        loss_n=gather(loss_s, num_examples, np.nan),
        norm_n=gather(norm_s, num_examples, np.nan),
        step_n=gather(step_s, num_examples, NEVER),
    )


def total(statistics: Sequence[ClusterStatistics]) -> ClusterStatistics:
    """Sum over shards; one that knows another number of clusters (it came back empty) counts as nothing."""
    size = max(len(part) for part in statistics)
    summed = ClusterStatistics.zeros(size, statistics[0].sum_kd.shape[1])
    for part in statistics:
        if len(part) == size:
            summed += part
    return summed


def sample_shares(count: int, sketched_s: Sequence[int]) -> list[int]:
    """Rows to draw from each shard: in proportion to its sketched rows, rounded up."""
    everything = max(sum(sketched_s), 1)
    return [-(-min(count, everything) * own // everything) for own in sketched_s]


def relay(
    refine: Callable[[int, ClusterStatistics, int, int], Refined],
    local: Sequence[ClusterStatistics],
    num_examples: int,
    chunk_rows: int = CHUNK_ROWS,
) -> Refined:
    """One Hartigan pass: shards take turns, each seeing what the ones before it did (Gauss-Seidel).

    Every shard keeps its own statistics exact and is told those of all others, so J of the whole never rises
    while no report arrives in between, and a report that does arrive only makes `others` a little old.

    Args:
        refine: (shard, others, start, stop) -> what the shard did to its rows start … stop-1.
        local: statistics of every shard before the pass.
    """
    latest = list(local)
    empty = ClusterStatistics.zeros(max(map(len, latest)), latest[0].sum_kd.shape[1])
    rows = routing.num_rows(num_examples, 0, len(latest))  # of the fullest shard
    moved = placed = 0
    for start in range(0, rows, chunk_rows):
        for shard in range(len(latest)):
            others = total([empty, *latest[:shard], *latest[shard + 1 :]])
            done = refine(shard, others, start, start + chunk_rows)
            latest[shard] = done.statistics
            moved, placed = moved + done.moved, placed + done.placed
    return Refined(moved=moved, placed=placed, statistics=total(latest))
