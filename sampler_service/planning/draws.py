"""Batches from draw rates, the same ones however the steps are split over the calls that ask for them.

Stratified draws are planned step by step, each step with a generator of its own. Weighted draws are spread over
blocks of `BLOCK_STEPS` steps. A block is planned whole, whichever of its steps is asked for first, and step t of
the epoch gets row t mod `BLOCK_STEPS`; when the rates change, the steps that are left get their rows of the same
block planned anew, with the new rates and the same randomness.

Shapes: n examples, k strata, s batches, b batch size, m = s b rows.
"""

from __future__ import annotations

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
        self._planned: Rows | None = None  # the latest block of weighted draws, unless the drawer has changed since
        self._planned_at = (0, 0)  # its first position and its batch size

    def block(
        self, rates: StratifiedDraw | WeightedDraw, *, epoch: int, position: int, num_batches: int, size: int
    ) -> Rows:
        """`num_batches * size` rows, batch after batch, each batch in random order.

        Args:
            position: examples drawn in this epoch before these batches. The randomness of each batch is a
                function of seed, epoch and the batch's position; stratified draws go on from the cursors too.

        Raises:
            ConfigError: rates of another number of examples, not finite, or zero where examples are.
        """
        if isinstance(rates, WeightedDraw):
            drawer = self._weigh(rates, epoch)
            return self._weighted(drawer, rates, epoch, position, num_batches, size)
        self._stratify(rates, epoch, position)
        return self._stratified(rates, epoch, position, num_batches, size)

    def _stratified(self, rates: StratifiedDraw, epoch: int, position: int, num_batches: int, size: int) -> Rows:
        id_sb = np.empty((num_batches, size), dtype=np.int64)
        for batch in range(num_batches):
            rng = generator(Stream.DRAW, seed=self._seed, epoch=epoch, position=position + batch * size)
            count_sk = systematic_block(rates.rate_k, size, num_batches=1, rng=rng)
            id_sb[batch] = self.cursors.take(count_sk, rng)[0]
        id_m = id_sb.ravel()
        return _weighted_rows(id_m, self._member_probability_k[rates.stratum_n[id_m]], self._num_examples)

    def _weighted(
        self, drawer: WeightedDrawer, rates: WeightedDraw, epoch: int, position: int, num_batches: int, size: int
    ) -> Rows:
        """The rows of these batches, cut out of as many blocks as they touch."""
        # Blocks are counted from the start of the epoch, so that a run resumed inside one goes on with its rows.
        # After a resume with another batch size the batches may begin off the multiples of theirs, by `off`.
        step, off = divmod(position, size)
        parts: list[Rows] = []
        end = step + num_batches
        while step < end:
            block, row = divmod(step, BLOCK_STEPS)
            count = min(end - step, BLOCK_STEPS - row)
            rows = self._planned_block(drawer, rates, epoch, off + block * BLOCK_STEPS * size, size)
            parts.append(rows.take(slice(row * size, (row + count) * size)))
            step += count
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _planned_block(self, drawer: WeightedDrawer, rates: WeightedDraw, epoch: int, position: int, size: int) -> Rows:
        if self._planned is None or self._planned_at != (position, size):
            rng = generator(Stream.DRAW, seed=self._seed, epoch=epoch, position=position)
            id_m = drawer.draw(num_batches=BLOCK_STEPS, size=size, rng=rng).ravel()
            self._planned = _weighted_rows(id_m, rates.probability_n[id_m], self._num_examples)
            self._planned_at = (position, size)
        return self._planned

    def _weigh(self, rates: WeightedDraw, epoch: int) -> WeightedDrawer:
        """The drawer of this epoch with these rates; what was planned stands as long as neither changes."""
        self._check_length(len(rates.probability_n))
        if self._drawer is not None and epoch == self._drawer_epoch:
            if rates is self._rates:
                return self._drawer
            if isinstance(self._rates, WeightedDraw) and np.array_equal(rates.probability_n, self._rates.probability_n):
                self._rates = rates
                return self._drawer
        self._rates = self._planned = None  # should what follows fail
        if self._drawer is None or epoch != self._drawer_epoch:
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
        size_k = np.bincount(rates.stratum_n, minlength=num_strata)
        self._member_probability_k = _member_probability(rates.rate_k, size_k)
        if not np.array_equal(rates.stratum_n, self._stratum_n):
            rng = generator(Stream.STRATA, seed=self._seed, epoch=epoch, position=position)
            self.cursors.restratify(rates.stratum_n, len(rates.rate_k), rng)
            self._stratum_n = rates.stratum_n
        self._rates = rates

    def _check_length(self, length: int) -> None:
        if length != self._num_examples:
            raise ConfigError(f"rates are for {length} examples, the run has {self._num_examples}")


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


def _weighted_rows(id_m: Int64, probability_m: Float64, num_examples: int) -> Rows:
    return Rows(
        example_ids=id_m,
        weights=(1 / (num_examples * probability_m)).astype(np.float32),
        probabilities=probability_m,
    )


def _joined(parts: list[Rows]) -> Rows:
    return Rows(
        example_ids=np.concatenate([part.example_ids for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts]),
    )
