"""Examples that stand out, and why one of them was drawn.

Shapes: n examples, r rows, k clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from sampler_service.delivery import Delivery
from sampler_service.errors import ConfigError, Unavailable
from sampler_service.explain import explain
from sampler_service.types import NO_ROW, Float32, Int32, Int64
from sampler_service.views import ExampleView, Explanation, Neighbour
from sampler_service.watched import Present, Watched

MOST_NEIGHBOURS = 100
MOST_EXAMPLES = 1000

LISTED_S = 2.0
"""for which a list of examples is taken for the present one: making it looks at all of them"""

NEIGHBOURS_S = 6.0
"""in which neighbours are looked for, or left out: a person waits for the explanation"""


class Standouts:
    """Looks at the examples of one run. Calls may overlap."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._listing = Lock()
        self._listed: dict[str, tuple[float, Int32, Int64]] = {}  # until when, by which clusters, which

    def explain(self, delivery: Delivery | None, example_id: int, neighbours: int = 8) -> Explanation:
        """What is known of an example, how it is drawn and why, and what is near it in gradient space.

        Without neighbours, and with the reason, when they are not found in time.

        Raises:
            ConfigError: there is no such example, or too many neighbours are asked for.
        """
        watched, there = self._watched, self._watched.examples.present
        n = there.size
        if not 0 <= example_id < n:
            raise ConfigError(
                f"example {example_id} is not one of run {watched.config.run!r}; its ids are 0 to {n - 1}"
            )
        if not 0 <= neighbours <= MOST_NEIGHBOURS:
            raise ConfigError(f"neighbours must be 0 to {MOST_NEIGHBOURS}, got {neighbours}")
        near_ids, similarity, without = self._nearest(example_id, neighbours)
        with watched.lock:
            present, examples = watched.present(), delivery.tally.examples if delivery else 0
        example, *near = self._views(np.concatenate([[example_id], near_ids]).astype(np.int64), present)
        loss_r = watched.table.loss_n[watched.sample]
        loss_r = loss_r[~np.isnan(loss_r)]
        return Explanation(
            example=example,
            why=explain(
                example,
                present.chosen,
                examples=examples,
                num_examples=there.alive,
                deleted=there.without(np.array([example_id])) is not None,
                loss_rank=float(np.mean(loss_r < example.loss)) if len(loss_r) else np.nan,
                recovered=watched.recovered,
            ),
            neighbours=[Neighbour(similarity=s, example=e) for s, e in zip(similarity, near, strict=True)],
            no_neighbours=without,
        )

    def examples(self, order: str, count: int) -> list[ExampleView]:
        """Examples that stand out: O(n), once in LISTED_S seconds or for new clusters.

        Args:
            order: "hardest", by loss or else norm; "redundant", the one drawn most of each of the clusters with the
                most redundant gradients; "most_drawn"; "never_drawn", the lowest ids.
            count: at most.

        Raises:
            ConfigError: another order, or a count out of range.
        """
        orders: dict[str, Callable[[Present], Int64]] = {
            "hardest": self._hardest,
            "redundant": self._redundant,
            "most_drawn": lambda _: _largest(self._times(), above=0),
            "never_drawn": lambda _: self._never_drawn()[:MOST_EXAMPLES],
        }
        if order not in orders:
            raise ConfigError(f"order must be one of {sorted(orders)}, got {order!r}")
        if not 1 <= count <= MOST_EXAMPLES:
            raise ConfigError(f"count must be 1 to {MOST_EXAMPLES}, got {count}")
        with self._listing:  # who asks meanwhile waits for the one answer
            present, now = self._watched.present(), self._watched.clock()
            until, cluster_n, ids = self._listed.get(order, (0.0, None, np.empty(0, np.int64)))
            if now >= until or cluster_n is not present.cluster_n:
                ids = orders[order](present)
                self._listed[order] = now + LISTED_S, present.cluster_n, ids
        deleted_r = self._watched.examples.present.without(ids)  # also since they were listed
        return self._views((ids if deleted_r is None else ids[~deleted_r])[:count], present)

    # --- inside ---

    def _times(self) -> NDArray[np.uint32]:
        """How often each example was handed out (n,), 0 for deleted ones."""
        with self._watched.lock:  # they grow together
            times_n, deleted_n = self._watched.drawn.times_n, self._watched.examples.present.deleted_n
        return times_n if deleted_n is None else np.where(deleted_n, np.uint32(0), times_n)

    def _never_drawn(self) -> Int64:
        with self._watched.lock:
            times_n, deleted_n = self._watched.drawn.times_n, self._watched.examples.present.deleted_n
        return np.flatnonzero(times_n == 0 if deleted_n is None else (times_n == 0) & ~deleted_n)

    def _views(self, ids: Int64, present: Present) -> list[ExampleView]:
        table, drawn = self._watched.table, self._watched.drawn
        return [
            ExampleView(
                example_id=i,
                loss=float(table.loss_n[i]),
                norm=float(table.norm_n[i]),
                age_steps=float(table.step - table.step_n[i]) if table.step_n[i] >= 0 else np.nan,
                drawn=int(drawn.times_n[i]),
                last_epoch=int(drawn.epoch_n[i]),
                cluster=int(present.cluster_n[i]),
                rate=float(rate),
            )
            for i, rate in zip(ids.tolist(), present.expected(ids), strict=True)
        ]

    def _nearest(self, example_id: int, count: int) -> tuple[Int64, list[float], str]:
        """Ids (r,) and similarities of what is nearest to an example, and why there is nothing."""
        shards, nothing = self._watched.shards, np.empty(0, np.int64)
        limit_s = min(NEIGHBOURS_S, self._watched.timeout_s)
        if not count:
            return nothing, [], "None were asked for."
        try:
            row_1d = shards.rows(np.array([example_id]), limit_s)
            if not np.isfinite(row_1d).all():
                return nothing, [], "It has no sketch, so nothing is known of its neighbours."
            found = shards.nearest(row_1d, count + 1, "cosine", limit_s)
        except Unavailable as error:
            return nothing, [], f"Its neighbours could not be looked for: {error}."
        ids, distance_r = found.example_ids_qk[0], found.distance_qk[0]
        others = np.flatnonzero((ids != example_id) & (ids != NO_ROW))[:count]
        without = "" if len(others) else "No other example has a sketch."
        return ids[others], (1.0 - distance_r[others].astype(np.float64)).tolist(), without

    def _hardest(self, _: Present) -> Int64:
        loss_n: Float32 = self._watched.table.loss_n
        return _largest(loss_n if not np.isnan(loss_n).all() else self._watched.table.norm_n)

    def _redundant(self, present: Present) -> Int64:
        if present.clusters is None:
            return np.empty(0, np.int64)
        # What is gained by knowing them for alike: redundancy times the examples that it makes superfluous.
        clusters = present.clusters
        most = _largest(clusters.redundancy_k * (clusters.size_k - 1), above=0)
        first_k = most_of_each(self._watched.drawn.times_n, present.cluster_n, len(clusters.size_k))
        return first_k[most][first_k[most] != NO_ROW]


def most_of_each(value_n: NDArray[np.uint32], cluster_n: NDArray[np.int32], num_clusters: int) -> Int64:
    """(k,) the first example of largest value in each cluster, NO_ROW where it has none. O(n)."""
    ids = np.flatnonzero(cluster_n >= 0)
    cluster_r, value_r = cluster_n[ids], value_n[ids]
    most_k = np.zeros(num_clusters, value_n.dtype)
    np.maximum.at(most_k, cluster_r, value_r)
    top = np.flatnonzero(value_r == most_k[cluster_r])[::-1]  # of equal ones the first is written last, and stays
    first_k = np.full(num_clusters, NO_ROW, np.int64)
    first_k[cluster_r[top]] = ids[top]
    return first_k


def _largest(value_n: NDArray[np.floating] | NDArray[np.uint32], above: float = -np.inf) -> Int64:
    """Indices of the largest values above a bound, MOST_EXAMPLES at most, the largest first; NaN is none."""
    index = np.flatnonzero(value_n > above)
    if len(index) > MOST_EXAMPLES:
        value_r = value_n[index]
        index = index[np.argpartition(value_r, len(value_r) - MOST_EXAMPLES)[-MOST_EXAMPLES:]]
    return index[np.lexsort((index, -value_n[index].astype(np.float64)))]
