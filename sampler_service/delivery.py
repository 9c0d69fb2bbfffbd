"""Delivery: epochs are planned, parts wait in the queue of their rank, and are lent to trainers.

In a sweep without failures every example is delivered exactly once an epoch. What a lost trainer held goes back:
to the trainer that takes its rank over, or, after the lease, to the others; so do later parts of a rank without
a trainer.

What was deleted since a batch was planned is taken out of it when it is lent, whether it waited in a queue or comes
back from another trainer.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from math import inf

from sampler_service.config import RunConfig
from sampler_service.datasets import Examples
from sampler_service.errors import ConfigError, Stale
from sampler_service.leases import Chosen, Group, Membership, Trainer
from sampler_service.passes import Epoch
from sampler_service.planning import Planner
from sampler_service.planning.randomness import position_seed
from sampler_service.population import Population
from sampler_service.tally import Tally
from sampler_service.types import Batch, Rows, Sweep

log = logging.getLogger(__name__)

KEPT_EPOCHS = 3
"""older epochs that slow ranks may still take; a rank further behind the fastest one skips what it missed"""


class Delivery:
    """Plans and lends the batches of one run. Not thread-safe: the sampler holds its lock.

    Args:
        members: the trainers.
        config: the run's.
        examples: which the run has.
        group: their geometry; another one needs another Delivery.
        choose: present rates, given the epoch, how many steps will be planned from them, and of which examples; asked
            at the start of an epoch and before each further batch.
        redraw: whether rates are asked for again inside an epoch (draw policies).
        at_once: steps that are planned from one answer of `choose`, at most.
        first_batch_id: above every id that this run ever used.
        former: the run's delivery under another geometry; its ids and counts go on.
    """

    def __init__(  # noqa: PLR0913 - keyword-only settings of one run
        self,
        members: Membership,
        config: RunConfig,
        examples: Examples,
        *,
        group: Group,
        choose: Callable[[int, int, Population], Chosen],
        redraw: bool,
        at_once: int,
        first_batch_id: int,
        former: Delivery | None = None,
    ) -> None:
        self._members = members
        self._config = config
        self._examples = examples
        self.group = group
        self._planner = self._new_planner(examples.present.size)
        self._choose = choose
        self._redeliver = config.on_lost == "redeliver"
        self._redraw = redraw
        self._at_once = at_once
        self._next_id = former.last_batch_id if former else first_batch_id
        self._epochs: list[Epoch] = []
        self._at: dict[str, Epoch] = {}
        self._without_trainer: set[int] = set()
        self._passes = former._passes if former else 0
        self._pass_epoch = former._pass_epoch if former else -1  # of the latest pass
        self.tally = former.tally if former else Tally()
        """of what was lent"""

    @property
    def epoch(self) -> int:
        """The latest epoch started."""
        return self._epochs[-1].epoch if self._epochs else 0

    @property
    def epoch_lent(self) -> float:
        """Share of the latest epoch's steps that were lent, by the rank that is furthest."""
        return self._epochs[-1].lent if self._epochs else 0.0

    @property
    def passes(self) -> int:
        """Over the set that were begun, also under former geometries."""
        return self._passes

    @property
    def last_batch_id(self) -> int:
        return self._next_id

    def epoch_of(self, trainer: Trainer) -> int | None:
        """The epoch that a trainer has started; None before its first."""
        position = self._at.get(trainer.session)
        return position.epoch if position else None

    def begun_by_others(self, trainer: Trainer, epoch: int) -> int:
        """Places other than a trainer's that have begun an epoch; -1 when its own has, too."""
        places = {place for here in self._epochs if here.epoch == epoch for place in here.begins_at}
        return -1 if trainer.rank in places else len(places)

    def start_epoch(
        self, trainer: Trainer, epoch: int, skip: int, first_step: int, now: float, population: str = ""
    ) -> tuple[Chosen, int]:
        """Put a trainer at the start of an epoch (or inside it); what it held of another is given up.

        Args:
            population: name of the examples that an epoch to be resumed began with.

        Returns:
            The rates that the epoch began with, and the batches this trainer will get.
        """
        here = self._under_way(trainer, epoch, skip, now)
        here = here or self._begin(trainer, epoch, skip, first_step, now, population)
        rank, first_step = trainer.rank, min(first_step, here.num_steps)
        trainer.leases.clear()
        self._without_trainer.discard(rank)
        for older in self._epochs[: self._epochs.index(here)]:
            older.queues.pop(rank, None)
            older.left.add(rank)
        # Nobody has taken these while the rank was without a trainer; what this one has had before is for anyone still.
        waiting, orphans = here.queue(rank), here.orphans.get(rank, deque())
        here.queues[rank] = deque(batch for batch in (*waiting, *orphans) if batch.step >= first_step)
        here.orphans[rank] = deque(batch for batch in orphans if batch.step < first_step)
        lacking_from = min(here.begins_at.get(rank, here.first_step), here.next_step)
        if first_step < lacking_from:
            parts = self._parts(here, first_step, lacking_from - first_step)
            lacking = [part[rank % self.group.world_size] for part in parts]
            mine = [batch for batch in lacking if self.group.place(rank % self.group.world_size, batch.step) == rank]
            here.queue(rank).extendleft(reversed(mine))
        here.begins_at[rank] = first_step
        self._at[trainer.session] = here
        to_come = self.group.turns(rank, max(here.next_step, first_step), here.num_steps)
        return here.first, len(here.queue(rank)) + to_come

    def take(self, trainer: Trainer, count: int, now: float) -> tuple[list[Batch], bool]:
        """Lend up to `count` batches; the flag says that the trainer's epoch is over.

        Nothing and no end means: wait, another trainer's batches may yet come back.
        """
        here = self._at.get(trainer.session)
        if here is None:
            raise ConfigError("ask for an epoch before asking for batches")
        if trainer.num_examples < here.population.size:
            raise Stale(
                f"{trainer.name} can load {trainer.num_examples} examples, epoch {here.epoch} of run "
                f"{self._config.run!r} has {here.population.size}; extend its data set and attach again"
            )
        self._expire(now)
        taken: list[Batch] = []
        queue = here.queue(trainer.rank)
        while len(taken) < count:
            if queue:
                batch = queue.popleft()
            elif here.next_step < here.num_steps:
                self._plan(here, min(count - len(taken), here.num_steps - here.next_step, self._at_once))
                continue
            elif (orphan := self._orphan(here)) is not None:
                batch = orphan
            else:
                return taken, not self._may_come_back(trainer, here, now)
            here.begun[trainer.session] = trainer.rank
            left = self._examples.below(batch.size).left_of(batch)
            if left is not None:
                taken.append(self._lend(trainer, left, now))
        return taken, False

    def give_back(self, trainer: Trainer, *, rank_goes_on: bool = False) -> None:
        """A trainer is gone for good: what it held goes to the next one of its rank, to others, or is dropped."""
        here = self._at.pop(trainer.session, None)
        held, trainer.leases = list(trainer.leases.values()), {}
        if held and not self._redeliver:
            log.warning("%s is gone; %d batches it held are dropped", trainer.name, len(held))
        elif held and here is not None:
            here.queue(trainer.rank).extendleft(reversed(held))
        if rank_goes_on:
            return
        self._without_trainer.add(trainer.rank)
        if all(other is trainer for other in self._members):
            self._without_trainer.clear()  # of those that come anew the first must not get what is the others'
        for epoch in self._epochs:
            epoch.orphans.setdefault(trainer.rank, deque()).extend(epoch.queues.pop(trainer.rank, ()))

    def send_again(self, trainer: Trainer, last_batch_id: int, held: set[int]) -> None:
        """A stream was opened again: keep the leases still held, end those done, send on the ones that were lost.

        Raises:
            Stale: the trainer has a batch that this run never lent.
        """
        if last_batch_id > self._next_id:
            raise Stale(
                f"{trainer.name} has received batch {last_batch_id}, the latest of this run is {self._next_id}; "
                "it belongs to an earlier life of the run: join again"
            )
        # Counted they are already. A counter must not fall, so they are marked, not taken off.
        lost = [replace(batch, again=True) for batch in trainer.leases.values() if batch.batch_id > last_batch_id]
        trainer.leases = {i: b for i, b in trainer.leases.items() if i in held and i <= last_batch_id}
        trainer.last_batch_id = last_batch_id
        here = self._at.get(trainer.session)
        if here is not None:
            # They keep their batch_id: the trainer never saw them, and ids must rise on the new stream as well.
            here.queue(trainer.rank).extendleft(reversed(lost))

    # --- inside ---

    def _under_way(self, trainer: Trainer, epoch: int, skip: int, now: float) -> Epoch | None:
        """The pass that a trainer means: one it has not begun, or begun by another trainer of its rank."""
        for at, here in reversed(list(enumerate(self._epochs))):
            if (here.epoch, here.skip_examples) == (epoch, skip):
                # A rank that begins a second time goes on where its lost trainer was, as long as others are
                # there; alone, or in the same hands, it means a new pass.
                again = trainer.session in here.begun
                alone = trainer.rank in here.begun.values() and not self._others_in(self._epochs[at:], trainer, now)
                return None if again or alone else here
        return None

    def _others_in(self, epochs: list[Epoch], trainer: Trainer, now: float) -> bool:
        return any(
            other is not trainer and other.present(now) and self._at.get(other.session) in epochs
            for other in self._members
        )

    def _begin(self, trainer: Trainer, epoch: int, skip: int, first_step: int, now: float, population: str) -> Epoch:
        # A trainer that resumes inside an epoch goes on in the order that the epoch began with, if it is still known.
        begun = [e.first for e in self._epochs if e.epoch == epoch and population in ("", e.population.name)]
        known = begun if skip else []
        first = known[-1] if known else self._choose(epoch, 0, self._examples.begin(population, trainer.num_examples))
        if skip > first.population.alive:
            raise ConfigError(
                f"skip_examples is {skip}, outside of the epoch's 0 … {first.population.alive} examples; "
                "the saved position belongs to another dataset"
            )
        here = Epoch(epoch=epoch, skip_examples=skip, first=first, began=now)
        later = [e for e in self._epochs if e.epoch > epoch]
        # After a restart a slow rank may come back to an epoch that others have done with. Without batches of it
        # in hand, a run that asks for an earlier epoch goes back, and has given up what came after.
        beside = first_step > 0 and self._others_in(later, trainer, now)
        if not beside:
            self._planner.resize(here.population.size)
        here.planner = self._new_planner(here.population.size) if beside else self._planner
        here.num_steps = self._start(here.planner, here)
        here.number, here.whole = self._number(here, beside=beside), self._is_whole(here)
        # Ranks come back in any order, in step or nearly so.
        here.first_step = here.next_step = max(0, min(first_step, here.num_steps) - self._config.max_lead)
        of_others = [at for session, at in self._at.items() if session != trainer.session]
        older = [e for e in self._epochs if e.epoch < epoch and (e in of_others or e.waiting())]
        for late in older[:-KEPT_EPOCHS]:
            log.warning("epoch %d: what some ranks had left of it is dropped, they are too far behind", late.epoch)
        if beside:
            here.left = {other.rank for other in self._members if self._at.get(other.session) in later}
        else:
            for other in self._epochs:
                other.planner = None
        self._epochs = [*older[-KEPT_EPOCHS:], here, *(later if beside else ())]
        return here

    def _number(self, here: Epoch, *, beside: bool) -> int:
        """One more than the latest pass, unless it goes on with that one."""
        if beside:
            return 0
        if not (here.skip_examples and here.epoch == self._pass_epoch):
            self._passes += 1
        self._pass_epoch = here.epoch
        return self._passes

    def _is_whole(self, here: Epoch) -> bool:
        size = self.group.batch_size * self.group.world_size
        sweeps = isinstance(here.first.rates, Sweep) and not here.skip_examples
        return sweeps and (here.num_steps + 1) * size > here.population.alive

    def _new_planner(self, size: int) -> Planner:
        return Planner(size, seed=self._config.seed, drop_last=self.group.drop_last)

    def _start(self, planner: Planner, here: Epoch) -> int:
        return planner.start_epoch(
            here.epoch,
            here.first.rates,
            batch_size=self.group.batch_size,
            world=self.group.world_size,
            skip_examples=here.skip_examples,
        )

    def _until(self, here: Epoch) -> list[Epoch]:
        """A pass and the ones before it, oldest first."""
        return self._epochs[: self._epochs.index(here) + 1] if here in self._epochs else [here]

    def _orphan(self, here: Epoch) -> Batch | None:
        """Take the first part that is for anyone, of this pass or of one before."""
        return next((epoch.orphan() for epoch in self._until(here) if any(epoch.orphans.values())), None)

    def _plan(self, here: Epoch, count: int) -> None:
        """Plan further steps for all ranks."""
        for part in self._parts(here, here.next_step, count):
            for rank, batch in enumerate(part):
                place = self.group.place(rank, batch.step)
                if place in here.left or batch.step < here.begins_at.get(place, 0):
                    continue
                waiting = here.orphans if place in self._without_trainer else here.queues
                waiting.setdefault(place, deque()).append(batch)
        here.next_step += count

    def _parts(self, here: Epoch, step: int, count: int) -> list[list[Batch]]:
        """Steps `step` … `step + count - 1`: [count][world] batches."""
        chosen = here.first
        if self._redraw:
            now = self._choose(here.epoch, count, self._examples.below(here.population.size))
            # Only an epoch that began as a sweep has an order that its later steps go on with.
            both_sweep = isinstance(now.rates, Sweep) and isinstance(chosen.rates, Sweep)
            chosen = replace(chosen, reason=now.reason) if both_sweep else now
        if here.planner is None:
            here.planner = self._new_planner(here.population.size)
            self._start(here.planner, here)
        planned = here.planner.plan(step, count, chosen.rates, candidates=chosen.candidates)
        return [
            [self._batch(here, at, rank, parts, chosen) for rank in range(len(parts))]
            for at, parts in enumerate(planned, start=step)
        ]

    def _batch(self, here: Epoch, step: int, rank: int, parts: list[Rows], chosen: Chosen) -> Batch:
        self._next_id += 1
        rows = parts[rank]
        return Batch(
            batch_id=self._next_id,
            epoch=here.epoch,
            step=step,
            table_version=chosen.table_version,
            policy=chosen.policy,
            rows=rows,
            cluster_ids=chosen.cluster_n[rows.example_ids],
            lease_deadline=0.0,
            lead=0,
            global_batch_size=sum(map(len, parts)) // chosen.candidates,
            world_size=self.group.world_size,
            keep=len(rows) // chosen.candidates if chosen.candidates > 1 else 0,
            choice_seed=position_seed(self._config.seed, here.epoch, step, rank) if chosen.candidates > 1 else 0,
            pass_number=here.number,
            whole=here.whole,
            size=chosen.population.size,
            alive=chosen.population.alive,
            drawn=not isinstance(chosen.rates, Sweep) and getattr(chosen.rates, "unbiased", True),
        )

    def _lend(self, trainer: Trainer, batch: Batch, now: float) -> Batch:
        # Ids rise on every stream: a trainer takes a lower one for a repeat.
        if batch.batch_id <= trainer.last_batch_id:
            self._next_id += 1
            batch = replace(batch, batch_id=self._next_id)
        lent = replace(batch, lease_deadline=now + self._config.lease_s, lead=len(trainer.leases))
        if not lent.again:
            self._count(trainer, lent)
        trainer.leases[lent.batch_id] = lent
        trainer.last_batch_id = lent.batch_id
        return lent

    def _count(self, trainer: Trainer, lent: Batch) -> None:
        self.tally.add(lent)
        trainer.batches += 1
        trainer.examples += len(lent.rows)
        latest = self._epochs[-1]
        if lent.pass_number == latest.number:
            latest.reached = max(latest.reached, lent.step + 1)

    def _expire(self, now: float) -> None:
        for trainer in self._members:
            if now - self._awaited_since(trainer) > self._config.lease_s:
                self.tally.expired += len(trainer.leases)
                self.give_back(trainer)
                self._members.remove(trainer)

    def _awaited_since(self, trainer: Trainer) -> float:
        """When the others began to wait for a trainer that is not there. One that was through with its pass, as workers
        of a DataLoader are that end with it, is expected when the next one begins."""
        here = self._at.get(trainer.session)
        if here is None or not here.is_through(trainer):
            return trainer.lost_at
        later = self._epochs[self._epochs.index(here) + 1 :] if here in self._epochs else self._epochs
        return max(trainer.lost_at, min((epoch.began for epoch in later), default=inf))

    def _may_come_back(self, trainer: Trainer, here: Epoch, now: float) -> bool:
        """Whether one that is not there (lost, or yet to open its stream) has what this one may have to take over."""
        until = self._until(here)
        for other in self._members:
            if other is trainer or other.present(now):
                continue
            # One that never began an epoch holds nothing, but its rank's parts wait all the same.
            holds = self._redeliver and other.leases and not other.paused and self._at.get(other.session) in until
            if holds or any(epoch.queues.get(other.rank) for epoch in until):
                return True
        return False
