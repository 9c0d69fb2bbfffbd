"""The table: what a policy reads about every example, kept in arrays, with a version.

The shards hold the rows of record; these columns are the run's own view of them, so that rates can be made
without asking anybody.

Shapes: n examples, r rows, k clusters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampler_service.types import (
    NEVER,
    NO_CLUSTER,
    Float32,
    Float64,
    Given,
    Int32,
    Int64,
    Nearby,
    ReportBlock,
    TableView,
)

ALL = slice(None)


class Table:
    """Columns of one run. Not thread-safe: the sampler holds its lock."""

    def __init__(self, num_examples: int) -> None:
        self.loss_n: Float32 = np.full(num_examples, np.nan, dtype=np.float32)
        self.norm_n: Float32 = np.full(num_examples, np.nan, dtype=np.float32)
        self.step_n: Int64 = np.full(num_examples, NEVER, dtype=np.int64)
        self.gradient_step_n: Int64 = np.full(num_examples, NEVER, dtype=np.int64)
        self.cluster_n: Int32 = np.full(num_examples, NO_CLUSTER, dtype=np.int32)
        self.cluster_sse_k: Float64 = np.empty(0, dtype=np.float64)
        self.cluster_scatter = np.nan
        self.reference_loss_n: Float32 | None = None
        self.alignment_n: Float32 | None = None
        self.alignment_step = NEVER
        self.agreement = 1.0
        self.place_n: Float64 | None = None
        self.nearby: Nearby | None = None
        self.group_n: Int64 | None = None
        """of pairs that match one another, or labels; 0 … g-1"""
        self._without_group: int | None = None  # group of the examples that came later
        self.step = 0
        self.version = 0
        self.rows = 0
        """reported since the start, of all examples"""

    def __len__(self) -> int:
        return len(self.loss_n)

    def grow(self, num_examples: int) -> None:
        """Have so many examples, at least as many as before. Of new ones nothing is known; they are one group, since
        each by itself would be drawn as often as a whole one, until groups are set anew. An order takes them in
        anywhere."""
        self.loss_n, self.norm_n = longer(self.loss_n, num_examples, np.nan), longer(self.norm_n, num_examples, np.nan)
        self.step_n = longer(self.step_n, num_examples, NEVER)
        self.gradient_step_n = longer(self.gradient_step_n, num_examples, NEVER)
        self.cluster_n = longer(self.cluster_n, num_examples, NO_CLUSTER)
        for name in ("reference_loss_n", "alignment_n"):
            if (column := getattr(self, name)) is not None:
                setattr(self, name, longer(column, num_examples, np.nan))
        if self.group_n is not None and len(self.group_n) < num_examples:
            if self._without_group is None:
                self._without_group = int(self.group_n.max()) + 1
            self.group_n = longer(self.group_n, num_examples, self._without_group)
        if self.place_n is not None:
            self.place_n = _placed(self.place_n, num_examples)
        self.version += 1

    def delete(self, ids: Int64) -> None:
        """Forget what was reported of these examples, (r,)."""
        self.loss_n[ids] = self.norm_n[ids] = np.nan
        self.step_n[ids] = self.gradient_step_n[ids] = NEVER
        self.cluster_n[ids] = NO_CLUSTER
        self.version += 1

    def apply(self, block: ReportBlock, *, trained: bool = True) -> None:
        """Take reported rows in; a value that was not reported leaves the old one, and a step never goes back.

        Args:
            block: sound rows.
            trained: they were trained on; the norms and sketches of a scoring pass make no loss look fresh.
        """
        ids = block.example_ids
        known_r = ~np.isnan(block.losses)
        self.loss_n[ids[known_r]] = block.losses[known_r]
        known_r = ~np.isnan(block.norms)
        self.norm_n[ids[known_r]] = block.norms[known_r]
        step_r = np.broadcast_to(block.step, len(ids))
        if block.sketches is not None:
            known_r = np.ones(len(ids), dtype=bool)
        rows = ids[known_r]
        self.gradient_step_n[rows] = np.maximum(self.gradient_step_n[rows], step_r[known_r])
        if trained:
            self.step_n[ids] = np.maximum(self.step_n[ids], step_r)
        self.step = max(self.step, int(np.max(block.step, initial=0)))
        self.rows += len(block)
        self.version += 1

    def restore(self, loss_n: Float32, norm_n: Float32, step_n: Int64) -> None:
        """Take over the columns that the shards have kept."""
        self.loss_n, self.norm_n, self.step_n = loss_n.copy(), norm_n.copy(), step_n.copy()
        # The shards keep one step a row: a gradient may be older than it says here, until it is refreshed.
        self.gradient_step_n = np.where(np.isnan(norm_n), NEVER, step_n)
        self.step = max(0, int(step_n.max(initial=0)))
        self.version += 1

    def give(self, given: Given) -> None:
        """Take in once more what the run was given. Examples that came later have none of it."""
        if given.group_n is not None:
            self.set_groups(given.group_n)
        if given.reference_loss_n is not None:
            self.set_reference(given.reference_loss_n.copy())
        self.grow(len(self))

    def date_back(self, step: int) -> None:
        """Take gradients of later steps for ones of this step."""
        np.minimum(self.gradient_step_n, step, out=self.gradient_step_n)
        self.version += 1

    def forget_gradients(self) -> None:
        """Norms in another unit are about to come: what can't be compared must not stand side by side."""
        self.norm_n[:] = np.nan
        self.gradient_step_n[:] = NEVER
        self.cluster_n = np.full_like(self.cluster_n, NO_CLUSTER)  # batches that were planned keep the old ones
        self.cluster_sse_k = np.empty(0, dtype=np.float64)
        self.cluster_scatter = np.nan
        self.alignment_n = self.place_n = self.nearby = None
        self.version += 1

    def install(self, cluster_n: Int32, cluster_sse_k: Float64, cluster_scatter: float) -> None:
        """Take a new partition in: of each example, the scatter of each cluster, and the overall one."""
        self.cluster_n = longer(cluster_n.copy(), len(self), NO_CLUSTER)
        self.cluster_sse_k = cluster_sse_k
        self.cluster_scatter = cluster_scatter
        self.version += 1

    def set_reference(self, reference_loss_n: Float32) -> None:
        """Take reference losses in."""
        self.reference_loss_n = reference_loss_n
        self.version += 1

    def set_groups(self, group_n: Int64) -> None:
        """Take groups in, whatever whole numbers they have."""
        self.group_n = np.unique(group_n, return_inverse=True)[1]
        self._without_group = None
        self.version += 1

    def align(self, alignment_n: Float32, agreement: float) -> None:
        """Take inner products with the mean of held-out sketches in, and how far these agree with one another."""
        self.alignment_n, self.agreement = longer(alignment_n, len(self), np.nan), agreement
        self.alignment_step = self.step
        self.version += 1

    def place(self, place_n: Float64) -> None:
        """Take a balanced order in."""
        self.place_n = _placed(place_n, len(self))
        self.version += 1

    def bring_near(self, nearby: Nearby | None) -> None:
        """Take near pairs in."""
        self.nearby = nearby
        self.version += 1

    def view(self, epoch_steps: int = 1) -> TableView:
        """Read-only arrays for a policy; they change with the table, so rates are made before it moves on."""
        return TableView(
            loss_n=self.loss_n,
            norm_n=self.norm_n,
            step_n=self.step_n,
            cluster_n=self.cluster_n,
            cluster_sse_k=self.cluster_sse_k,
            cluster_scatter=self.cluster_scatter,
            gradient_step_n=self.gradient_step_n,
            reference_loss_n=_cut(self.reference_loss_n, len(self)),
            alignment_n=self.alignment_n,
            alignment_step=self.alignment_step,
            agreement=self.agreement,
            group_n=_cut(self.group_n, len(self)),
            place_n=self.place_n,
            nearby=self.nearby,
            epoch_steps=epoch_steps,
            step=self.step,
            version=self.version,
        )

    def ages(self, rows: Int64 | slice = ALL, *, gradients: bool = False) -> Int64:
        """Steps (r,) since the last norm or sketch, or else the last report, of those of the rows that were reported.

        Args:
            rows: which to look at.
            gradients: of norms and sketches alone.
        """
        step_r = self.gradient_step_n[rows]
        if not gradients:
            step_r = np.where(step_r != NEVER, step_r, self.step_n[rows])
        return self.step - step_r[step_r != NEVER]

    @property
    def memory_bytes(self) -> int:
        columns = (
            *(self.loss_n, self.norm_n, self.step_n, self.gradient_step_n),
            *(self.cluster_n, self.cluster_sse_k),
            *(self.reference_loss_n, self.alignment_n, self.place_n, self.group_n),
        )
        near = (self.nearby.anchor_a, self.nearby.near_am) if self.nearby else ()
        return sum(column.nbytes for column in (*columns, *near) if column is not None)


def longer(column_n: NDArray[Any], num_examples: int, fill: float) -> NDArray[Any]:
    """A column with `fill` for examples that it does not reach; one that is long enough as it is."""
    if len(column_n) >= num_examples:
        return column_n
    return np.append(column_n, np.full(num_examples - len(column_n), fill, column_n.dtype))


def _placed(place_n: Float64, num_examples: int) -> Float64:
    """Places with random ones for examples that they do not reach: such are as good as any."""
    new = num_examples - len(place_n)
    return np.append(place_n, np.random.default_rng(len(place_n)).random(new)) if new > 0 else place_n


def _cut(column_n: NDArray[Any] | None, num_examples: int) -> NDArray[Any] | None:
    """Of what was set for all that a data set has, the part that the run has yet."""
    return None if column_n is None else column_n[:num_examples]
