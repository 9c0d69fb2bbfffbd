"""The table: what a policy reads about every example, kept in arrays, with a version.

The shards hold the rows of record; these columns are the run's own view of them, so that rates can be made
without asking anybody.

Shapes: n examples, r rows, k clusters.
"""

from __future__ import annotations

import numpy as np

from sampler_service.types import (
    NEVER,
    NO_CLUSTER,
    Float32,
    Float64,
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
        self.agreement = 1.0
        self.place_n: Float64 | None = None
        self.nearby: Nearby | None = None
        self.group_n: Int64 | None = None
        """of pairs that match one another, or labels; 0 … g-1"""
        self.step = 0
        self.version = 0
        self.rows = 0
        """reported since the start, of all examples"""

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
        self.cluster_n = cluster_n.copy()
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
        self.version += 1

    def align(self, alignment_n: Float32, agreement: float) -> None:
        """Take inner products with the mean of held-out sketches in, and how far these agree with one another."""
        self.alignment_n, self.agreement = alignment_n, agreement
        self.version += 1

    def place(self, place_n: Float64) -> None:
        """Take a balanced order in."""
        self.place_n = place_n
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
            reference_loss_n=self.reference_loss_n,
            alignment_n=self.alignment_n,
            agreement=self.agreement,
            group_n=self.group_n,
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
