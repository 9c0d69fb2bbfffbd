"""The whole story of a run: reports come in, sketches are clustered, rates are made, batches go out.

    report ─▶ table, shards ─▶ clusters ─▶ policy ─▶ plan ─▶ lease

Everything this file touches is a plain object behind a narrow face: the shards may be local or Ray actors, the
policy and the planner are pure. Calls come from many threads; the lock is held for short, numpy-only work, and
never while the shards cluster. What becomes of reports is in `intake`, when rates are made in `rates`, who gets
which batch in `delivery`, which examples there are in `datasets`, what is made of sketches in `refreshes`, what scorers
do in `scores`, and what is seen of it all made in `observer` and `standouts`.

Shapes: n examples.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress

import numpy as np

from sampler_service import reports
from sampler_service.config import RunConfig
from sampler_service.datasets import Dataset, Examples
from sampler_service.delivery import Delivery
from sampler_service.drawn import Drawn
from sampler_service.errors import ConfigError, Unavailable
from sampler_service.intake import Intake
from sampler_service.leases import Group, Membership, Trainer
from sampler_service.monitor import VarianceMonitor
from sampler_service.observer import Observer
from sampler_service.rates import PresentRates
from sampler_service.refreshes import Refreshes
from sampler_service.replies import EpochStarted, Joined, Published, ReportSummary, Taken
from sampler_service.scores import Scores
from sampler_service.shards import Shards
from sampler_service.stages import ENOUGH
from sampler_service.standouts import Standouts
from sampler_service.table import Table
from sampler_service.types import Float32, Int64, Report, ScoreReport, Work
from sampler_service.views import ExampleView, Explanation, RunStatistics
from sampler_service.watched import Watched

PATIENCE = 2
"""epochs that a run may do without what its policy needs; 1 where it has no more than two, or that policy has"""


class Sampler:
    """One run. Thread-safe.

    Args:
        config: what the run is.
        shards: where its sketches live.
        clock: Unix seconds; leases are measured by it, sampling never is.
        timeout_s: deadline of a call to the shards.
        first_batch_id: above every id the run used before a restart.
        dataset: what the run's data set is now; None: it has the examples that the run was opened with.
    """

    def __init__(
        self,
        config: RunConfig,
        shards: Shards,
        *,
        clock: Callable[[], float] = time.time,
        timeout_s: float = 20.0,
        first_batch_id: int = 0,
        dataset: Dataset | None = None,
    ) -> None:
        self.config = config
        self.policy = reports.policy_of(config)
        self._shards = shards
        self._clock = clock
        self._timeout_s = timeout_s
        self._first_batch_id = first_batch_id
        self._lock = threading.RLock()
        self._storing = threading.Lock()
        self._choosing = threading.Lock()
        self._table = Table(config.num_examples)
        self._members = Membership(config.run)
        self._delivery: Delivery | None = None
        self._monitor = VarianceMonitor(dim=config.sketch_dim)
        self._examples = Examples(
            dataset or Dataset((config.num_examples,)),
            config.num_examples,
            served=lambda: self._members.served(config.num_examples),
            grew=self._grew,
        )
        self._untold = self._examples.present.deleted_ids  # the shards do not know of it
        self._rates = PresentRates(config, self.policy, self._table)
        monitor = self._monitor if self.policy.kind == "draw" else None
        self._intake = Intake(config, self._examples, self._table, monitor, self._rates)
        self._scores = Scores(config, self._examples, self._table)
        self._drawn = Drawn(config.num_examples)
        self._drawn.delete(self._untold)
        self._watched = Watched(
            config=config,
            examples=self._examples,
            policy=self.policy,
            shards=shards,
            table=self._table,
            members=self._members,
            rates=self._rates,
            intake=self._intake,
            scores=self._scores,
            monitor=self._monitor,
            drawn=self._drawn,
            lock=self._lock,
            clock=clock,
            timeout_s=timeout_s,
        )
        self._observer, self._standouts = Observer(self._watched), Standouts(self._watched)
        self._refreshes = Refreshes(self._watched, self._observer.measured_ratio)

    # --- trainers ---

    def join(self, group: Group, rank: int, lead: int, name: str, token: str = "", num_examples: int = 0) -> Joined:
        """Claim a rank; see `Membership.join`.

        Args:
            num_examples: that the trainer can load, ids below this number; 0: as many as the run was opened with.
        """
        num_examples = num_examples or self.config.num_examples
        with self._lock:
            there = self._examples.present
            reports.check_group(self.config, group, rank, lead, there.alive)
            reports.check_serves(self.config, num_examples, there.size)
            trainer, lost = self._members.join(group, rank, lead, name, self._clock(), token, num_examples)
            if self._delivery is None or self._delivery.group != group:
                self._delivery = Delivery(
                    self._members,
                    self.config,
                    self._examples,
                    group=group,
                    choose=self._rates.choose,
                    redraw=self.policy.kind == "draw",
                    # A probe of the second stage is no longer than it must be.
                    at_once=ENOUGH if self.config.candidates > 1 else self.config.max_lead,
                    first_batch_id=self._first_batch_id,
                    former=self._delivery,
                )
            elif lost is not None:
                self._delivery.give_back(lost, rank_goes_on=True)
            # The unit of the run's clock: that of the examples it was opened with, however many it has by now.
            steps = group.steps(self.config.num_examples)
            self._rates.steps_per_epoch, self._intake.world = steps, group.places
            return Joined(session=trainer.session, steps_per_epoch=steps, max_lead=self.config.max_lead)

    def connect(self, session: str, last_batch_id: int, held: Sequence[int]) -> None:
        """A trainer's stream is open, for the first time or again."""
        with self._lock:
            trainer = self._members.find(session)
            self._of(trainer).send_again(trainer, last_batch_id, set(held))
            trainer.seen(self._clock())

    def renew(self, session: str) -> None:
        """A trainer's stream is open, though nothing goes over it: it trains, or evaluates."""
        with self._lock:
            self._members.find(session).seen(self._clock())

    def disconnect(self, session: str, paused: bool = False) -> None:
        """A trainer's stream broke, or it is `paused` between two passes; its batches wait for its return, as long as
        its lease."""
        with self._lock:
            self._members.find(session).disconnected(self._clock(), paused)

    def leave(self, session: str, done: bool = False) -> None:
        """A trainer is done; what it still held goes to the others at once, if it is not `done` with that. A repeat
        changes nothing."""
        with self._lock:
            if self._members.has_ended(session):
                return
            trainer = self._members.find(session)
            if done:
                trainer.leases.clear()
            self._of(trainer).give_back(trainer)
            self._members.remove(trainer)

    # --- batches ---

    def start_epoch(
        self,
        session: str,
        epoch: int,
        skip_examples: int,
        first_step: int,
        progress: float = 0.0,
        population: str = "",
    ) -> EpochStarted:
        """Put a trainer at an epoch's start, or behind what was delivered of it before.

        Args:
            progress: share of its time budget that the trainer has spent, in a run that goes by one.
            population: of an epoch that is resumed, what was said of it when it began.
        """
        if not 0 <= progress <= 1:
            raise ConfigError(f"progress must lie in 0 … 1, got {progress}")
        if skip_examples < 0:
            raise ConfigError(f"skip_examples must not be negative, got {skip_examples}")
        with self._lock:
            trainer, now = self._members.find(session), self._clock()
            trainer.seen(now)
            delivery = self._of(trainer)
            self._check_given(delivery, trainer, epoch)
            self._rates.told(epoch, progress)
            first, num_steps = delivery.start_epoch(trainer, epoch, skip_examples, first_step, now, population)
            return EpochStarted(
                epoch=epoch,
                num_steps=num_steps,
                policy=first.policy,
                reason=first.reason,
                population=first.population.name,
                num_examples=first.population.alive,
                epoch_steps=delivery.group.steps(first.population.alive),
            )

    def take(self, session: str, count: int, acked: Sequence[int] = (), waited_s: float = 0.0) -> Taken:
        """End the leases of `acked` batches and lend up to `count` others.

        Args:
            waited_s: seconds that the trainer waited for batches and did not tell before.
        """
        with self._lock:
            trainer, now = self._members.find(session), self._clock()
            trainer.seen(now)
            self._members.waited(trainer, waited_s)
            for batch_id in acked:
                trainer.leases.pop(batch_id, None)
            count = min(count, trainer.lead - len(trainer.leases))
            batches, ended = self._of(trainer).take(trainer, count, now)
            self._intake.lend(batches)
            self._drawn.add(batches)
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
                trainer = self._members.find(session)
                trainer.reported(self._clock())
                taken = self._intake.take_in(trainer, received, self._now)
                version = self._table.version
            # A shard that was away comes back empty: what it missed counts as never sketched.
            lost = [self._shards.update(block) for block in taken.blocks]
            with self._lock:
                summary = self._intake.count(taken, lost, version)
        if taken.malformed:
            raise ConfigError(taken.malformed)
        return summary

    def fence(self) -> int:
        """Return when everything reported is stored; the next batch is planned from it."""
        self._shards.flush(self._timeout_s)
        with self._lock:
            self._rates.outdate()
            return self._table.version

    def set_groups(self, group_n: Int64) -> int:
        """Take the groups (n,): of pairs that match one another, and so are no negatives, or labels."""
        with self._lock:
            reports.check_groups(self.config, group_n, self._sizes)
            self._table.set_groups(group_n)
            self._shards.keep("group_n", group_n)
            return self._table.version

    def set_reference(self, reference_loss_n: Float32) -> int:
        """Take losses under a reference model, (n,) float32."""
        with self._lock:
            reports.check_reference(self.config, reference_loss_n, self._sizes)
            self._table.set_reference(reference_loss_n.copy())
            self._shards.keep("reference_loss_n", reference_loss_n)
            return self._table.version

    # --- the data set ---

    def follow(self, dataset: Dataset) -> None:
        """Take changes of the data set in: what was deleted is in no batch that is lent from now on, and what is new
        comes with the next epoch, if all trainers can load it. A repeat changes nothing.

        Raises:
            Unavailable: a shard is away, and still has what is known of deleted examples; they are not drawn all the
                same. Another call tells it again.
        """
        with self._lock:
            self._delete(self._examples.follow(dataset))
        self._tell_shards()

    # --- scorers ---

    def check_publish(self, session: str, step: int) -> None:
        """Raise what `published` would, before the weights travel."""
        with self._lock:
            self._members.find(session).reported(self._clock())
            self._scores.check(step, self._now)

    def published(self, version: int, step: int, scorers: int = 0) -> Published:
        """Scorers, so many of them if it is known, can have weights of this version, of `step`; from now on gradients
        come from them. A repeat changes nothing."""
        self._scored_from_now()
        with self._lock:
            self._scores.published(version, step)
            self._scores.expect(scorers, self._clock())
            alive = self._scores.alive(self._clock())
            return Published(version=self._scores.version, scorers=alive, scorer_error=self._scores.error)

    def to_score(self, scorer: str, version: int, step: int, count: int) -> Work:
        """Up to `count` examples for a scorer that has weights `version` of `step`; 0 while it has none."""
        if version:
            self._scored_from_now()
        with self._lock:
            work = self._scores.hand_out(scorer, version, step, count, self._clock())
        # While another scorer's call chooses, this one gets nothing and asks again, instead of holding a thread.
        if len(work.example_ids) or not count or not self._choosing.acquire(blocking=False):
            return work
        try:
            with self._lock:
                look = self._scores.look(version, self._clock())
            if look is None:
                return work
            pool = look.pool()  # O(n), outside of the lock: batches go on
            with self._lock:
                self._scores.refill(look, pool, self._clock())
                return self._scores.hand_out(scorer, version, step, count, self._clock())
        finally:
            self._choosing.release()

    def take_scores(self, report: ScoreReport) -> None:
        """Take in what a scorer did; no batch was lent for it, so nothing is measured by it."""
        if report.version:
            self._scored_from_now()
        with self._storing:
            with self._lock:
                block = self._scores.take_in(report, self._clock())
                if block is not None and block.sketches is not None:
                    self._intake.fresh_rows += len(block)
            lost = self._shards.update(block) if block is not None else 0
            with self._lock:
                self._scores.rows -= lost
                self._scores.rejected.update(shard_away=lost)

    # --- what is made of sketches ---

    def announce_drop(self) -> None:
        """The learning rate drops: gradients change abruptly, so the clusters are made anew soon."""
        self._refreshes.announce_drop()

    def refresh_due(self) -> str | None:
        """Why what is made of the sketches should be made anew, or None."""
        return self._refreshes.due(self._delivery)

    def refresh(self) -> None:
        """Make it anew from the present sketches. Slow; batches go on meanwhile."""
        self._refreshes.make()

    def set_target(self, sketch_md: Float32) -> int:
        """Take sketches of held-out examples, (m, d), which all others are compared with; see `Refreshes.aim`."""
        return self._refreshes.aim(sketch_md)

    def recover(self, dataset: Dataset | None = None, *, partial: bool = False) -> None:
        """After a restart: take back from the shards what was reported, and what the run was given beside reports;
        trainers join again by themselves.

        Args:
            dataset: what the run's data set has become meanwhile; None: nothing else.
            partial: go on without the shards that are away; what they hold is reported anew.

        Raises:
            Unavailable: a shard is away.
        """
        # From now on a shard that comes back empty is told from the one it was.
        stock = self._shards.stock(self._timeout_s)
        with self._lock:
            if dataset is not None:
                self._delete(self._examples.follow(dataset))
            self._examples.grow(min(stock.num_examples, self._examples.dataset.size))
        self._tell_shards(partial=partial)
        scored = self._shards.scored(self._timeout_s, partial=partial)
        if scored:  # by all of them, also if the run was lost between two
            self._shards.forget_gradients(self._timeout_s, partial=partial)
        columns = self._shards.columns(self._timeout_s, partial=partial)
        given = self._shards.given(self._timeout_s, partial=partial)
        with self._lock:
            self._table.restore(columns.loss_n, columns.norm_n, columns.step_n)
            self._table.give(given)
            self._intake.scored = self._rates.stage.kept_fresh = scored
            self._rates.sketched = stock.sketched > 0 and not scored
            self._intake.fresh_rows = int(np.count_nonzero(columns.step_n >= 0))
            self._watched.recovered = self._intake.fresh_rows > 0
        if given.target_md is not None:
            with suppress(Unavailable) if partial else nullcontext():
                self._refreshes.aim(given.target_md)

    # --- what is seen of it ---

    def statistics(self, *, detail: bool = False) -> RunStatistics:
        """Where the run stands; `detail`: with histograms and clusters."""
        return self._observer.statistics(self._delivery, self._refreshes.count, detail=detail)

    def explain(self, example_id: int, neighbours: int) -> Explanation:
        """Why an example was drawn as often as it was; see `Standouts.explain`."""
        return self._standouts.explain(self._delivery, example_id, neighbours)

    def examples(self, order: str, count: int) -> list[ExampleView]:
        """Examples that stand out; see `Standouts.examples`."""
        return self._standouts.examples(order, count)

    # --- inside ---

    def _grew(self, size: int) -> None:
        """The run has more examples."""
        before = len(self._table)
        self._table.grow(size)
        self._drawn.grow(size)
        self._shards.grow(size)
        self._watched.grow()
        gone = self._examples.present.deleted_ids
        self._delete(gone[gone >= before])

    def _delete(self, ids: Int64) -> None:
        """These are no examples of the run any more."""
        if len(ids):
            self._table.delete(ids)
            self._drawn.delete(ids)
            self._untold = np.concatenate((self._untold, ids))

    def _tell_shards(self, *, partial: bool = False) -> None:
        with self._storing:  # behind the reports that came before
            with self._lock:
                ids = self._untold
            if len(ids):
                self._shards.delete(ids, self._timeout_s, partial=partial)
            with self._lock:
                self._untold = self._untold[len(ids) :]  # there may be others by now

    def _check_given(self, delivery: Delivery, trainer: Trainer, epoch: int) -> None:
        """Raise ConfigError where a trainer begins an epoch whose policy was not given what it needs, though there was
        time to: after PATIENCE epochs, or in the last one that is known to be the policy's."""
        others = delivery.begun_by_others(trainer, epoch)
        passes = min(delivery.passes - bool(others), epoch - self._rates.since)
        # Not the first: of several ranks one may begin an epoch just before another gives what is needed. And a report
        # may be on its way, of an epoch of few batches all of them.
        last = others == delivery.group.places - 1 and self._intake.accepted and self._rates.ends_with(epoch)
        last = last and self._rates.policy.kind == "sweep"  # others draw anew within the epoch, by what comes then
        late = epoch > delivery.epoch and passes >= PATIENCE
        if (late or (last and passes >= 1)) and (lacking := self._refreshes.lacking()):
            ends = "" if late else f", and epoch {epoch} is the last that it is for: give it before"
            raise ConfigError(f"{lacking}; got none in {passes} epoch{'s' * (passes != 1)}{ends}")

    @property
    def _sizes(self) -> tuple[int, int]:
        """Examples of the run, and those that it can grow to."""
        return self._examples.present.size, self._examples.dataset.size

    def _scored_from_now(self) -> None:
        """Gradients come from scorers, whoever says so first: what sketchers reported before is of another unit, so it
        is forgotten, also by the shards. They remember that it was, over a restart of the run.

        Raises:
            Unavailable: a shard is away; nothing has changed for the run, and the next call tries again.
        """
        if self._intake.scored:
            return
        with self._storing:  # behind the reports that came before
            if self._intake.scored:
                return
            forgets = self.config.candidates == 1  # a trainer that scores candidates does it in the scorers' unit
            if forgets:
                self._shards.forget_gradients(self._timeout_s)
            with self._lock:
                if forgets:
                    self._table.forget_gradients()
                    self._monitor.reset()
                    self._rates.sketched = False
                    self._rates.clusters_changed()
                    self._intake.fresh_rows = 0
                self._intake.scored = self._rates.stage.kept_fresh = True

    @property
    def _now(self) -> int:
        """The run's clock: the step of the latest epoch's end, as trainers count."""
        epoch = self._delivery.epoch if self._delivery else 0
        return max(self._table.step, (epoch + 1) * max(1, self._rates.steps_per_epoch))

    def _of(self, trainer: Trainer) -> Delivery:
        if self._delivery is None:
            raise ConfigError(f"{trainer.name} has not joined run {self.config.run!r}")
        return self._delivery
