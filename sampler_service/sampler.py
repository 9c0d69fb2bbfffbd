"""The whole story of a run: reports come in, sketches are clustered, rates are made, batches go out.

    report ─▶ table, shards ─▶ clusters ─▶ policy ─▶ plan ─▶ lease

Everything this file touches is a plain object behind a narrow face: the shards may be local or Ray actors, the
policy and the planner are pure. Calls come from many threads; the lock is held for short, numpy-only work, and
never while the shards cluster.

Shapes: n examples, r reported rows, k strata.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from sampler_service import reports
from sampler_service.clustering import recluster, refresh_due
from sampler_service.config import RunConfig
from sampler_service.delivery import Delivery
from sampler_service.errors import ConfigError, Unavailable
from sampler_service.leases import Chosen, Group, Membership, Trainer
from sampler_service.monitor import VarianceMonitor
from sampler_service.policies import Policy, choose, make_policy
from sampler_service.replies import EpochStarted, Joined, ReportSummary, RunStatistics, Taken
from sampler_service.shards import Shards
from sampler_service.table import Table
from sampler_service.telemetry import effective_sample_ratio, measured_ratio, stratum_sizes
from sampler_service.types import Batch, Float32, Report, ReportBlock

log = logging.getLogger(__name__)

WORST_RATIO = 0.9
"""above this measured variance ratio the partition is stale and the policy stands aside (methods of staleness)"""

RATES_ROWS_PER_STEP = 1 << 17
"""examples per step at which new rates may be made: bounds their cost per batch, whatever n is"""


class Sampler:
    """One run. Thread-safe.

    Args:
        config: what the run is.
        shards: where its sketches live.
        clock: Unix seconds; leases are measured by it, sampling never is.
        timeout_s: deadline of a call to the shards.
        first_batch_id: above every id the run used before a restart.
    """

    def __init__(
        self,
        config: RunConfig,
        shards: Shards,
        *,
        clock: Callable[[], float] = time.time,
        timeout_s: float = 20.0,
        first_batch_id: int = 0,
    ) -> None:
        self.config = config
        self.policy: Policy = make_policy(config.policy, reports.option_values(config.policy_options))
        self._shards = shards
        self._clock = clock
        self._timeout_s = timeout_s
        self._first_batch_id = first_batch_id
        self._lock = threading.RLock()
        self._storing = threading.Lock()
        self._table = Table(config.num_examples)
        self._members = Membership(config.run)
        self._delivery: Delivery | None = None
        self._monitor = VarianceMonitor(dim=config.sketch_dim)
        self._chosen: Chosen | None = None
        self._chosen_epoch, self._chosen_steps = -1, 0
        self._aside = ""
        self._stale_rates = True
        self._steps_per_epoch = 0
        self._lent: OrderedDict[int, Batch] = OrderedDict()
        self._reported: OrderedDict[int, None] = OrderedDict()
        self._fresh_rows = 0
        self._dropped_rate = False
        self._accepted = 0
        self._rejected: Counter[str] = Counter()
        self._refreshes = 0
        self._clustered_at = 0
        self._before = (0, 0)  # batches and examples of deliveries under another geometry

    # --- trainers ---

    def join(self, group: Group, rank: int, lead: int, name: str, token: str = "") -> Joined:
        """Claim a rank; see `Membership.join`."""
        reports.check_group(self.config, group, rank, lead)
        with self._lock:
            trainer, lost = self._members.join(group, rank, lead, name, self._clock(), token)
            if self._delivery is None or self._delivery.group != group:
                self._delivery = self._new_delivery(group)
            elif lost is not None:
                self._delivery.give_back(lost, rank_goes_on=True)
            size = group.batch_size * group.world_size
            whole, rest = divmod(self.config.num_examples, size)
            self._steps_per_epoch = whole + (0 if group.drop_last or rest < group.world_size else 1)
            return Joined(
                session=trainer.session,
                steps_per_epoch=self._steps_per_epoch,
                max_lead=self.config.max_lead,
            )

    def connect(self, session: str, last_batch_id: int, held: Sequence[int]) -> None:
        """A trainer's stream is open, for the first time or again."""
        with self._lock:
            trainer = self._members.find(session)
            self._of(trainer).send_again(trainer, last_batch_id, set(held))
            trainer.connected, trainer.lost_at = True, None

    def disconnect(self, session: str) -> None:
        """A trainer's stream broke; its batches wait for its return, as long as its lease."""
        with self._lock:
            trainer = self._members.find(session)
            trainer.connected, trainer.lost_at = False, self._clock()

    def leave(self, session: str) -> None:
        """A trainer is done; what it still held goes to the others at once. A repeat changes nothing."""
        with self._lock:
            if self._members.has_ended(session):
                return
            trainer = self._members.find(session)
            self._of(trainer).give_back(trainer)
            self._members.remove(trainer)

    # --- batches ---

    def start_epoch(self, session: str, epoch: int, skip_examples: int, first_step: int) -> EpochStarted:
        """Put a trainer at an epoch's start, or behind what was delivered of it before."""
        if not 0 <= skip_examples <= self.config.num_examples:
            raise ConfigError(
                f"skip_examples is {skip_examples}, outside of the epoch's 0 … {self.config.num_examples} examples; "
                "the saved position belongs to another dataset"
            )
        with self._lock:
            trainer = self._members.find(session)
            first, num_steps = self._of(trainer).start_epoch(trainer, epoch, skip_examples, first_step)
            return EpochStarted(epoch=epoch, num_steps=num_steps, policy=first.policy, reason=first.reason)

    def take(self, session: str, count: int, acked: Sequence[int] = ()) -> Taken:
        """End the leases of `acked` batches and lend up to `count` others."""
        with self._lock:
            trainer = self._members.find(session)
            for batch_id in acked:
                trainer.leases.pop(batch_id, None)
            count = min(count, trainer.lead - len(trainer.leases))
            batches, ended = self._of(trainer).take(trainer, count, self._clock())
            for batch in batches:
                self._lent[batch.batch_id] = batch
            while len(self._lent) > 4 * self.config.max_lead * self._world:
                self._lent.popitem(last=False)
            return Taken(batches=batches, ended=ended)

    # --- reports ---

    def report(self, session: str, received: Sequence[Report]) -> ReportSummary:
        """Take reports in. Sound rows are applied, the others counted; a repeat changes nothing.

        Raises:
            ConfigError: a report does not fit the run; the others are applied first.
        """
        # The shards are told outside of the lock, since they may be slow, but in the order of the table.
        with self._storing:
            with self._lock:
                blocks, rejected, malformed = self._apply(self._members.find(session), received)
                accepted = sum(map(len, blocks))
                version = self._table.version
            for block in blocks:
                try:
                    self._shards.update(block)
                except Unavailable as error:  # it comes back empty: what it missed counts as never sketched
                    log.warning("run %s: %d sketches are lost: %s", self.config.run, len(block), error)
                    rejected["shard_away"] += len(block)
            with self._lock:
                self._accepted += accepted
                self._rejected.update(rejected)
        if malformed:
            raise ConfigError(malformed)
        return ReportSummary(table_version=version, accepted=accepted, rejected=dict(rejected))

    def _apply(self, trainer: Trainer, received: Sequence[Report]) -> tuple[list[ReportBlock], Counter[str], str]:
        """Sound rows, now in the table; rows left out, by reason; and what was wrong with a whole report."""
        blocks: list[ReportBlock] = []
        rejected, malformed = Counter[str](), ""
        for report in received:
            if report.batch_id and report.batch_id in self._reported:
                rejected["duplicate"] += len(report.example_ids)
                continue
            misfit = reports.misfit(self.config, report, self._now)
            if misfit:
                malformed = malformed or misfit
                continue
            block, reasons = reports.sound_rows(report, self.config.num_examples, self._table.step_n)
            rejected.update(reasons)
            self._watch(report)
            self._table.apply(block)
            self._fresh_rows += len(block) if block.sketches is not None else 0
            blocks.append(block)
            trainer.leases.pop(report.batch_id, None)
            self._remember(report.batch_id)
        return blocks, rejected, malformed

    def fence(self) -> int:
        """Return when everything reported is stored; the next batch is planned from it."""
        self._shards.flush(self._timeout_s)
        with self._lock:
            self._stale_rates = True
            return self._table.version

    def set_reference(self, reference_loss_n: Float32) -> int:
        """Take losses under a reference model, (n,) float32."""
        if len(reference_loss_n) != self.config.num_examples:
            raise ConfigError(
                f"reference losses: got {len(reference_loss_n)}, run {self.config.run!r} has "
                f"{self.config.num_examples} examples"
            )
        if not np.isfinite(reference_loss_n).all():
            bad = int(np.flatnonzero(~np.isfinite(reference_loss_n))[0])
            raise ConfigError(f"reference loss of example {bad} is {reference_loss_n[bad]}; it must be finite")
        with self._lock:
            self._table.set_reference(reference_loss_n.copy())
            return self._table.version

    # --- clusters ---

    def announce_drop(self) -> None:
        """The learning rate drops: gradients change abruptly, so the clusters are made anew soon."""
        with self._lock:
            self._dropped_rate = True

    def refresh_due(self) -> str | None:
        """Why the clusters should be made anew, or None."""
        if "cluster" not in self.policy.needs:
            return None
        with self._lock:
            ratio = self._measured_ratio()
            if ratio > WORST_RATIO and self._refreshes and not self._aside:
                self._aside = f"shuffle: the measured variance ratio is {ratio:.2f}, above {WORST_RATIO}"
                self._stale_rates = True
            first = self._refreshes == 0
            return refresh_due(
                fresh_rows=self._fresh_rows,
                num_examples=self.config.num_examples,
                ratio=ratio,
                learning_rate_dropped=self._dropped_rate,
                coverage=min(self.config.refresh_coverage, self.policy.min_coverage if first else 1.0),
            )

    def refresh(self) -> None:
        """Make the clusters anew from the present sketches. Slow; batches go on meanwhile."""
        neyman = getattr(self.policy, "allocation", "equal") == "neyman"
        with self._lock:
            fresh_rows, dropped_rate = self._fresh_rows, self._dropped_rate
        partition = recluster(
            self._shards,
            num_clusters=self._num_clusters(),
            method="kmeans" if neyman else "hartigan",
            seed=self.config.seed,
            timeout_s=self._timeout_s,
        )
        with self._lock:
            self._fresh_rows -= fresh_rows  # only now: a refresh that failed is due again
            self._dropped_rate &= not dropped_rate
            self._table.install(partition.cluster_n, partition.sse_k)
            self._clustered_at = self._table.version
            self._monitor.reset()
            self._refreshes += 1
            self._aside = ""
            self._stale_rates = True
        log.info(
            "run %s: %d clusters, objective %.4g -> %.4g in %d passes",
            self.config.run,
            len(partition),
            partition.objective_before,
            partition.objective,
            partition.passes,
        )

    def recover(self) -> None:
        """After a restart: take back from the shards what was reported; trainers join again by themselves."""
        columns = self._shards.columns(self._timeout_s)
        with self._lock:
            self._table.restore(columns.loss_n, columns.norm_n, columns.step_n)
            self._fresh_rows = int(np.count_nonzero(columns.step_n >= 0))

    # --- statistics ---

    def statistics(self) -> RunStatistics:
        """Where the run stands."""
        stored = self._shards.memory_bytes(self._timeout_s)
        with self._lock:
            chosen, table, delivery = self._chosen, self._table, self._delivery
            return RunStatistics(
                run=self.config.run,
                dataset=self.config.dataset,
                num_examples=self.config.num_examples,
                policy=self.policy.name,
                active_policy=chosen.policy if chosen else "",
                reason=chosen.reason if chosen else "",
                unbiased=self.policy.unbiased,
                table_version=table.version,
                epoch=delivery.epoch if delivery else 0,
                batches=self._before[0] + (delivery.batches if delivery else 0),
                examples=self._before[1] + (delivery.examples if delivery else 0),
                reported_rows=self._accepted,
                rejected_rows=dict(self._rejected),
                sketch_coverage=float(table.sketched_n.mean()),
                variance_ratio=self._measured_ratio(),
                effective_sample_ratio=effective_sample_ratio(chosen.rates, chosen.size_k) if chosen else float("nan"),
                num_clusters=len(table.cluster_sse_k),
                refreshes=self._refreshes,
                mean_age_steps=table.mean_age(),
                lead=max((len(trainer.leases) for trainer in self._members), default=0),
                max_lead=self.config.max_lead,
                trainers=self._members.connected(),
                leases_expired=delivery.expired if delivery else 0,
                memory_bytes=stored + table.memory_bytes,
            )

    # --- inside ---

    @property
    def _now(self) -> int:
        """The run's clock: the step of the latest epoch's end, as trainers count."""
        epoch = self._delivery.epoch if self._delivery else 0
        return max(self._table.step, (epoch + 1) * max(1, self._steps_per_epoch))

    @property
    def _world(self) -> int:
        return self._members.group.world_size if self._members.group else 1

    def _new_delivery(self, group: Group) -> Delivery:
        config = self.config
        first = self._first_batch_id
        if self._delivery is not None:
            first = self._delivery.last_batch_id
            self._before = (self._before[0] + self._delivery.batches, self._before[1] + self._delivery.examples)
        return Delivery(
            self._members,
            config,
            group=group,
            choose=self._choose,
            redraw=self.policy.kind == "draw",
            first_batch_id=first,
        )

    def _of(self, trainer: Trainer) -> Delivery:
        if self._delivery is None:
            raise ConfigError(f"{trainer.name} has not joined run {self.config.run!r}")
        return self._delivery

    def _choose(self, epoch: int, steps: int) -> Chosen:
        """Present rates, for `steps` steps. Made anew when the table has moved on, at most every few steps when n
        is large."""
        every = 1
        if self.policy.kind == "draw":
            every = min(self.config.max_lead, 1 + self.config.num_examples // RATES_ROWS_PER_STEP)
        if self._chosen is not None and not self._stale_rates and epoch == self._chosen_epoch:
            same = self._chosen.table_version == self._table.version
            if same or 0 < self._chosen_steps < every:
                self._chosen_steps += steps
                return self._chosen
        max_age, progress = int(self.config.fresh_epochs * max(1, self._steps_per_epoch)), self._progress(epoch)
        view = self._table.view()
        if self._aside:
            rates, reason = make_policy("shuffle", {}).rates(view, progress=0.0), self._aside
        else:
            rates, reason = choose(self.policy, view, min_coverage=None, max_age=max_age, progress=progress)
        if self._chosen is not None and reason != self._chosen.reason and reason:
            log.info("run %s: %s", self.config.run, reason)
        self._chosen = Chosen(
            rates=rates,
            policy="shuffle" if reason else self.policy.name,
            reason=reason,
            table_version=view.version,
            cluster_n=view.cluster_n,
            size_k=stratum_sizes(rates),
        )
        self._chosen_epoch, self._chosen_steps, self._stale_rates = epoch, steps, False
        return self._chosen

    def _progress(self, epoch: int) -> float:
        return min(1.0, epoch / self.config.epochs) if self.config.epochs else 0.0

    def _num_clusters(self) -> int:
        """K = B unless it was set, and few enough for clusters to have members."""
        group = self._members.group
        batch = group.batch_size * group.world_size if group else 64
        return self.config.num_clusters or max(1, min(batch, self.config.num_examples // 4))

    def _watch(self, report: Report) -> None:
        """Let the monitor see fresh gradients of a batch, with the clusters and weights it was drawn by."""
        batch = self._lent.get(report.batch_id)
        if batch is None or batch.table_version < self._clustered_at or report.norms is None or report.sketches is None:
            return
        where = reports.positions(batch.rows.example_ids, report.example_ids)
        if where is None:
            return
        sound = np.isfinite(report.sketches).all(axis=1) & np.isfinite(report.norms)
        self._monitor.add(
            sketch_rd=report.sketches[sound],
            norm_r=report.norms[sound],
            cluster_r=batch.cluster_ids[where][sound],
            weight_r=batch.rows.weights[where][sound],
        )

    def _measured_ratio(self) -> float:
        chosen, group = self._chosen, self._members.group
        if chosen is None or group is None:
            return float("nan")
        return measured_ratio(self._monitor, chosen.rates, chosen.size_k, group.batch_size * group.world_size)

    def _remember(self, batch_id: int) -> None:
        if batch_id:
            self._reported[batch_id] = None
            while len(self._reported) > max(4096, 8 * self.config.max_lead * self._world):
                self._reported.popitem(last=False)
