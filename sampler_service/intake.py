"""Intake: what becomes of the reports of a run, from what a trainer sent to the table, the monitor and the counts.

Reports of one call are taken in together: each step costs as much for one report as for many.

Shapes: r reported rows.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sampler_service import reports
from sampler_service.config import RunConfig
from sampler_service.datasets import Examples
from sampler_service.leases import Trainer
from sampler_service.monitor import VarianceMonitor
from sampler_service.rates import PresentRates
from sampler_service.replies import ReportSummary
from sampler_service.sketch.store import finite_rows
from sampler_service.table import Table
from sampler_service.types import Batch, Report, ReportBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenIn:
    """What became of the reports of one call."""

    blocks: list[ReportBlock]
    """Sound rows, now in the table; the shards are still to be told, in this order."""
    accepted: int
    """rows"""
    rejected: Counter[str]
    """Rows left out, by reason."""
    malformed: str
    """What was wrong with a whole report; empty when nothing was."""


class Intake:
    """Knows which batches were lent and which were reported. Not thread-safe: the sampler holds its lock.

    Args:
        config: the run's.
        examples: which it has.
        table: takes the sound rows.
        monitor: takes the fresh gradients of lent batches; None for a policy that never draws, whose ratio nobody asks.
        rates: takes what scoring passes measured.
    """

    def __init__(
        self,
        config: RunConfig,
        examples: Examples,
        table: Table,
        monitor: VarianceMonitor | None,
        rates: PresentRates,
    ) -> None:
        self._config = config
        self._examples = examples
        self._table = table
        self._monitor = monitor
        self._rates = rates
        self._lent: OrderedDict[int, Batch] = OrderedDict()
        self._reported: OrderedDict[tuple[int, bool], None] = OrderedDict()
        self.world = 1
        """trainers, and their workers with streams of their own; bounds what is remembered"""
        self.clustered_at = 0
        """table version of the present clusters: batches planned before are not measured by them"""
        self.scored = False
        """whether scorers work for the run: gradients come from scoring passes alone, in one unit"""
        self.fresh_rows = 0
        """rows with sketches since the clusters were made"""
        self.accepted = 0
        self.rejected: Counter[str] = Counter()

    def lend(self, batches: Iterable[Batch]) -> None:
        """Remember how batches were drawn until they are reported."""
        for batch in batches:
            self._lent[batch.batch_id] = batch
        while len(self._lent) > 4 * self._config.max_lead * self.world:
            self._lent.popitem(last=False)

    def take_in(self, trainer: Trainer, received: Sequence[Report], now: int) -> TakenIn:
        """Put what is sound into the table; a batch that is reported is no longer leased.

        Args:
            trainer: whose reports they are.
            received: in the order of their arrival.
            now: the run's clock, in steps.
        """
        fitting: list[Report] = []
        rejected, malformed = Counter[str](), ""
        for report in received:
            if report.batch_id and (report.batch_id, report.scores) in self._reported:
                rejected["duplicate"] += len(report.example_ids)
                continue
            misfit = reports.misfit(self._config, report, now)
            if misfit:
                malformed = malformed or misfit
                continue
            now = max(now, report.step)
            report, deleted = reports.left_of(report, self._examples.present)
            if deleted:  # since its batch was lent
                rejected["deleted"] += deleted
            if self.scored and not report.scores and (report.norms is not None or report.sketches is not None):
                # Taken before the trainer published; those of a sketcher are of other layers, in another unit.
                rejected["other_unit"] += len(report.example_ids)
                report = replace(report, norms=None, sketches=None)
            if report.scores:
                self._heed(report)
                report = replace(report, losses=None)  # of the evaluation mode: those of the table are trained with
            else:
                trainer.leases.pop(report.batch_id, None)
                if report.evidence is not None:
                    self._rates.stage.witness.add(report.evidence)
            fitting.append(report)
            self._remember(report)
        blocks, accepted = [], 0
        for group in reports.together(fitting):
            scores = group[0].scores
            known_n = self._table.gradient_step_n if scores else self._table.step_n
            block, sound, reasons = reports.sound_rows(group, len(self._table), known_n)
            rejected.update(reasons)
            accepted += sound
            self._watch(group)
            self._table.apply(block, trained=not scores)
            if block.sketches is not None:
                self.fresh_rows += sound
                self._rates.sketched = True
            blocks.append(block)
        return TakenIn(blocks=blocks, accepted=accepted, rejected=rejected, malformed=malformed)

    def count(self, taken: TakenIn, lost: Sequence[int], version: int) -> ReportSummary:
        """Add what became of a call to the run's statistics, and say it.

        Args:
            taken: what became of its reports here.
            lost: of each of its blocks, the rows that a shard turned out to have missed then.
            version: of the table with the reports in it.
        """
        rejected = taken.rejected + Counter(shard_away=sum(lost))
        of_sketches = sum(rows for block, rows in zip(taken.blocks, lost, strict=True) if block.sketches is not None)
        # Shards are heard late: some of these rows came in an earlier call, and before the clusters perhaps.
        self.fresh_rows = max(0, self.fresh_rows - of_sketches)
        self.accepted += taken.accepted - sum(lost)
        self.rejected.update(rejected)
        accepted = max(0, taken.accepted - sum(lost))
        return ReportSummary(table_version=version, accepted=accepted, rejected=dict(rejected))

    def _heed(self, report: Report) -> None:
        """Let the rates learn from a scoring pass how old scores compare with fresh ones."""
        batch = self._lent.get(report.batch_id)
        if batch is None or report.norms is None:
            return
        where = reports.positions(batch.rows.example_ids, report.example_ids)
        if where is not None:
            sound = np.isfinite(report.norms) & (report.norms >= 0)
            self._rates.heed(report, batch, sound, batch.rows.weights[where])

    def _remember(self, report: Report) -> None:
        if report.batch_id:
            self._reported[report.batch_id, report.scores] = None
            while len(self._reported) > max(4096, 8 * self._config.max_lead * self.world):
                self._reported.popitem(last=False)

    def _watch(self, group: Sequence[Report]) -> None:
        """Let the monitor see fresh gradients of batches, with the clusters and weights they were drawn by."""
        if self._monitor is None or group[0].norms is None or group[0].sketches is None:
            return
        seen: list[tuple[Any, ...]] = []
        for report in group:
            batch = self._lent.get(report.batch_id)
            if batch is not None and batch.table_version >= self.clustered_at:
                where = reports.positions(batch.rows.example_ids, report.example_ids)
                if where is not None:
                    drawn = batch.cluster_ids[where], batch.rows.weights[where]
                    seen.append((report.sketches, report.norms, *drawn))
        if seen:
            sketch_rd, norm_r, cluster_r, weight_r = map(np.concatenate, zip(*seen, strict=True))
            sound = finite_rows(sketch_rd) & np.isfinite(norm_r)
            self._monitor.add(
                sketch_rd=sketch_rd[sound],
                norm_r=norm_r[sound],
                cluster_r=cluster_r[sound],
                weight_r=weight_r[sound],
            )
