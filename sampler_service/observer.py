"""Where a run stands: the figures of its statistics.

Cheap at any size: what would cost a pass over all examples is done on a sample of them.

Shapes: n examples, r rows, k clusters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from sampler_service.delivery import Delivery
from sampler_service.leases import Chosen, Trainer
from sampler_service.shards import Stock
from sampler_service.telemetry import (
    COUNTS,
    POWERS,
    count_quantile,
    effective_sample_ratio,
    histogram,
    lead_histogram,
    mean_by,
    measured_ratio,
)
from sampler_service.types import Int64
from sampler_service.views import ClusterView, Detail, RankView, RunStatistics
from sampler_service.watched import Present, Watched

SHOWN_CLUSTERS = 256
SHOWN_RANKS = 1024

NAN = float("nan")


class Observer:
    """Makes the statistics of one run. Calls may overlap."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._effective: tuple[Chosen | None, float] = None, NAN
        self._taken_in = self._scored = 0
        self._measured: tuple[Chosen | None, int | None, int, float] = None, None, -1, NAN

    def statistics(self, delivery: Delivery | None, refreshes: int, *, detail: bool = False) -> RunStatistics:
        """Where the run stands."""
        watched = self._watched
        stock = watched.shards.stock(watched.timeout_s)
        variance_ratio = self.measured_ratio()
        age_r = watched.table.ages(watched.sample, gradients=watched.intake.scored)
        with watched.lock:
            said = self._numbers(delivery, stock, refreshes, variance_ratio)
            present, leads = watched.present(), Counter(delivery.tally.leads if delivery else ())
            recent_leads = list(delivery.tally.recent_leads) if delivery else []
            rates_ages = list(watched.rates.ages)
        median_age, p99_age = np.quantile(age_r, (0.5, 0.99)).tolist() if len(age_r) else (NAN, NAN)
        return replace(
            said,
            mean_age_steps=float(age_r.mean()) if len(age_r) else NAN,
            median_age_steps=median_age,
            p99_age_steps=p99_age,
            effective_sample_ratio=self._effective_ratio(present.chosen),
            median_lead=count_quantile(recent_leads, 0.5),
            p99_lead=count_quantile(recent_leads, 0.99),
            median_rates_age_steps=count_quantile(rates_ages, 0.5),
            p99_rates_age_steps=count_quantile(rates_ages, 0.99),
            detail=self._detail(present, leads, age_r) if detail else None,
        )

    def measured_ratio(self) -> float:
        """Variance of a global batch over that of an i.i.d. one, from fresh reports.

        Made anew only when there were reports since, and from a copy of them: reports do not wait for it.
        """
        watched = self._watched
        with watched.lock:
            present, version = watched.present(), watched.monitor.version
            chosen, size = present.chosen, present.global_batch_size
            if chosen is None or size is None:
                return NAN
            known, known_size, known_version, ratio = self._measured
            if (known is chosen) and (known_size, known_version) == (size, version):
                return ratio
            window = watched.monitor.window()
        ratio = measured_ratio(window, chosen.rates, chosen.size_k, size)
        self._measured = chosen, size, version, ratio
        return ratio

    # --- inside ---

    def _numbers(self, delivery: Delivery | None, stock: Stock, refreshes: int, variance_ratio: float) -> RunStatistics:
        """All but what is made of arrays, which is NaN; the caller holds the lock."""
        watched, now = self._watched, self._watched.clock()
        config, table, drawn, scores = watched.config, watched.table, watched.drawn, watched.scores
        there = watched.examples.present
        chosen, stage = watched.rates.chosen, watched.rates.stage
        epoch, lent = (delivery.epoch, delivery.epoch_lent) if delivery else (0, 0.0)
        tally = delivery.tally if delivery else None
        ranks = [_rank(trainer, delivery, now) for trainer in watched.members]
        # What a shard turns out to have missed is taken off late, and a counter must not fall.
        self._taken_in = max(self._taken_in, watched.intake.accepted)
        self._scored = max(self._scored, scores.rows)
        return RunStatistics(
            run=config.run,
            dataset=config.dataset,
            num_examples=there.size,
            deleted=there.deleted,
            policy=watched.policy.name,
            active_policy=chosen.policy if chosen else "",
            reason=chosen.reason if chosen else "",
            progress=min(1.0, (epoch + lent) / config.epochs) if config.epochs else NAN,
            unbiased=watched.policy.unbiased,
            table_version=table.version,
            epoch=epoch,
            batches=tally.batches if tally else 0,
            batches_by_policy=dict(tally.by_policy) if tally else {},
            examples=tally.examples if tally else 0,
            reported_rows=self._taken_in,
            rejected_rows=dict(+(watched.intake.rejected + scores.rejected)),
            sketch_coverage=stock.sketched / max(1, there.alive),
            epoch_coverage=drawn.epoch_coverage,
            window_coverage=drawn.window_coverage,
            never_drawn=drawn.never,
            variance_ratio=variance_ratio,
            effective_sample_ratio=NAN,
            num_clusters=len(table.cluster_sse_k),
            refreshes=refreshes,
            lead=max((rank.held for rank in ranks), default=0),
            max_lead=config.max_lead,
            leases=sum(rank.held for rank in ranks),
            trainers=watched.members.present(now),
            waited_seconds=watched.members.waited_s,
            leases_expired=tally.expired if tally else 0,
            memory_bytes=stock.memory_bytes + table.memory_bytes + drawn.memory_bytes,
            shards=watched.shards.num_shards,
            shards_away=stock.away,
            shards_lost=stock.lost,
            candidates=stage.candidates,
            stage_ratio=stage.ratio(stage.candidates),
            trained_ratio=stage.witness.ratio,
            stage_cost=stage.cost(stage.candidates),
            uniform_share=watched.rates.uniform_share,
            mean_age_steps=NAN,
            median_age_steps=NAN,
            p99_age_steps=NAN,
            median_lead=NAN,
            p99_lead=NAN,
            median_rates_age_steps=NAN,
            p99_rates_age_steps=NAN,
            scorers=scores.alive(now),
            scored_rows=self._scored,
            weights_version=scores.version,
            weights_step=scores.step,
            scorer_error=scores.status(now),
            ranks=sorted(ranks, key=lambda rank: rank.rank)[:SHOWN_RANKS],
            shard=stock.each,
            detail=None,
        )

    def _effective_ratio(self, chosen: Chosen | None) -> float:
        known, ratio = self._effective
        if chosen is not None and chosen is not known:  # O(n)
            ratio = effective_sample_ratio(chosen.rates, chosen.size_k)
            self._effective = chosen, ratio
        return ratio

    def _detail(self, present: Present, leads: Counter[int], age_r: Int64) -> Detail:
        rows = self._watched.sample
        there = self._watched.examples.present
        ids = np.arange(there.size) if isinstance(rows, slice) else rows
        deleted_r = there.without(ids)
        ids = ids if deleted_r is None else ids[~deleted_r]
        return Detail(
            weights=histogram(self._watched.drawn.recent_weights(), POWERS),
            rates=histogram(present.expected(ids) if present.chosen else np.empty(0), POWERS),
            ages=histogram(age_r, COUNTS),
            leads=lead_histogram(leads),
            clusters=self._clusters(present),
        )

    def _clusters(self, present: Present) -> list[ClusterView]:
        clusters, cluster_n, rows = present.clusters, present.cluster_n, self._watched.sample
        if clusters is None:
            return []
        count = len(clusters.size_k)
        loss_k = mean_by(cluster_n[rows], self._watched.table.loss_n[rows], count)
        recent_r = cluster_n[self._watched.drawn.recent_ids()]
        recent_r = recent_r[recent_r >= 0]
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


def _rank(trainer: Trainer, delivery: Delivery | None, now: float) -> RankView:
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
