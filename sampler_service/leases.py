"""Who holds what: the trainers of a run, and the batches lent to each.

A batch is planned for a rank, waits in that rank's queue, is lent under a lease, and ends when the trainer
acknowledges or reports it.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from sampler_service.config import MOST_EXAMPLES
from sampler_service.errors import ConfigError, Conflict, NotFound, Stale
from sampler_service.population import Population
from sampler_service.types import Batch, Float64, Int32, Rates

UNCONNECTED_S = 10.0
"""seconds within which a trainer that joined must open its stream before its rank may be taken"""

SILENT_S = 10.0
"""seconds without a sign of life after which a trainer is taken for lost although nobody saw its stream break: the
gateway that would have seen it may have died with it"""


MOST_WAITED_S = 1e6
"""a trainer can't have waited longer for one batch"""


@dataclass(slots=True, kw_only=True)
class Trainer:
    """One session."""

    session: str
    rank: int
    """its place in the group"""
    name: str
    lead: int
    """batches it may hold"""
    lost_at: float
    """when it is, or was, taken for lost; each sign of life puts it off"""
    token: str = ""
    """what the trainer calls itself: the same one joining again is the same trainer"""
    num_examples: int = MOST_EXAMPLES
    """that it can load: ids below this number"""
    connected: bool = False
    """whether it came for batches, and no end of its stream was seen since"""
    paused: bool = False
    """whether it ended its stream by itself, through with its pass: what it holds is with its training loop, and it
    comes back with the next pass"""
    leases: dict[int, Batch] = field(default_factory=dict)
    """batches in its hands, by batch_id"""
    last_batch_id: int = 0
    """the latest that was sent to it, or that it has said to have"""
    batches: int = 0
    """that it was lent"""
    examples: int = 0
    """that it was lent"""
    waited_s: float = 0.0
    """that it waited for batches, as it says"""

    def alive(self, now: float) -> bool:
        """Whether its rank is its own; it may be yet to open its stream."""
        return now < self.lost_at

    def present(self, now: float) -> bool:
        return self.connected and self.alive(now)

    def seen(self, now: float) -> None:
        """Its stream gave a sign of life."""
        self.connected, self.paused, self.lost_at = True, False, now + SILENT_S

    def reported(self, now: float) -> None:
        """A sign of life too, but not of one that is lost already: a report may be long on its way."""
        if self.alive(now):
            self.lost_at = now + SILENT_S

    def disconnected(self, now: float, paused: bool = False) -> None:
        self.connected, self.paused, self.lost_at = False, paused, now


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What all trainers of a run must agree on at a time."""

    world_size: int
    batch_size: int
    drop_last: bool
    workers: int = 1
    """streams that share the batches of a rank, by turns; each has a place of its own: rank + world_size x worker"""

    @property
    def places(self) -> int:
        return self.world_size * self.workers

    def place(self, rank: int, step: int) -> int:
        """Whose turn it is in a rank at a step of a pass."""
        return rank + self.world_size * (step % self.workers)

    def turns(self, place: int, first_step: int, num_steps: int) -> int:
        """Steps from the first one on that are a place's."""
        return len(range(first_step + (place // self.world_size - first_step) % self.workers, num_steps, self.workers))

    def steps(self, num_examples: int) -> int:
        """Of an epoch that keeps all of so many examples."""
        whole, rest = divmod(num_examples, self.batch_size * self.world_size)
        return whole + (0 if self.drop_last or rest < self.world_size else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Rates with where they come from."""

    rates: Rates
    policy: str
    """the policy that made them"""
    reason: str
    """why it is not the run's policy; empty when it is"""
    table_version: int
    population: Population
    """the examples that they are for"""
    cluster_n: Int32
    """cluster of every example in that table"""
    size_k: Float64 | None = None
    """examples of every stratum, for stratified draws"""
    candidates: int = 1
    """rows drawn for each example of a batch"""
    alpha: float = 0.0
    """share of uniform draws in two-stage proposals"""


class Membership:
    """The trainers of one run. Not thread-safe: the sampler holds its lock."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._of_rank: dict[int, Trainer] = {}
        self._gone: deque[str] = deque(maxlen=1024)
        self.group: Group | None = None
        self.waited_s = 0.0
        """that trainers waited for batches, those that left among them"""

    def __iter__(self) -> Iterator[Trainer]:
        return iter(list(self._of_rank.values()))

    def present(self, now: float) -> int:
        return sum(trainer.present(now) for trainer in self)

    def join(
        self,
        group: Group,
        rank: int,
        lead: int,
        name: str,
        now: float,
        token: str = "",
        num_examples: int = MOST_EXAMPLES,
    ) -> tuple[Trainer, Trainer | None]:
        """Claim a rank; returns the trainer and the lost one that it replaces. A repeat with a token changes
        nothing but the number of examples that the trainer can load.

        Raises:
            Conflict: the rank is held by a trainer that is there, or others train with another geometry.
        """
        others = [trainer for trainer in self if trainer.rank != rank and trainer.alive(now)]
        if self.group is not None and group != self.group and others:
            raise Conflict(
                f"run {self._run!r} is being trained with {self.group}, asked for {group}; all trainers of a "
                "run must use the same world_size, batch_size, drop_last and number of workers"
            )
        if not any(trainer.alive(now) for trainer in self):
            for trainer in self:  # they come back one after the other, and until now nobody was there to wait for them
                trainer.lost_at = now
        holder = self._of_rank.get(rank)
        if holder is not None and token and holder.token == token and group == self.group:
            holder.num_examples = num_examples
            return holder, None
        if holder is not None and holder.alive(now):
            raise Conflict(
                f"rank {rank} of run {self._run!r} is held by {holder.name}; give each trainer its own rank, "
                "or another run name to a second job"
            )
        if group != self.group:
            for trainer in self:
                self.remove(trainer)
            self.group = group
        if holder is not None:
            self._gone.append(holder.session)
        session = f"{self._run}:{uuid.uuid4().hex}"
        trainer = Trainer(
            session=session,
            rank=rank,
            name=name,
            lead=lead,
            lost_at=now + UNCONNECTED_S,
            token=token,
            num_examples=num_examples,
        )
        self._of_rank[rank] = trainer
        return trainer, holder

    def served(self, otherwise: int) -> int:
        """Examples that the trainers of all ranks can load; `otherwise` while one has not joined."""
        if self.group is None or len(self._of_rank) < self.group.world_size:
            return otherwise
        return min(trainer.num_examples for trainer in self)

    def waited(self, trainer: Trainer, seconds: float) -> None:
        """A trainer says that it waited for batches; what can't be so counts as nothing."""
        if 0.0 < seconds < MOST_WAITED_S:
            trainer.waited_s += seconds
            self.waited_s += seconds

    def remove(self, trainer: Trainer) -> None:
        """Forget a trainer; its session becomes stale."""
        if self._of_rank.get(trainer.rank) is trainer:
            del self._of_rank[trainer.rank]
        self._gone.append(trainer.session)

    def has_ended(self, session: str) -> bool:
        """Whether the session was left or taken over, of late."""
        return session in self._gone

    def find(self, session: str) -> Trainer:
        """The trainer of a session.

        Raises:
            Stale: its rank was taken over, or it left.
            NotFound: no such session; the service was restarted.
        """
        for trainer in self:
            if trainer.session == session:
                return trainer
        if session in self._gone:
            raise Stale(f"session {session!r} has ended: its rank was left or taken over; join again")
        raise NotFound(f"run {self._run!r} knows no session {session!r}; join again")


def run_of(session: str) -> str:
    """Name of the run that a session belongs to.

    Raises:
        ConfigError: when it is no session.
    """
    run, colon, _ = session.rpartition(":")
    if not colon:
        raise ConfigError(f"{session!r} is no session; use the one that Join returned")
    return run
