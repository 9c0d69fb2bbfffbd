"""Delivery: epochs are planned, parts wait in the queue of their rank, and are lent to trainers.

In a sweep without failures every example is delivered exactly once an epoch. What a lost trainer held goes back:
to the trainer that takes its rank over, or, after the lease, to the others.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from sampler_service.errors import ConfigError
from sampler_service.leases import Group, Membership, Trainer
from sampler_service.planning import Planner
from sampler_service.types import Batch, Int32, Rates, Rows, Sweep

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Rates with where they come from."""

    rates: Rates
    policy: str
    """the policy that made them"""
    reason: str
    """why it is not the run's policy; empty when it is"""
    table_version: int


@dataclass(slots=True, kw_only=True)
class Epoch:
    """One pass under way."""

    epoch: int
    skip_examples: int
    num_steps: int
    next_step: int
    """first step that is not planned yet"""
    started: set[int]
    """ranks that take part"""
    first: Chosen


@dataclass(frozen=True, slots=True)
class Position:
    """Where a trainer stands: which epoch, and the next of its steps."""

    epoch: Epoch
    step: int


class Delivery:
    """Plans and lends the batches of one run. Not thread-safe: the sampler holds its lock.

    Args:
        planner: turns rates into global batches.
        members: the trainers.
        group: their geometry; another one needs another Delivery.
        choose: present rates; asked at the start of an epoch and before each further batch.
        clusters: present cluster of every example.
        lease_s: seconds for which a lost trainer's batches wait for it.
        redeliver: whether they then go to others, or are dropped.
        redraw: whether rates are asked for again inside an epoch (draw policies).
        max_lead: batches by which trainers of a run can be apart.
        first_batch_id: above every id that this run ever used.
    """

    def __init__(
        self,
        planner: Planner,
        members: Membership,
        *,
        group: Group,
        choose: Callable[[], Chosen],
        clusters: Callable[[], Int32],
        lease_s: float,
        redeliver: bool,
        redraw: bool,
        max_lead: int,
        first_batch_id: int,
    ) -> None:
        self._planner = planner
        self._members = members
        self.group = group
        self._choose = choose
        self._clusters = clusters
        self._lease_s = lease_s
        self._redeliver = redeliver
        self._redraw = redraw
        self._max_lead = max_lead
        self._next_id = first_batch_id
        self._epoch: Epoch | None = None
        self._queues: dict[int, deque[Batch]] = {}
        self._orphans: deque[Batch] = deque()
        self._at: dict[str, Position] = {}
        self.batches = 0
        self.examples = 0
        self.expired = 0

    @property
    def epoch(self) -> int:
        """The latest epoch started."""
        return self._epoch.epoch if self._epoch else 0

    @property
    def last_batch_id(self) -> int:
        return self._next_id

    def start_epoch(self, trainer: Trainer, epoch: int, skip: int, first_step: int) -> Epoch:
        """Put a trainer at the start of an epoch (or inside it); what it held of another is given up."""
        current = self._epoch
        same = current is not None and (current.epoch, current.skip_examples) == (epoch, skip)
        again = same and trainer.rank in current.started and not self._others_inside(trainer, current)
        if current is None or not same or again:
            current = self._begin(epoch, skip, first_step)
        trainer.leases.clear()
        queue = self._queues.setdefault(trainer.rank, deque())
        self._queues[trainer.rank] = deque(b for b in queue if b.epoch == epoch and b.step >= first_step)
        current.started.add(trainer.rank)
        self._at[trainer.session] = Position(current, first_step)
        return current

    def take(self, trainer: Trainer, count: int, now: float) -> tuple[list[Batch], bool]:
        """Lend up to `count` batches; the flag says that the trainer's epoch is over.

        Nothing and no end means: wait, another trainer's batches may yet come back.
        """
        position = self._at.get(trainer.session)
        if position is None:
            raise ConfigError("ask for an epoch before asking for batches")
        self._expire(now)
        epoch = position.epoch
        taken: list[Batch] = []
        queue = self._queues.setdefault(trainer.rank, deque())
        while len(taken) < count:
            if queue:
                taken.append(self._lend(trainer, queue.popleft(), now))
            elif epoch is self._epoch and epoch.next_step < epoch.num_steps:
                self._plan(min(count - len(taken), epoch.num_steps - epoch.next_step))
            elif self._orphans and epoch is self._epoch:
                taken.append(self._lend(trainer, self._orphans.popleft(), now))
            else:
                break
        over = not queue and (epoch is not self._epoch or epoch.next_step >= epoch.num_steps)
        return taken, over and len(taken) < count and not self._may_come_back(trainer, epoch)

    def give_back(self, trainer: Trainer, heir: Trainer | None = None) -> None:
        """A trainer is gone for good: what it held goes to its heir, to others, or is dropped."""
        position = self._at.pop(trainer.session, None)
        held, trainer.leases = list(trainer.leases.values()), {}
        if heir is not None:
            queue = self._queues.setdefault(trainer.rank, deque())
            queue.extendleft(reversed(held))
            if position is not None:
                self._at[heir.session] = position
            return
        held += self._queues.pop(trainer.rank, deque())
        if position is None or position.epoch is not self._epoch or not held:
            return
        position.epoch.started.discard(trainer.rank)
        if self._redeliver:
            self._orphans.extend(held)
        else:
            log.warning("%s is gone; %d batches it held are dropped", trainer.name, len(held))

    def send_again(self, trainer: Trainer, last_batch_id: int, held: set[int]) -> None:
        """A stream was opened again: keep the leases still held, end those done, send on the ones that were lost."""
        lost = [batch for batch in trainer.leases.values() if batch.batch_id > last_batch_id]
        trainer.leases = {i: batch for i, batch in trainer.leases.items() if i in held}
        # They keep their batch_id: the trainer never saw them, and ids must rise on the new stream as well.
        self._queues.setdefault(trainer.rank, deque()).extendleft(reversed(lost))

    # --- inside ---

    def _begin(self, epoch: int, skip: int, first_step: int) -> Epoch:
        chosen, group = self._choose(), self.group
        num_steps = self._planner.start_epoch(
            epoch, chosen.rates, batch_size=group.batch_size, world=group.world_size, skip_examples=skip
        )
        # Of older passes only what slower ranks have yet to take from the one before.
        self._queues = {r: deque(b for b in q if b.epoch == epoch - 1) for r, q in self._queues.items()}
        self._orphans.clear()
        self._epoch = Epoch(
            epoch=epoch,
            skip_examples=skip,
            num_steps=num_steps,
            # After a restart the ranks come back up to max_lead steps apart, in any order.
            next_step=max(0, first_step - self._max_lead),
            started=set(),
            first=chosen,
        )
        return self._epoch

    def _others_inside(self, trainer: Trainer, epoch: Epoch) -> bool:
        return any(other.connected and other is not trainer and self._inside(other, epoch) for other in self._members)

    def _inside(self, trainer: Trainer, epoch: Epoch) -> bool:
        position = self._at.get(trainer.session)
        if position is None or position.epoch is not epoch:
            return False
        return bool(trainer.leases or self._queues.get(trainer.rank) or epoch.next_step < epoch.num_steps)

    def _plan(self, count: int) -> None:
        epoch = self._epoch
        assert epoch is not None
        chosen = epoch.first
        if self._redraw:
            now = self._choose()
            chosen = now if not isinstance(now.rates, Sweep) else replace(chosen, reason=now.reason)
        clusters = self._clusters()
        planned = self._planner.plan(epoch.next_step, count, chosen.rates)
        for step, parts in enumerate(planned, start=epoch.next_step):
            size = sum(len(rows) for rows in parts)
            for rank, rows in enumerate(parts):
                if step < self._first_step(rank):
                    continue
                queue = self._queues.setdefault(rank, deque())
                queue.append(self._batch(epoch, step, rows, clusters, chosen, size, len(parts)))
        epoch.next_step += count

    def _first_step(self, rank: int) -> int:
        trainer = self._members.of_rank(rank)
        position = self._at.get(trainer.session) if trainer else None
        return position.step if position and position.epoch is self._epoch else 0

    def _batch(
        self, epoch: Epoch, step: int, rows: Rows, clusters: Int32, chosen: Chosen, size: int, world: int
    ) -> Batch:
        self._next_id += 1
        return Batch(
            batch_id=self._next_id,
            epoch=epoch.epoch,
            step=step,
            table_version=chosen.table_version,
            policy=chosen.policy,
            rows=rows,
            cluster_ids=clusters[rows.example_ids],
            lease_deadline=0.0,
            lead=0,
            global_batch_size=size,
            world_size=world,
        )

    def _lend(self, trainer: Trainer, batch: Batch, now: float) -> Batch:
        if trainer.leases and batch.batch_id < max(trainer.leases):
            self._next_id += 1
            batch = replace(batch, batch_id=self._next_id)
        lent = replace(batch, lease_deadline=now + self._lease_s, lead=len(trainer.leases))
        trainer.leases[lent.batch_id] = lent
        self.batches += 1
        self.examples += len(lent.rows)
        return lent

    def _expire(self, now: float) -> None:
        for trainer in self._members:
            if trainer.lost_at is not None and now - trainer.lost_at > self._lease_s:
                self.expired += len(trainer.leases)
                self.give_back(trainer)
                self._members.remove(trainer)

    def _may_come_back(self, trainer: Trainer, epoch: Epoch) -> bool:
        """Whether a lost trainer still holds batches that this one may have to take over."""
        if not self._redeliver or epoch is not self._epoch:
            return False
        return any(
            other is not trainer and other.lost_at is not None and (other.leases or self._queues.get(other.rank))
            for other in self._members
        )
