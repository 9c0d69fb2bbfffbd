"""Shard: the sketches of one shard, their clusters and statistics. A plain class; an actor at the edge.

Shapes: n rows of the shard, r rows visited, d sketch length, k clusters or neighbours, q queries.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sampler_service import balancing
from sampler_service.index import hartigan, neighbours, seeding
from sampler_service.index.neighbours import Neighbours
from sampler_service.index.statistics import ClusterStatistics
from sampler_service.sketch import routing
from sampler_service.sketch.store import SketchStore, finite_rows
from sampler_service.types import NO_CLUSTER, Bool, Float32, Float64, Given, Int32, Int64, ReportBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """What a refinement did."""

    moved: int
    """Rows that changed from one cluster to another."""
    placed: int
    """Rows that got their first cluster: J counts them from now on, so it may have risen."""
    statistics: ClusterStatistics
    """After it: the shard's own from `Shard.refine`, the whole's from `Shards.refine`."""


class Shard:
    """Keeps `statistics()` equal to those of its clustered rows, in fp64, through every change of a row.

    Calls are not safe to overlap: an actor runs them one after another. Each takes and returns plain arrays
    and is bounded by its block or by start … stop.

    It has the examples that it was made for, and those that it was told of with reported rows. Of others, which a run
    may have for some time without a report, or one that came back empty was never told of, it has no sketch.
    """

    def __init__(self, shard: int, num_shards: int, num_examples: int, dim: int, dtype: str = "float16") -> None:
        """A shard of the ids 0 … num_examples-1 with id mod num_shards = shard."""
        self._life = uuid.uuid4().hex
        self._shard = shard
        self._num_shards = num_shards
        self._num_examples = num_examples
        self._store = SketchStore(routing.num_rows(num_examples, shard, num_shards), dim, dtype)
        self._cluster_n: Int32 = np.full(len(self._store), NO_CLUSTER, np.int32)
        self._statistics = ClusterStatistics.zeros(0, dim)
        self._scored = False
        self._given = Given()

    def __len__(self) -> int:
        return len(self._store)

    def num_sketched(self) -> int:
        return self._store.num_sketched

    def stock(self) -> tuple[str, int, int, int]:
        """Its life, rows with a sketch, bytes, and the examples of its run as far as it knows. A shard that takes the
        place of a lost one has another life."""
        size = self._store.memory_bytes + self._cluster_n.nbytes
        return self._life, self._store.num_sketched, size, self._num_examples

    def update(self, block: ReportBlock, num_examples: int = 0) -> None:
        """Store reported rows, all of this shard's; clustered rows keep their cluster.

        Args:
            num_examples: of the run, if they may be more than it knows of.
        """
        self._grow(num_examples)
        row_r = routing.row_of(block.example_ids, self._num_shards)
        changed_r = np.empty(0, np.int64)
        if block.sketches is not None:
            changed_r = row_r[finite_rows(block.sketches) & (self._cluster_n[row_r] != NO_CLUSTER)]
        self._statistics.remove(self._store.rows(changed_r), self._cluster_n[changed_r])
        self._store.upsert(row_r, block)
        self._statistics.insert(self._store.rows(changed_r), self._cluster_n[changed_r])

    def delete(self, example_ids: Int64) -> None:
        """Forget all that was reported of examples of this shard, (r,); a repeat changes nothing."""
        row_r = routing.row_of(example_ids, self._num_shards)
        row_r = row_r[row_r < len(self)]
        self._statistics.remove(*self._clustered(row_r))
        self._cluster_n[row_r] = NO_CLUSTER
        self._store.delete(row_r)

    def forget_gradients(self) -> None:
        """Drop norms, sketches and clusters, and remember that from now on all of them come from scorers. A repeat
        changes nothing."""
        if self._scored:
            return
        self._store.forget_gradients()
        self._cluster_n[:] = NO_CLUSTER
        self._statistics = ClusterStatistics.zeros(0, self._store.dim)
        self._given = replace(self._given, target_md=None)
        self._scored = True

    def scored(self) -> bool:
        """Whether norms and sketches are those of scorers alone."""
        return self._scored

    def keep(self, name: str, value: Any) -> None:
        """Keep one thing of what the run was given, in the place of what it was before."""
        self._given = replace(self._given, **{name: value})

    def given(self) -> Given:
        """What it was told to keep."""
        return self._given

    def statistics(self) -> ClusterStatistics:
        """A copy of the statistics of this shard's clustered rows."""
        return self._statistics.copy()

    def sample_rows(self, count: int, seed: int) -> Float32:
        """`count` sketches, uniform without replacement, (r, d) float32; all of them when there are fewer."""
        row_n = np.flatnonzero(self._store.sketched_n)
        rng = np.random.default_rng([seed, self._shard])
        return self._store.rows(np.sort(rng.choice(row_n, min(count, len(row_n)), replace=False)))

    def assign(self, centre_kd: Float64, start: int, stop: int) -> None:
        """Put sketched rows start … stop-1 into the cluster of the nearest centre; start 0 begins anew.

        Rows not visited yet have NO_CLUSTER and are in no statistics.
        """
        if start == 0 or len(self._statistics) != len(centre_kd):  # restarted meanwhile, or made to forget
            self._cluster_n[:] = NO_CLUSTER
            self._statistics = ClusterStatistics.zeros(*centre_kd.shape)
        row_r = self._sketched_rows(start, stop)
        row_rd = self._store.rows(row_r)
        cluster_r = seeding.assign(row_rd, centre_kd)
        self._statistics.remove(*self._clustered(row_r))
        self._cluster_n[row_r] = cluster_r
        self._statistics.insert(row_rd, cluster_r)

    def refine(self, others: ClusterStatistics, start: int, stop: int) -> Refined:
        """Hartigan's move test on rows start … stop-1, against the statistics of all shards together.

        Args:
            others: the statistics of all other shards. A shard that knows another number of clusters (it was
                restarted) drops its own and takes its rows for new.
        """
        if len(self._statistics) != len(others):
            self._cluster_n[:] = NO_CLUSTER
            self._statistics = ClusterStatistics.zeros(*others.sum_kd.shape)
        row_r = self._sketched_rows(start, stop)
        row_rd = self._store.rows(row_r)
        before_r = self._cluster_n[row_r]
        after_r = before_r.copy()
        hartigan.refine(row_rd, after_r, others + self._statistics)
        moved_r = (after_r != before_r) & (before_r != NO_CLUSTER)
        changed_r = after_r != before_r
        self._statistics.remove(row_rd[moved_r], before_r[moved_r])
        self._statistics.insert(row_rd[changed_r], after_r[changed_r])
        self._cluster_n[row_r] = after_r
        moved, changed = int(np.count_nonzero(moved_r)), int(np.count_nonzero(changed_r))
        return Refined(moved=moved, placed=changed - moved, statistics=self.statistics())

    def clusters(self) -> Int32:
        """A copy of the cluster of every row, (n,) int32."""
        return self._cluster_n.copy()

    def columns(self) -> tuple[Float32, Float32, Int64]:
        """Copies of loss (n,) float32, norm (n,) float32 and step (n,) int64."""
        return self._store.loss_n.copy(), self._store.norm_n.copy(), self._store.step_n.copy()

    def nearest(self, sketch_qd: Float32, k: int, metric: str, start: int, stop: int) -> Neighbours:
        """The k nearest examples among rows start … stop-1."""
        row_n = self._sketched_rows(start, stop)
        id_n = routing.id_of(row_n, self._shard, self._num_shards)
        return neighbours.nearest(self._store.rows, row_n, id_n, sketch_qd, k, metric)

    def rows(self, example_ids: Int64) -> Float32:
        """Sketches (r, d) float32 of examples of this shard; NaN where there is none."""
        return self._rows_or(routing.row_of(example_ids, self._num_shards), np.nan)

    def dots(self, vector_d: Float32, start: int, stop: int) -> Float32:
        """Inner products (r,) float32 of rows start … stop-1 with a vector; NaN where there is no sketch."""
        row_r = self._sketched_rows(start, stop)
        dot_r = np.full(max(0, min(stop, len(self)) - start), np.nan, np.float32)
        dot_r[row_r - start] = self._store.rows(row_r) @ vector_d
        return dot_r

    def sum_of(self, start: int, stop: int) -> tuple[int, Float64]:
        """How many of rows start … stop-1 have a sketch, and the sum (d,) of these."""
        row_r = self._sketched_rows(start, stop)
        return len(row_r), self._store.rows(row_r).sum(axis=0, dtype=np.float64)

    def signs(self, row_r: Int64, mean_d: Float64, sum_d: Float64) -> tuple[Bool, Float64]:
        """Which of the rows get a plus in a balanced walk, and the signed sum (d,) after them; a row without a sketch
        counts as the mean. See `balancing.signs`."""
        return balancing.signs(self._rows_or(row_r, mean_d), mean_d, sum_d)

    def _grow(self, num_examples: int) -> None:
        if num_examples <= self._num_examples:
            return
        self._num_examples = num_examples
        self._store.resize(routing.num_rows(num_examples, self._shard, self._num_shards))
        more = np.full(len(self._store) - len(self._cluster_n), NO_CLUSTER, np.int32)
        self._cluster_n = np.append(self._cluster_n, more)

    def _rows_or(self, row_r: Int64, otherwise: float | Float64) -> Float32:
        """Sketches (r, d) of rows, and `otherwise` where there is none."""
        row_rd = np.empty((len(row_r), self._store.dim), np.float32)
        here_r = row_r < len(self)
        here_r[here_r] = self._store.sketched_n[row_r[here_r]]
        row_rd[here_r] = self._store.rows(row_r[here_r])
        row_rd[~here_r] = otherwise
        return row_rd

    def _sketched_rows(self, start: int, stop: int) -> Int64:
        return start + np.flatnonzero(self._store.sketched_n[start:stop])

    def _clustered(self, row_r: Int64) -> tuple[Float32, Int32]:
        """Sketches and clusters of those of the rows that have a cluster."""
        row_r = row_r[self._cluster_n[row_r] != NO_CLUSTER]
        return self._store.rows(row_r), self._cluster_n[row_r]
