"""Rates become batches: what each rank gets at each step of an epoch. Shapes: t steps, m rows of the
epoch."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.planning.draws import DrawPlanner
from sampler_service.planning.ordering import in_order
from sampler_service.planning.split import batch_sizes, split_ranks
from sampler_service.planning.sweep import cut_to_top, epoch_order
from sampler_service.types import Int64, Rates, Rows, Sweep

Mode = Literal["sweep", "draw"]


class Planner:
    """Plans one epoch after another. Randomness is a function of (seed, epoch, examples into the epoch), and
    batches do not depend on how many steps are asked for at once.

    A sweep's order is fixed when it starts, whatever later rates say. Later draw rates take over from the
    step they are given for, and a policy that stands aside again goes on with the slice of the sweep that
    belongs to the step.
    """

    def __init__(self, num_examples: int, *, seed: int, drop_last: bool) -> None:
        """`drop_last` leaves out the rows of an epoch that do not fill a last global batch.

        Raises:
            ConfigError: no examples, or a negative seed.
        """
        if num_examples < 1:
            raise ConfigError(f"num_examples must be at least 1, got {num_examples}")
        if seed < 0:
            raise ConfigError(f"seed must be at least 0, got {seed}")
        self.epoch = -1
        self.mode: Mode = "sweep"
        self._num_examples = num_examples
        self._seed = seed
        self._drop_last = drop_last
        self._draws = DrawPlanner(num_examples, seed=seed)
        self._order: Rows | None = None
        self._edge_t = np.zeros(1, dtype=np.int64)
        self._skip = self._batch = self._global_batch = self._world = 0

    def resize(self, num_examples: int) -> None:
        """Have so many examples from the next epoch on; what draws have seen is kept."""
        if num_examples != self._num_examples:
            self._num_examples, self._order = num_examples, None
            self._draws.resize(num_examples)

    @property
    def num_steps(self) -> int:
        """Steps that `start_epoch` promised for the (rest of the) present epoch."""
        return len(self._edge_t) - 1

    def start_epoch(self, epoch: int, rates: Rates, *, batch_size: int, world: int, skip_examples: int = 0) -> int:
        """Fix the epoch's order and its number of steps.

        Args:
            batch_size: rows per rank.
            world: number of ranks.
            skip_examples: rows of this epoch already delivered, over all ranks. A sweep with the same rates
                goes on in the same order from there, under any batch size and world size; only a scored
                sweep, whose cut depends on the global batch, and one ordered by batches need the same one.

        Returns:
            Steps in what is left of the epoch, numbered from 0; 0 when nothing is left.

        Raises:
            ConfigError: fewer examples than ranks, no full batch under drop_last, or a bad argument.
        """
        if epoch < 0 or batch_size < 1 or world < 1:
            raise ConfigError(
                f"epoch must be at least 0, batch_size and world at least 1; got {epoch}, {batch_size} and {world}"
            )
        if not 0 <= skip_examples <= self._num_examples:
            raise ConfigError(f"skip_examples must lie in 0 … {self._num_examples}, got {skip_examples}")
        self.epoch, self._skip = epoch, skip_examples
        self._draws.restart()
        self._batch, self._global_batch, self._world = batch_size, batch_size * world, world
        self._edge_t = np.zeros(1, dtype=np.int64)  # no steps, should what follows fail
        if isinstance(rates, Sweep):
            self.mode = "sweep"
            self._order, size_t = self._rest(self._sweep_order(rates))
        else:
            self.mode, self._order = "draw", None
            size_t = self._draw_sizes(rates.over)
        self._edge_t = np.concatenate(([0], np.cumsum(size_t)))
        return self.num_steps

    def plan(self, step: int, count: int, rates: Rates, *, candidates: int = 1) -> list[list[Rows]]:
        """The parts of steps `step` … `step + count - 1` of `start_epoch`'s numbering: [count][world].

        For the same seed and rates at each step, in order, any split of the steps into calls gives the same batches.
        Draws are full global batches, with `candidates` rows for each of their examples; a sweep has one row for each,
        and its last step may be shorter or longer (see `batch_sizes`).

        After a resume with the same global batch and rates, sweeps and weighted draws go on as they would have, but
        for what is left of a block of weighted draws in which the rates had changed. What stratified draws have
        seen is not restored.

        Raises:
            ConfigError: steps outside the epoch, or rates that do not fit the run's examples.
        """
        if step < 0 or count < 1 or step + count > self.num_steps:
            raise ConfigError(
                f"steps {step} … {step + count - 1} are not in epoch {self.epoch}, which has {self.num_steps}"
            )
        if isinstance(rates, Sweep):
            self.mode = "sweep"
            rows = self._sweep_rows(step, count, rates)
            edge_t = self._edge_t[step : step + count + 1] - self._edge_t[step]
        else:
            self.mode = "draw"
            rows = self._draws.block(
                rates,
                epoch=self.epoch,
                position=self._skip + step * self._global_batch,
                num_batches=count,
                size=self._global_batch,
                candidates=candidates,
            )
            edge_t = np.arange(count + 1) * (self._global_batch * candidates)
        steps = [rows.take(slice(low, high)) for low, high in pairwise(edge_t)]
        return [split_ranks(part, self._world) for part in steps]

    def _sweep_order(self, rates: Sweep) -> Rows:
        if len(rates.keep_n) != self._num_examples:
            raise ConfigError(f"rates are for {len(rates.keep_n)} examples, the run has {self._num_examples}")
        order = epoch_order(rates, seed=self._seed, epoch=self.epoch)
        if rates.order is not None:
            how = {"batch": self._batch, "world": self._world, "seed": self._seed, "epoch": self.epoch}
            order = in_order(order, rates.order, **how)
        if rates.score_n is None:
            return order
        return cut_to_top(order, rates.score_n, top_fraction=rates.top_fraction, size=self._global_batch)

    def _rest(self, order: Rows) -> tuple[Rows, Int64]:
        """What was not yet delivered of an order, and the sizes of its steps."""
        rest = order.take(slice(self._skip, None))
        if self._skip:
            if len(rest) == 0 or (self._drop_last and len(rest) < self._global_batch):
                return rest, np.empty(0, dtype=np.int64)
            if len(rest) < self._world:  # only after a resume with more ranks than rows left
                rest = _pad(rest, self._world)
        return rest, batch_sizes(len(rest), self._global_batch, self._drop_last, self._world)

    def _draw_sizes(self, total: int) -> Int64:
        left = max(0, total - self._skip)
        steps = left // self._global_batch if self._drop_last else -(-left // self._global_batch)
        if not self._skip:
            steps = max(steps, 1)  # draws fill a batch whatever the number of examples
        return np.full(steps, self._global_batch, dtype=np.int64)

    def _sweep_rows(self, step: int, count: int, rates: Sweep) -> Rows:
        if self._order is None:  # the epoch began with draws and the policy has since stood aside
            order = self._sweep_order(rates)
            self._order = order.take(np.roll(np.arange(len(order)), -self._skip))
        low, high = int(self._edge_t[step]), int(self._edge_t[step + count])
        if high <= len(self._order):
            return self._order.take(slice(low, high))
        # Steps of an epoch that began with draws are all full, so the last ones may start the order anew.
        return self._order.take(np.arange(low, high) % len(self._order))


def _pad(rows: Rows, world: int) -> Rows:
    """Fill up to one row per rank with repeats of weight 0: no rank is empty and nothing counts twice."""
    index = np.arange(world) % len(rows)
    weights = np.where(np.arange(world) < len(rows), rows.weights[index], np.float32(0))
    padded = rows.take(index)
    return Rows(example_ids=padded.example_ids, weights=weights, probabilities=padded.probabilities)
