"""What was handed out so far: how often each example, and how much of the set an epoch and a window have covered.

Handed out is what trainers were lent, candidates of a second stage among it; what was lent twice because a trainer was
lost counts twice.

Shapes: n examples, r rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sampler_service.types import NEVER, Batch, Float32, Int32, Int64

RECENT_ROWS = 1 << 14
"""of the latest draws are kept with their weights"""


class Drawn:
    """Counts of one run, 12 bytes an example. Not thread-safe: the sampler holds its lock."""

    def __init__(self, num_examples: int) -> None:
        self.times_n = np.zeros(num_examples, np.uint32)
        """how often each example was handed out"""
        self.epoch_n: Int32 = np.full(num_examples, NEVER, np.int32)
        """latest epoch in which it was"""
        self._window_n: Int32 = np.full(num_examples, NEVER, np.int32)
        self._weight_r: Float32 = np.zeros(RECENT_ROWS, np.float32)
        self._id_r: Int64 = np.zeros(RECENT_ROWS, np.int64)
        self._rows = self._covered = 0
        self._epoch, self._in_epoch = 0, 0
        self._window, self._in_window = 0, 0
        self._last_window = float("nan")

    def add(self, batches: Sequence[Batch]) -> None:
        """Batches are handed out."""
        for batch in batches:
            ids, epoch = batch.rows.example_ids, batch.epoch
            self._covered += _distinct(ids[self.times_n[ids] == 0])
            np.add.at(self.times_n, ids, 1)
            if epoch > self._epoch:
                self._epoch, self._in_epoch = epoch, 0
            new = _mark(self.epoch_n, ids, epoch)
            self._in_epoch += new if epoch == self._epoch else 0  # a slow rank may be in an earlier one
            window = self._rows // len(self.times_n)
            if window > self._window:
                self._last_window = self._in_window / len(self.times_n)
                self._window, self._in_window = window, 0
            self._in_window += _mark(self._window_n, ids, window)
            self._keep(ids, batch.rows.weights)

    @property
    def never(self) -> int:
        """Examples that were never handed out."""
        return len(self.times_n) - self._covered

    @property
    def epoch_coverage(self) -> float:
        """Share of the examples that the latest epoch has handed out so far."""
        return self._in_epoch / len(self.times_n)

    @property
    def window_coverage(self) -> float:
        """Share of the examples among the latest full window of n that were handed out: 1 for whole sweeps, 0.63 for
        independent uniform draws; NaN before the first."""
        return self._last_window

    def recent_weights(self) -> Float32:
        """(r,) of the latest draws."""
        return self._weight_r[: min(self._rows, RECENT_ROWS)].copy()

    def recent_ids(self) -> Int64:
        """(r,) examples of the latest draws."""
        return self._id_r[: min(self._rows, RECENT_ROWS)].copy()

    @property
    def memory_bytes(self) -> int:
        return self.times_n.nbytes + self.epoch_n.nbytes + self._window_n.nbytes

    def _keep(self, ids: Int64, weight_r: Float32) -> None:
        slot_r = (self._rows + np.arange(len(ids))) % RECENT_ROWS
        self._id_r[slot_r], self._weight_r[slot_r] = ids, weight_r
        self._rows += len(ids)


def _mark(mark_n: Int32, ids: Int64, mark: int) -> int:
    """Raise marks to `mark`; how many examples had a lower one."""
    new = ids[mark_n[ids] < mark]
    mark_n[new] = mark
    return _distinct(new)


def _distinct(ids: Int64) -> int:
    return len(np.unique(ids)) if len(ids) else 0
