"""A pass over the set under way: what is planned of it, and waits.

The queues belong to ranks, not to trainers, so that a rank may change hands.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sampler_service.leases import Chosen, Trainer
from sampler_service.planning import Planner
from sampler_service.population import Population
from sampler_service.types import Batch


@dataclass(slots=True, kw_only=True, eq=False)
class Epoch:
    """One pass under way. Ranks may be in several: fast ones in the latest, slow ones in what is left of others."""

    epoch: int
    skip_examples: int
    first: Chosen
    """rates that it began with"""
    num_steps: int = 0
    first_step: int = 0
    """steps before it are planned only for ranks that come back to them after the service restarted"""
    next_step: int = 0
    """first step that is not planned yet"""
    begins_at: dict[int, int] = field(default_factory=dict)
    """first step that a rank's trainer asked for"""
    begun: dict[str, int] = field(default_factory=dict)
    """rank of every session that was lent a batch of this pass"""
    queues: dict[int, deque[Batch]] = field(default_factory=dict)
    """parts that wait, by rank"""
    orphans: dict[int, deque[Batch]] = field(default_factory=dict)
    """parts of ranks without a trainer, by rank: for anyone, as long as the rank gets no other trainer"""
    began: float = 0.0
    """when"""
    number: int = 0
    """of the pass; see Batch"""
    whole: bool = False
    """see Batch"""
    reached: int = 0
    """steps of which a batch was lent"""
    left: set[int] = field(default_factory=set)
    """ranks that are in a later pass and want no more of this one"""
    planner: Planner | None = None
    """None: the run's planner has gone on to a later pass; another is made when it is needed"""

    def queue(self, rank: int) -> deque[Batch]:
        return self.queues.setdefault(rank, deque())

    def orphan(self) -> Batch | None:
        """Take the first part that is for anyone."""
        waiting = [parts for parts in self.orphans.values() if parts]
        return min(waiting, key=lambda parts: parts[0].step).popleft() if waiting else None

    def is_through(self, trainer: Trainer) -> bool:
        """Whether a trainer has nothing to expect from it any more, and all that it was lent is out of its hands."""
        expects = self.queues.get(trainer.rank) or self.next_step < self.num_steps
        return not expects and (trainer.paused or not trainer.leases)

    @property
    def population(self) -> Population:
        """The examples that it began with."""
        return self.first.population

    @property
    def lent(self) -> float:
        """Share of its steps that were lent; what it skipped counts as lent."""
        if self.reached >= self.num_steps:
            return 1.0
        skipped = self.skip_examples / self.population.alive
        return skipped + (1 - skipped) * self.reached / self.num_steps

    def waiting(self) -> bool:
        return any(self.orphans.values()) or any(self.queues.values())
