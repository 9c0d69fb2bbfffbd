"""A policy for a fixed time: another policy up to shortly before the deadline, then shuffling.

Source: the setting is that of Khan, Hamila, Menouar, "Accelerating Deep Learning with Fixed Time Budget",
arXiv 2410.03790, of which the procedure is not public; this definition is ours. It does not rank examples by loss, nor
fit the share that it keeps to the steps that are left: what is pruned is the inner policy's, whatever the budget. That
pruning loses nothing when weights undo it, and that the end should see everything once more, is InfoBatch's, arXiv
2303.04947; a phase begins with an epoch, so that of few and long ones the last may be pruned still, or be cut short.
The deadline itself, and learning rates that end with it, are the trainer's (`sampler_client.TimeBudget`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sampler_service.policies.contract import Policy
from sampler_service.policies.phases import Phase, Phases
from sampler_service.policies.shuffle import Shuffle

INNER = "infobatch"
"""policy until then, unless it is given another"""

ANNEAL = 0.125
"""share of the budget for shuffling at the end, unless it is given another"""


@dataclass(frozen=True, slots=True)
class TimeBudget(Phases):
    """Two phases of a budget."""

    name: ClassVar[str] = "time_budget"


def within_budget(policy: Policy, anneal: float) -> TimeBudget:
    """The policy, then shuffling for the share `anneal` of the budget, 0 … 1."""
    until = 1 - anneal
    phases = [Phase(until, policy)] if until > 0 else []
    return TimeBudget((*phases, Phase(1.0, Shuffle())) if anneal > 0 else tuple(phases), protect=0.0)
