"""What is seen of a run: its statistics, its examples that stand out, and why one of them was drawn.

Cheap at any size: what would cost a pass over all examples is done on a sample of them. Under the run's lock only
numbers are read; arrays are looked at afterwards, while they may change, which blurs a histogram by a few rows.

Shapes: n examples, r rows, k clusters, d sketch length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import numpy as np

from sampler_service.clustering import Partition
from sampler_service.config import RunConfig
from sampler_service.delivery import Delivery
from sampler_service.drawn import Drawn
from sampler_service.errors import ConfigError
from sampler_service.explain import explain
from sampler_service.index.neighbours import NO_ROW
from sampler_service.intake import Intake
from sampler_service.leases import Chosen, Membership
from sampler_service.monitor import VarianceMonitor
from sampler_service.policies import Policy
from sampler_service.rates import PresentRates
from sampler_service.scores import Scores
from sampler_service.shards import Shards, Stock
from sampler_service.table import ALL, Table
from sampler_service.telemetry import (
    COUNTS,
    POWERS,
    count_quantile,
    effective_sample_ratio,
    expected_draws,
    histogram,
    lead_histogram,
    mean_by,
    measured_ratio,
    principal_axes,
    redundancy,
)
from sampler_service.types import Float64, Int64
from sampler_service.views import (
    ClusterView,
    Detail,
    ExampleView,
    Explanation,
    Neighbour,
    RankView,
    RunStatistics,
)

SAMPLE_ROWS = 1 << 18
"""examples that ages and histograms are made of, of runs with more"""

SHOWN_CLUSTERS = 256
SHOWN_RANKS = 1024
MOST_NEIGHBOURS = 100
MOST_EXAMPLES = 1000

NAN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clusters:
    """What stays of a partition as long as it serves."""

    size_k: Int64
    scatter_k: Float64
    redundancy_k: Float64
    at_k2: Float64


@dataclass(slots=True, kw_only=True)
class Observer:
    """Looks at the parts of one run. Calls may overlap."""

    config: RunConfig
    policy: Policy
    shards: Shards
    table: Table
    members: Membership
    rates: PresentRates
    intake: Intake
    scores: Scores
    monitor: VarianceMonitor
    drawn: Drawn
    lock: RLock
    clock: Callable[[], float]
    timeout_s: float
    _sample: Int64 | slice = field(init=False)
    _clusters: _Clusters | None = field(init=False, default=None)
    _effective: tuple[Chosen | None, float] = field(init=False, default=(None, NAN))

    def __post_init__(self) -> None:
        n, rng = self.config.num_examples, np.random.default_rng(0)
        self._sample = ALL if n <= SAMPLE_ROWS else np.unique(rng.integers(0, n, SAMPLE_ROWS))

    def clustered(self, partition: Partition) -> None:
        """A new partition serves from now on; O(k d)."""
        size_k = np.maximum(partition.size_k, 1)
        self._clusters = _Clusters(
            size_k=partition.size_k,
            scatter_k=partition.sse_k / size_k,
            redundancy_k=redundancy(partition.mean_kd, partition.sse_k, partition.size_k),
            at_k2=principal_axes(partition.mean_kd, partition.size_k),
        )

    def statistics(self, delivery: Delivery | None, refreshes: int, *, detail: bool = False) -> RunStatistics:
        """Where the run stands."""
        stock = self.shards.stock(self.timeout_s)
        with self.lock:
            chosen, leads = self.rates.chosen, Counter(delivery.leads if delivery else ())
            rates_ages = Counter(self.rates.ages)
            numbers = self._numbers(delivery, stock, refreshes)
        age_r = self.table.ages(self._sample, gradients=self.intake.scored)
        median, p99 = np.quantile(age_r, (0.5, 0.99)) if len(age_r) else (NAN, NAN)
        return RunStatistics(
            **numbers,
            effective_sample_ratio=self._effective_ratio(chosen),
            mean_age_steps=float(age_r.mean()) if len(age_r) else NAN,
            median_age_steps=float(median),
            p99_age_steps=float(p99),
            median_lead=count_quantile(leads, 0.5),
            p99_lead=count_quantile(leads, 0.99),
            median_rates_age_steps=count_quantile(rates_ages, 0.5),
            p99_rates_age_steps=count_quantile(rates_ages, 0.99),
            detail=self._detail(chosen, leads, age_r) if detail else None,
        )

    def explain(self, delivery: Delivery | None, example_id: int, neighbours: int = 8) -> Explanation:
        """What is known of an example, how it is drawn and why, and what is near it in gradient space.

        Raises:
            ConfigError: there is no such example, or too many neighbours are asked for.
            Unavailable: a shard is away.
        """
        n = self.config.num_examples
        if not 0 <= example_id < n:
            raise ConfigError(f"example {example_id} is not one of run {self.config.run!r}; its ids are 0 to {n - 1}")
        if not 0 <= neighbours <= MOST_NEIGHBOURS:
            raise ConfigError(f"neighbours must be 0 to {MOST_NEIGHBOURS}, got {neighbours}")
        near_ids, similarity = self._nearest(example_id, neighbours)
        with self.lock:
            chosen, examples = self.rates.chosen, delivery.examples if delivery else 0
        example, *near = self._examples(np.concatenate([[example_id], near_ids]).astype(np.int64), chosen)
        loss_r = self.table.loss_n[self._sample]
        loss_r = loss_r[~np.isnan(loss_r)]
        return Explanation(
            example=example,
            why=explain(
                example,
                chosen,
                examples=examples,
                num_examples=n,
                loss_rank=float(np.mean(loss_r < example.loss)) if len(loss_r) else NAN,
            ),
            neighbours=[Neighbour(similarity=s, example=e) for s, e in zip(similarity, near, strict=True)],
        )

    def examples(self, order: str, count: int) -> list[ExampleView]:
        """Examples that stand out, O(n).

        Args:
            order: "hardest", by loss or else norm; "redundant", the one drawn most of each of the clusters with the
                most redundant gradients; "most_drawn"; "never_drawn", the lowest ids.
            count: at most.

        Raises:
            ConfigError: another order, or a count out of range.
        """
        orders = {
            "hardest": self._hardest,
            "redundant": self._redundant,
            "most_drawn": lambda count: _largest(self.drawn.times_n.astype(np.float64), count, above=0.0),
            "never_drawn": lambda count: np.flatnonzero(self.drawn.times_n == 0)[:count],
        }
        if order not in orders:
            raise ConfigError(f"order must be one of {sorted(orders)}, got {order!r}")
        if not 1 <= count <= MOST_EXAMPLES:
            raise ConfigError(f"count must be 1 to {MOST_EXAMPLES}, got {count}")
        return self._examples(orders[order](count), self.rates.chosen)

    # --- inside ---

    def _numbers(self, delivery: Delivery | None, stock: Stock, refreshes: int) -> dict[str, Any]:
        """All but what is made of arrays."""
        chosen, config, stage, now = self.rates.chosen, self.config, self.rates.stage, self.clock()
        epoch = delivery.epoch if delivery else 0
        ranks = [self._rank(trainer, delivery, now) for trainer in self.members]
        return {
            "run": config.run,
            "dataset": config.dataset,
            "num_examples": config.num_examples,
            "policy": self.policy.name,
            "active_policy": chosen.policy if chosen else "",
            "reason": chosen.reason if chosen else "",
            "progress": min(1.0, (epoch + self.drawn.epoch_coverage) / config.epochs) if config.epochs else NAN,
            "unbiased": self.policy.unbiased,
            "table_version": self.table.version,
            "epoch": epoch,
            "batches": delivery.batches if delivery else 0,
            "batches_by_policy": dict(delivery.by_policy) if delivery else {},
            "examples": delivery.examples if delivery else 0,
            "reported_rows": self.intake.accepted,
            "rejected_rows": dict(+(self.intake.rejected + self.scores.rejected)),
            "sketch_coverage": stock.sketched / config.num_examples,
            "epoch_coverage": self.drawn.epoch_coverage,
            "window_coverage": self.drawn.window_coverage,
            "never_drawn": self.drawn.never,
            "variance_ratio": self.measured_ratio(),
            "num_clusters": len(self.table.cluster_sse_k),
            "refreshes": refreshes,
            "lead": max((rank.held for rank in ranks), default=0),
            "max_lead": config.max_lead,
            "leases": sum(rank.held for rank in ranks),
            "trainers": self.members.present(now),
            "waited_seconds": self.members.waited_s,
            "leases_expired": delivery.expired if delivery else 0,
            "memory_bytes": stock.memory_bytes + self.table.memory_bytes + self.drawn.memory_bytes,
            "shards": self.shards.num_shards,
            "shards_away": stock.away,
            "shards_lost": stock.lost,
            "candidates": stage.candidates,
            "stage_ratio": stage.ratio(stage.candidates),
            "stage_cost": stage.cost(stage.candidates),
            "trained_ratio": stage.witness.ratio,
            "uniform_share": self.rates.uniform_share,
            "scorers": self.scores.alive(now),
            "scored_rows": self.scores.rows,
            "weights_version": self.scores.version,
            "weights_step": self.scores.step,
            "scorer_error": self.scores.status(now),
            "ranks": sorted(ranks, key=lambda rank: rank.rank)[:SHOWN_RANKS],
            "shard": stock.each,
        }

    def measured_ratio(self) -> float:
        """Variance of a global batch over that of an i.i.d. one, from fresh reports; the caller holds the lock."""
        chosen, group = self.rates.chosen, self.members.group
        if chosen is None or group is None:
            return NAN
        return measured_ratio(self.monitor, chosen.rates, chosen.size_k, group.batch_size * group.world_size)

    def _effective_ratio(self, chosen: Chosen | None) -> float:
        known, ratio = self._effective
        if chosen is not None and chosen is not known:  # O(n)
            ratio = effective_sample_ratio(chosen.rates, chosen.size_k)
            self._effective = chosen, ratio
        return ratio

    def _rank(self, trainer: Any, delivery: Delivery | None, now: float) -> RankView:
        epoch = delivery.epoch_of(trainer) if delivery else None
        return RankView(
            rank=trainer.rank,
            trainer=trainer.name,
            connected=trainer.present(now),
            epoch=-1 if epoch is None else epoch,
            held=len(trainer.leases),
            lead=trainer.lead,
            batches=trainer.batches,
            examples=trainer.examples,
            waited_seconds=trainer.waited_s,
        )

    def _detail(self, chosen: Chosen | None, leads: Counter[int], age_r: Int64) -> Detail:
        rows = self._sample
        ids = np.arange(self.config.num_examples) if isinstance(rows, slice) else rows
        rate_r = expected_draws(chosen.rates, chosen.size_k, ids) if chosen else np.empty(0)
        return Detail(
            weights=histogram(self.drawn.recent_weights(), POWERS),
            rates=histogram(rate_r, POWERS),
            ages=histogram(age_r, COUNTS),
            leads=lead_histogram(leads),
            clusters=self._cluster_views(),
        )

    def _cluster_views(self) -> list[ClusterView]:
        clusters, count = self._clusters, len(self.table.cluster_sse_k)
        if clusters is None or len(clusters.size_k) != count:
            return []  # there are none, or they are being made
        cluster_n = self.table.cluster_n
        loss_k = mean_by(cluster_n[self._sample], self.table.loss_n[self._sample], count)
        recent_r = cluster_n[self.drawn.recent_ids()]
        recent_r = recent_r[(recent_r >= 0) & (recent_r < count)]
        draw_k = np.bincount(recent_r, minlength=count) / max(1, len(recent_r))
        return [
            ClusterView(
                cluster=k,
                size=int(clusters.size_k[k]),
                draw_share=float(draw_k[k]),
                loss=float(loss_k[k]),
                scatter=float(clusters.scatter_k[k]),
                redundancy=float(clusters.redundancy_k[k]),
                x=float(clusters.at_k2[k, 0]),
                y=float(clusters.at_k2[k, 1]),
            )
            for k in np.argsort(-clusters.size_k, kind="stable")[:SHOWN_CLUSTERS].tolist()
        ]

    def _examples(self, ids: Int64, chosen: Chosen | None) -> list[ExampleView]:
        table, never = self.table, NAN
        rate_r = expected_draws(chosen.rates, chosen.size_k, ids) if chosen else np.full(len(ids), NAN)
        return [
            ExampleView(
                example_id=i,
                loss=float(table.loss_n[i]),
                norm=float(table.norm_n[i]),
                age_steps=float(table.step - table.step_n[i]) if table.step_n[i] >= 0 else never,
                drawn=int(self.drawn.times_n[i]),
                last_epoch=int(self.drawn.epoch_n[i]),
                cluster=int(table.cluster_n[i]),
                rate=float(rate),
            )
            for i, rate in zip(ids.tolist(), rate_r, strict=True)
        ]

    def _nearest(self, example_id: int, count: int) -> tuple[Int64, list[float]]:
        """Ids (r,) and similarities of what is nearest to an example; none when it has no sketch."""
        row_1d = self.shards.rows(np.array([example_id]), self.timeout_s)
        if not count or not np.isfinite(row_1d).all():
            return np.empty(0, np.int64), []
        found = self.shards.nearest(row_1d, count + 1, "cosine", self.timeout_s)
        ids, distance_r = found.example_ids_qk[0], found.distance_qk[0]
        others = np.flatnonzero((ids != example_id) & (ids != NO_ROW))[:count]
        return ids[others], (1.0 - distance_r[others].astype(np.float64)).tolist()

    def _hardest(self, count: int) -> Int64:
        loss_n = self.table.loss_n
        known = loss_n if not np.isnan(loss_n).all() else self.table.norm_n
        return _largest(known, count)

    def _redundant(self, count: int) -> Int64:
        clusters, cluster_n = self._clusters, self.table.cluster_n
        if clusters is None or len(clusters.size_k) != len(self.table.cluster_sse_k):
            return np.empty(0, np.int64)
        # What is gained by knowing them for alike: redundancy times the examples that it makes superfluous.
        most = _largest(clusters.redundancy_k * (clusters.size_k - 1), count, above=0.0)
        times_n = self.drawn.times_n
        members = [np.flatnonzero(cluster_n == k) for k in most]
        return np.array([ids[np.argmax(times_n[ids])] for ids in members if len(ids)], np.int64)


def _largest(value_n: Any, count: int, above: float = -np.inf) -> Int64:
    """Indices of the largest values above a bound, the largest first; NaN is none."""
    value_n = np.where(np.isnan(value_n), -np.inf, value_n)
    index = np.argpartition(-value_n, count)[:count] if count < len(value_n) else np.arange(len(value_n))
    index = index[np.argsort(-value_n[index], kind="stable")]
    return index[value_n[index] > above]
