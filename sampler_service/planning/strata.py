"""Draws inside strata without replacement: each stratum is worked through in random order, then shuffled
anew.

Shapes: n examples, k strata, s batches of a block, b batch size, m = s b rows of the block.
"""

from __future__ import annotations

import numpy as np

from sampler_service.types import Bool, Int32, Int64


class StrataCursors:
    """One cursor per stratum over its members in random order.

    The only state is `seen_n`: whether an example was drawn in the present cycle of its stratum. It survives
    new strata: members not yet seen come first, in random order, and only then does the stratum start a new
    cycle. While strata stand, every member is drawn equally often and each single draw is uniform. Just after
    new strata were made the unseen lead, which makes those draws uniform over the cycle, not one by one.

    Within one batch an example repeats only when the stratum is smaller than what the batch asks of it.
    """

    def __init__(self, num_examples: int) -> None:
        self.seen_n: Bool = np.zeros(num_examples, dtype=bool)
        self._member_n = np.empty(0, dtype=np.int64)  # examples, stratum after stratum
        self._start_k = self._cursor_k = self._end_k = self._stop_k = np.empty(0, dtype=np.int64)

    def resize(self, num_examples: int) -> None:
        """Have so many examples; new ones are unseen. New strata must follow."""
        seen_n = np.zeros(num_examples, dtype=bool)
        seen_n[: len(self.seen_n)] = self.seen_n[:num_examples]
        self.seen_n = seen_n

    def restratify(self, stratum_n: Int32, num_strata: int, rng: np.random.Generator) -> None:
        """Take new strata, ids 0 … num_strata - 1. Costs one sort of n small integers."""
        # Code 2 k for an unseen member of stratum k, 2 k + 1 for a seen one: sorting puts the unseen first.
        # numpy sorts 16-bit integers stably in linear time, and a stable sort keeps the order random inside
        # each code.
        dtype = np.uint16 if 2 * num_strata <= 1 << 16 else np.uint32
        code_n = stratum_n.astype(dtype) * dtype(2) + self.seen_n
        order_n = rng.permutation(len(stratum_n))
        self._member_n = order_n[np.argsort(code_n[order_n], kind="stable")]
        bound_c = np.concatenate(([0], np.cumsum(np.bincount(code_n, minlength=2 * num_strata))))
        self._start_k, self._stop_k = bound_c[:-1:2], bound_c[2::2]
        self._cursor_k = self._start_k.copy()
        self._end_k = bound_c[1::2].copy()  # where the present cycle ends: after the unseen members

    def take(self, count_sk: Int64, rng: np.random.Generator) -> Int64:
        """The next members of every stratum.

        Args:
            count_sk: (s, k) rows that each batch asks of each stratum; rows sum to b; 0 where a stratum is
            empty.

        Returns:
            (s, b) int64 example ids, in random order within each batch.
        """
        num_batches, num_strata = count_sk.shape
        count_ks = count_sk.T
        need_k = count_sk.sum(axis=0)
        first_k = np.cumsum(need_k) - need_k  # where each stratum's rows begin in id_m
        num_rows = int(need_k.sum())
        position_m = np.repeat(self._cursor_k - first_k, need_k) + np.arange(num_rows)
        short_k = need_k > self._end_k - self._cursor_k
        id_m = self._member_n.take(position_m, mode="clip")
        self.seen_n[id_m[~np.repeat(short_k, need_k)]] = True
        self._cursor_k += np.where(short_k, 0, need_k)
        for k in np.flatnonzero(short_k).tolist():
            id_m[first_k[k] : first_k[k] + need_k[k]] = self._start_cycles(k, count_ks[k], rng)
        batch_m = np.repeat(np.tile(np.arange(num_batches), num_strata), count_ks.ravel())
        order_m = np.argsort(batch_m + rng.random(num_rows))  # batch after batch, random inside
        return id_m[order_m].reshape(num_batches, -1)

    def _start_cycles(self, k: int, count_s: Int64, rng: np.random.Generator) -> Int64:
        """Rows of stratum k for every batch, through the end of its present cycle and as many more as it
        takes."""
        segment = self._member_n[self._start_k[k] : self._stop_k[k]]
        rest = self._member_n[self._cursor_k[k] : self._end_k[k]]
        cycle = _cycles_of_few if count_s.max() > len(segment) else _cycles_of_many
        id_r, used = cycle(segment, rest, count_s, rng)
        self.seen_n[segment] = False
        self.seen_n[segment[:used]] = True
        self._cursor_k[k] = self._start_k[k] + used
        self._end_k[k] = self._stop_k[k]
        return id_r


def _cycles_of_few(segment: Int64, rest: Int64, count_s: Int64, rng: np.random.Generator) -> tuple[Int64, int]:
    """A stratum smaller than its share of a batch: whole cycles at once, since repeats cannot be avoided."""
    need = int(count_s.sum()) - len(rest)
    num_cycles = -(-need // len(segment))
    cycles = rng.permuted(np.tile(segment, (num_cycles, 1)), axis=1)
    id_r = np.concatenate((rest, cycles.ravel()[:need]))
    segment[:] = cycles[-1]  # only now: `rest` is a view of the segment
    return id_r, need - (num_cycles - 1) * len(segment)


def _cycles_of_many(segment: Int64, rest: Int64, count_s: Int64, rng: np.random.Generator) -> tuple[Int64, int]:
    """Cycle by cycle; the batch that a cycle's end cuts in two does not meet the same example again."""
    end_s = np.cumsum(count_s)
    id_r = np.empty(end_s[-1], dtype=np.int64)
    id_r[: len(rest)] = rest
    filled, used = len(rest), 0
    while filled < len(id_r):
        batch = np.searchsorted(end_s, filled, side="right")
        drawn = id_r[end_s[batch] - count_s[batch] : filled]
        fresh = rng.permutation(segment)
        late = np.isin(fresh, drawn)
        segment[:] = np.concatenate((fresh[~late], fresh[late]))
        used = min(len(segment), len(id_r) - filled)
        id_r[filled : filled + used] = segment[:used]
        filled += used
    return id_r, used
