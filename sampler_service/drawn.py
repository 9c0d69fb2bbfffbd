"""What was handed out so far: how often each example, and how much of the set a pass and a window have covered.

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

LEAST_WINDOW = 0.5
"""of n rows; one that ends with fewer says nothing"""


class Drawn:
    """Counts of one run, 16 bytes an example. Not thread-safe: the sampler holds its lock."""

    def __init__(self, num_examples: int) -> None:
        self.times_n = np.zeros(num_examples, np.uint32)
        """how often each example was handed out"""
        self.epoch_n: Int32 = np.full(num_examples, NEVER, np.int32)
        """epoch of the latest pass in which it was"""
        self._pass_n: Int32 = np.full(num_examples, NEVER, np.int32)
        self._window_n: Int32 = np.full(num_examples, NEVER, np.int32)
        self._weight_r: Float32 = np.zeros(RECENT_ROWS, np.float32)
        self._id_r: Int64 = np.zeros(RECENT_ROWS, np.int64)
        self._rows = self._covered = 0
        self._pass, self._in_pass = 0, 0
        self._window, self._window_pass, self._window_rows, self._in_window = 0, 0, 0, 0
        self._last_window = float("nan")
        self._alive = num_examples

    def grow(self, num_examples: int) -> None:
        """Have so many examples, at least as many as before; new ones were never handed out."""
        new = num_examples - len(self.times_n)
        self.times_n = np.append(self.times_n, np.zeros(new, np.uint32))
        never = np.full(new, NEVER, np.int32)
        self.epoch_n, self._pass_n = np.append(self.epoch_n, never), np.append(self._pass_n, never)
        self._window_n = np.append(self._window_n, never)
        self._alive += new

    def delete(self, ids: Int64) -> None:
        """Leave these examples (r,) out of all shares; how often each was handed out stays known."""
        self._alive -= len(ids)
        self._covered -= int(np.count_nonzero(self.times_n[ids]))
        self._in_pass -= int(np.count_nonzero(self._pass_n[ids] == self._pass))
        self._in_window -= int(np.count_nonzero(self._window_n[ids] == self._window))

    def add(self, batches: Sequence[Batch]) -> None:
        """Batches are handed out; those that were before are left out."""
        for batch in batches:
            if batch.again:
                continue
            ids = batch.rows.example_ids
            self._covered += _distinct(ids[self.times_n[ids] == 0])
            np.add.at(self.times_n, ids, 1)
            self._count_in_pass(ids, batch)
            self._count_in_window(ids, batch)
            self._keep(ids, batch.rows.weights)

    @property
    def never(self) -> int:
        """Examples that were never handed out."""
        return self._alive - self._covered

    @property
    def epoch_coverage(self) -> float:
        """Share of the examples that the latest pass has handed out so far."""
        return self._in_pass / max(1, self._alive)

    @property
    def window_coverage(self) -> float:
        """Share of the examples among the latest window that were handed out: a sweep of the set, or else n rows. 1 for
        whole sweeps, less what fills no batch, 0.63 for independent uniform draws; NaN before the first.

        A rank that lags behind counts in the window that its batches come in.
        """
        return self._last_window

    def recent_weights(self) -> Float32:
        """(r,) of the latest draws."""
        return self._weight_r[: min(self._rows, RECENT_ROWS)].copy()

    def recent_ids(self) -> Int64:
        """(r,) examples of the latest draws."""
        return self._id_r[: min(self._rows, RECENT_ROWS)].copy()

    @property
    def memory_bytes(self) -> int:
        return sum(column.nbytes for column in (self.times_n, self.epoch_n, self._pass_n, self._window_n))

    def _count_in_pass(self, ids: Int64, batch: Batch) -> None:
        number = batch.pass_number
        if number > self._pass:
            self._pass, self._in_pass = number, 0
        self.epoch_n[ids[self._pass_n[ids] <= number]] = batch.epoch  # a slow rank may be in an earlier pass
        new = _mark(self._pass_n, ids, number)
        self._in_pass += new if number == self._pass else 0

    def _count_in_window(self, ids: Int64, batch: Batch) -> None:
        if batch.whole and batch.pass_number > self._window_pass:
            # In step with sweeps, however many rows the last one had and wherever draws or a resume have begun.
            self._end_window()
            self._window_pass = batch.pass_number
        self._in_window += _mark(self._window_n, ids, self._window)
        self._window_rows += len(ids)
        if self._window_rows >= self._alive:
            self._end_window()

    def _end_window(self) -> None:
        if self._window_rows >= LEAST_WINDOW * self._alive:
            self._last_window = self._in_window / self._alive
        self._window, self._window_rows, self._in_window = self._window + 1, 0, 0

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
    # Several times faster than np.unique, and asked for thrice a batch.
    ordered = np.sort(ids)
    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + (len(ids) > 0)
