"""Batches from draw rates, the same ones however the steps are split over the calls that ask for them.

Stratified draws are planned step by step, each step with a generator of its own. Weighted draws are spread over
blocks of `BLOCK_STEPS` steps, counted from the start of the epoch: a block is planned whole, whichever of its
steps is asked for first, and step t gets row t mod `BLOCK_STEPS`.

Rates that change inside a block end it there, and a shorter one with randomness of its own takes its remaining
steps. The randomness of the old block would not do: the steps already drawn have told part of it to the reports
that the new rates were made from, and given those rates the remaining rows would no longer have mean b p_i.
The same is true of a block that goes on because its steps showed no cause for a change; the error is at most that of
its rows times the chance of a change in it, which is rare where it follows from values (`DECISIONS.md`).

Shapes: n examples, k strata, s batches, b batch size, m = s b rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.planning.randomness import Stream, generator
from sampler_service.planning.strata import StrataCursors
from sampler_service.planning.systematic import systematic_block
from sampler_service.planning.weighted import WeightedDrawer
from sampler_service.types import Float64, Int64, Rows, StratifiedDraw, WeightedDraw

BLOCK_STEPS = 16
"""Steps over which weighted draws are spread; more are spread more evenly and cost more at a change of the rates."""

_TOLERANCE = 1e-6  # of a sum that should be 1: a larger gap is a wrong rate, not rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Weighted draws of several steps; positions are examples into the epoch."""

    rows: Rows
    first: int
    stop: int
    stride: int
    """By how much the position grows with each step."""
    size: int
    """Rows of one step."""

    def covers(self, position: int, stride: int) -> bool:
        into = position - self.first
        return stride == self.stride and 0 <= into < self.stop - self.first and into % stride == 0

    def between(self, position: int, stop: int) -> Rows:
        low, high = ((place - self.first) // self.stride * self.size for place in (position, stop))
        return self.rows.take(slice(low, high))


class DrawPlanner:
    """Turns draw rates into rows; keeps what is costly to make between two refreshes of the rates."""

    def __init__(self, num_examples: int, *, seed: int) -> None:
        self.cursors = StrataCursors(num_examples)
        self._num_examples = num_examples
        self._seed = seed
        self._rates: StratifiedDraw | WeightedDraw | None = None
        self._stratum_n = np.empty(0, dtype=np.int32)
        self._member_probability_k: Float64 = np.empty(0)
        self._drawer: WeightedDrawer | None = None
        self._drawer_epoch = -1
        self._block: _Block | None = None  # of weighted draws, the latest
        self._block_ended = False  # by other rates

    def resize(self, num_examples: int) -> None:
        """Have so many examples from the next rates on."""
        self.cursors.resize(num_examples)
        self._num_examples, self._rates, self._drawer = num_examples, None, None
        self._stratum_n = np.empty(0, dtype=np.int32)

    def restart(self) -> None:
        """Forget how far blocks were planned: a pass begins, perhaps through an epoch that was begun before."""
        self._block, self._block_ended = None, False

    def block(
        self,
        rates: StratifiedDraw | WeightedDraw,
        *,
        epoch: int,
        position: int,
        num_batches: int,
        size: int,
        candidates: int = 1,
    ) -> Rows:
        """`num_batches * size * candidates` rows, batch after batch, each batch in random order.

        Args:
            position: examples of this epoch before these batches. The randomness of each batch is a
                function of seed, epoch and the batch's position; stratified draws go on from the cursors too.
            size: examples of a batch, by which the position grows.
            candidates: rows drawn for each of them.

        Raises:
            ConfigError: rates of another number of examples, not finite, or zero where examples are.
        """
        if isinstance(rates, WeightedDraw):
            drawer = self._weigh(rates, epoch)
            return self._weighted(
                drawer, rates, epoch, range(position, position + num_batches * size, size), candidates
            )
        self._stratify(rates, epoch, position)
        return self._stratified(rates, epoch, range(position, position + num_batches * size, size), candidates)

    def _stratified(self, rates: StratifiedDraw, epoch: int, positions: range, candidates: int) -> Rows:
        size = positions.step * candidates
        id_sb = np.empty((len(positions), size), dtype=np.int64)
        for batch, position in enumerate(positions):
            rng = generator(Stream.DRAW, seed=self._seed, epoch=epoch, position=position)
            count_sk = systematic_block(rates.rate_k, size, num_batches=1, rng=rng)
            id_sb[batch] = self.cursors.take(count_sk, rng)[0]
        id_m = id_sb.ravel()
        return _weighted_rows(id_m, self._member_probability_k[rates.stratum_n[id_m]], rates.over)

    def _weighted(
        self, drawer: WeightedDrawer, rates: WeightedDraw, epoch: int, positions: range, candidates: int
    ) -> Rows:
        """The rows of these batches, cut out of as many blocks as they touch."""
        parts: list[Rows] = []
        position, stride = positions.start, positions.step
        while position < positions.stop:
            block = self._block_at(drawer, rates, epoch, position, stride, stride * candidates)
            stop = min(positions.stop, block.stop)
            parts.append(block.between(position, stop))
            position = stop
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _block_at(
        self, drawer: WeightedDrawer, rates: WeightedDraw, epoch: int, position: int, stride: int, size: int
    ) -> _Block:
        under_way = self._block is not None and self._block.covers(position, stride)
        if self._block is None or not under_way or self._block_ended or self._block.size != size:
            row = position // stride % BLOCK_STEPS
            # After a resume the block is planned from its start on, so that it gives the rows that it would have.
            first = position if under_way else position - row * stride
            num_batches = BLOCK_STEPS - row if under_way else BLOCK_STEPS
            rng = generator(Stream.DRAW, seed=self._seed, epoch=epoch, position=first)
            id_m = drawer.draw(num_batches=num_batches, size=size, rng=rng).ravel()
            rows = _weighted_rows(id_m, rates.probability_n[id_m], rates.over, unbiased=rates.unbiased)
            stop = first + num_batches * stride
            self._block, self._block_ended = _Block(rows=rows, first=first, stop=stop, stride=stride, size=size), False
        return self._block

    def _weigh(self, rates: WeightedDraw, epoch: int) -> WeightedDrawer:
        """The drawer of this epoch with these rates. Rates with the values of the last ones change nothing."""
        self._check_length(len(rates.probability_n))
        if self._drawer is not None and epoch == self._drawer_epoch:
            if rates is self._rates:
                return self._drawer
            if _same(rates, self._rates):
                self._rates = rates
                return self._drawer
        self._rates, self._block_ended = None, True  # also should what follows fail
        if self._drawer is None or epoch != self._drawer_epoch:
            self.restart()
            rng = generator(Stream.ORDER, seed=self._seed, epoch=epoch)
            self._drawer, self._drawer_epoch = WeightedDrawer(rates.probability_n, rng), epoch
        else:
            self._drawer.refresh(rates.probability_n)
        if abs(self._drawer.total - 1) > _TOLERANCE:
            raise ConfigError(f"probabilities must sum to 1, these sum to {self._drawer.total}")
        self._rates = rates
        return self._drawer

    def _stratify(self, rates: StratifiedDraw, epoch: int, position: int) -> None:
        if rates is self._rates:
            return
        self._check_length(len(rates.stratum_n))
        low, high, num_strata = rates.stratum_n.min(), rates.stratum_n.max(), len(rates.rate_k)
        if low < 0 or high >= num_strata:
            raise ConfigError(f"strata must lie in 0 … {num_strata - 1}, these reach from {low} to {high}")
        size_k = stratum_sizes(rates)
        self._member_probability_k = _member_probability(rates.rate_k, size_k)
        if not np.array_equal(rates.stratum_n, self._stratum_n):
            rng = generator(Stream.STRATA, seed=self._seed, epoch=epoch, position=position)
            self.cursors.restratify(rates.stratum_n, len(rates.rate_k), rng)
            self._stratum_n = rates.stratum_n
        self._rates = rates

    def _check_length(self, length: int) -> None:
        if length != self._num_examples:
            raise ConfigError(f"rates are for {length} examples, the run has {self._num_examples}")


def stratum_sizes(rates: StratifiedDraw) -> Int64:
    """N_k (k,), the examples of each stratum that there are. O(n)."""
    size_k = np.bincount(rates.stratum_n, minlength=len(rates.rate_k))
    if rates.alive:
        size_k[-1] = 0
    return size_k


def _member_probability(rate_k: Float64, size_k: Int64) -> Float64:
    """q_k / N_k, the probability of one member; 0 for empty strata."""
    wrong = np.flatnonzero(~(np.isfinite(rate_k) & np.where(size_k > 0, rate_k > 0, rate_k == 0)))
    if len(wrong):
        k = wrong[0]
        raise ConfigError(
            f"rate {rate_k[k]} of stratum {k} with {size_k[k]} examples: it must be positive where there are "
            "examples, or they are lost for ever, and 0 where there are none"
        )
    if abs(rate_k.sum() - 1) > _TOLERANCE:
        raise ConfigError(f"rates of the strata must sum to 1, these sum to {rate_k.sum()}")
    return rate_k / np.maximum(size_k, 1)


def _weighted_rows(id_m: Int64, probability_m: Float64, num_examples: int, *, unbiased: bool = True) -> Rows:
    weight_m = 1 / (num_examples * probability_m) if unbiased else np.ones(len(id_m))
    return Rows(example_ids=id_m, weights=weight_m.astype(np.float32), probabilities=probability_m)


def _same(rates: WeightedDraw, others: StratifiedDraw | WeightedDraw | None) -> bool:
    if not isinstance(others, WeightedDraw) or rates.unbiased != others.unbiased:
        return False
    return np.array_equal(rates.probability_n, others.probability_n)


def _joined(parts: list[Rows]) -> Rows:
    return Rows(
        example_ids=np.concatenate([part.example_ids for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
    )
