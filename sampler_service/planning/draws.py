"""Blocks of batches from draw rates. Shapes: n examples, k strata, s batches, b batch size, m = s b rows."""

from __future__ import annotations

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.planning.randomness import Stream, generator
from sampler_service.planning.strata import StrataCursors
from sampler_service.planning.systematic import systematic_block
from sampler_service.planning.weighted import WeightedDrawer
from sampler_service.types import Float64, Int64, Rows, StratifiedDraw, WeightedDraw

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

    def block(
        self, rates: StratifiedDraw | WeightedDraw, *, epoch: int, position: int, num_batches: int, size: int
    ) -> Rows:
        """`num_batches * size` rows, batch after batch, each batch in random order.

        Args:
            position: examples drawn in this epoch before the block; with seed and epoch it fixes the
            randomness.

        Raises:
            ConfigError: rates of another number of examples, not finite, or zero where examples are.
        """
        rng = generator(Stream.DRAW, seed=self._seed, epoch=epoch, position=position)
        if isinstance(rates, WeightedDraw):
            drawer = self._weighted(rates, epoch)
            id_sb = drawer.draw(num_batches=num_batches, size=size, rng=rng)
            probability_m = rates.probability_n[id_sb.ravel()]
        else:
            self._stratify(rates, epoch, position)
            count_sk = systematic_block(rates.rate_k, size, num_batches=num_batches, rng=rng)
            id_sb = self.cursors.take(count_sk, rng)
            probability_m = self._member_probability_k[rates.stratum_n[id_sb.ravel()]]
        return _weighted_rows(id_sb, probability_m, self._num_examples)

    def _weighted(self, rates: WeightedDraw, epoch: int) -> WeightedDrawer:
        self._check_length(len(rates.probability_n))
        if self._drawer is None or epoch != self._drawer_epoch:
            rng = generator(Stream.ORDER, seed=self._seed, epoch=epoch)
            self._drawer, self._drawer_epoch = WeightedDrawer(rates.probability_n, rng), epoch
        elif rates is not self._rates:
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


def _weighted_rows(id_sb: Int64, probability_m: Float64, num_examples: int) -> Rows:
    return Rows(
        example_ids=id_sb.ravel(),
        weights=(1 / (num_examples * probability_m)).astype(np.float32),
        probabilities=probability_m,
    )
