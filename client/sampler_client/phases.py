"""Schedules of policies: which one serves which part of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sampler_client.config import check_within
from sampler_client.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a run: `attach(…, epochs=9, phases=[Phase(0.1, "shuffle"), Phase(1, "importance", {"alpha": 0.3})])`.

    A phase begins with an epoch. Policies that leave examples out on purpose are refused in the first half of a run, or
    before another share of it: `policy_options={"protect": 0.2}`.
    """

    until: float
    """share of the run at which it ends, in (0, 1]; the last one's is 1"""
    policy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """of the policy"""

    def __post_init__(self) -> None:
        if not isinstance(self.policy, str):
            raise ConfigError(f"policy of a phase must be a name, got {self.policy!r}")
        check_within("until, the share of the run at which a phase ends,", self.until, "(0, 1]")

    def __str__(self) -> str:
        return " ".join((f"{self.until:g}", self.policy, *(f"{name}={value}" for name, value in self.options.items())))


def schedule_of(phases: Sequence[Phase]) -> str:
    """The schedule as the service reads it.

    Raises:
        ConfigError: no phases, or something else among them.
    """
    if not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise ConfigError(f"phases must be some of Phase(until, policy), got {phases!r}")
    return "; ".join(map(str, phases))
