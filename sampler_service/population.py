"""The examples that an epoch is planned from: all below a number, without those that were deleted.

Policies know nothing of deletion: they see the table without the deleted examples, and what they say of the others is
put in its places afterwards. So whatever a policy takes a mean or a share of is of examples that there are, and the
n of its weights is their number.

Shapes: n examples, m of them that were not deleted, k strata, b rows of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sampler_service.types import (
    NO_CLUSTER,
    NO_ROW,
    Batch,
    BestOfSome,
    Bool,
    ByPlace,
    Int64,
    Order,
    Rates,
    Rows,
    StratifiedDraw,
    Sweep,
    TableView,
    WeightedDraw,
    freeze,
)

_COLUMNS = (
    *("loss_n", "norm_n", "step_n", "gradient_step_n", "cluster_n"),
    *("reference_loss_n", "alignment_n", "group_n", "place_n"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Population:
    """Which examples there were at one moment."""

    name: str
    """says which, to whoever has the data set's changes"""
    size: int
    """n: ids are 0 … n-1"""
    deleted_n: Bool | None = None
    """None: no example is"""
    alive: int = 0
    """m"""

    def __post_init__(self) -> None:
        freeze(self)

    @property
    def deleted(self) -> int:
        return self.size - self.alive

    @property
    def deleted_ids(self) -> Int64:
        """Those that were deleted, rising."""
        return np.empty(0, np.int64) if self.deleted_n is None else np.flatnonzero(self.deleted_n)

    @property
    def first(self) -> int:
        """The lowest id that is not deleted; NO_ROW when all are."""
        if not self.alive:
            return NO_ROW
        return 0 if self.deleted_n is None else int(np.argmin(self.deleted_n))

    def without(self, ids: Int64) -> Bool | None:
        """(r,) which of these were deleted; None when none was. Ids that are out of range were not."""
        if self.deleted_n is None:
            return None
        inside_r = (ids >= 0) & (ids < self.size)
        deleted_r = np.zeros(len(ids), dtype=bool)
        deleted_r[inside_r] = self.deleted_n[ids[inside_r]]
        return deleted_r if deleted_r.any() else None

    def view(self, view: TableView) -> TableView:
        """What is known of the examples that there are, (m,) of each column; a longer table is cut."""
        if self.deleted_n is None and self.size == len(view):
            return view
        kept = slice(self.size) if self.deleted_n is None else np.flatnonzero(~self.deleted_n)
        columns = {name: getattr(view, name) for name in _COLUMNS}
        return replace(view, **{name: None if column is None else column[kept] for name, column in columns.items()})

    def spread(self, rates: Rates) -> Rates:
        """Rates (n,) of all examples from those (m,) of the ones that there are: a deleted one is never drawn."""
        if self.deleted_n is None:
            return rates
        if isinstance(rates, WeightedDraw):
            return replace(rates, probability_n=self._filled(rates.probability_n, 0), alive=self.alive)
        if isinstance(rates, StratifiedDraw):
            # They are a stratum of their own, the last, that no row comes from.
            stratum_n = self._filled(rates.stratum_n, len(rates.rate_k))
            return replace(rates, stratum_n=stratum_n, rate_k=np.append(rates.rate_k, 0.0), alive=self.alive)
        return Sweep(
            keep_n=self._filled(rates.keep_n, 0),
            weight_n=self._filled(rates.weight_n, 0),
            score_n=None if rates.score_n is None else self._filled(rates.score_n, -np.inf),
            top_fraction=rates.top_fraction,
            order=self._order(rates.order),
            alive=self.alive,
        )

    def left_of(self, batch: Batch) -> Batch | None:
        """What is left now of a batch that was planned before from the examples below the same number.

        Weights of draws become 1 / (m p) with the m examples that are left, while the rows of the global batch, which
        the trainer divides by, stay as many as were drawn: so the expected gradient is the mean over what is left. In a
        sweep each example counts as it did. A part that lost all its rows has one of weight 0 instead, so that all
        ranks take as many steps as was said; only where there is nothing left at all, there is no batch.
        """
        if self.alive == batch.alive:
            return batch
        if not self.alive:
            return None
        ids = batch.rows.example_ids
        deleted_b = self.without(ids)
        left = np.arange(len(ids)) if deleted_b is None else np.flatnonzero(~deleted_b)
        if not len(left):
            rows = Rows(
                example_ids=np.array([self.first]),
                weights=np.zeros(1, np.float32),
                probabilities=np.full(1, 1 / self.alive),
            )
            cluster_ids = np.full(1, NO_CLUSTER, np.int32)
            return replace(batch, rows=rows, cluster_ids=cluster_ids, keep=min(batch.keep, 1), alive=self.alive)
        rows, keep = batch.rows.take(left), min(batch.keep, len(left))
        scale = batch.alive / self.alive if batch.drawn else 1.0
        if keep:  # the trainer's choice divides by the candidates that it gets, and its step counts those that it keeps
            scale *= len(left) / len(ids) * batch.keep / keep
        rows = replace(rows, weights=(rows.weights * scale).astype(np.float32))
        return replace(batch, rows=rows, cluster_ids=batch.cluster_ids[left], keep=keep, alive=self.alive)

    def _order(self, order: Order | None) -> Order | None:
        if isinstance(order, BestOfSome):
            return replace(order, score_n=self._filled(order.score_n, 0))
        if isinstance(order, ByPlace):
            return replace(order, place_n=self._filled(order.place_n, 0))
        return order  # near pairs go by their ids, and those that are not in the epoch are passed over

    def _filled(self, value_m: Any, fill: float) -> Any:
        value_n = np.full(self.size, fill, dtype=value_m.dtype)
        value_n[~self.deleted_n] = value_m  # pyright: ignore[reportOptionalOperand]
        return value_n
