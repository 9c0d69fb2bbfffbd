"""Phases: another policy for each part of a run, by the share of it that is done.

Early training is a critical period: what the model is not shown then it can't make up for later, and regularisation
counts there or nowhere. So policies that leave examples out on purpose have no place in the first half; those that are
there keep every cluster in play, by their weights or because they go through all examples.

Source: Achille, Rovere, Soatto, "Critical Learning Periods in Deep Networks", ICLR 2019, arXiv 1711.08856; Golatkar,
Achille, Soatto, "Time Matters in Regularizing Deep Networks", NeurIPS 2019, arXiv 1905.13277; the last part without
pruning is InfoBatch's, arXiv 2303.04947. The schedule is our reading of them, not a claim of theirs (`methods.md` 7.4).

Shapes: n examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from sampler_service.errors import ConfigError
from sampler_service.policies.contract import Kind, Policy, check_within
from sampler_service.types import Rates, TableView

PROTECTED = 0.5
"""share of a run in which nothing may be left out, unless it is given another"""

SCHEDULE = "0.04 shuffle; 0.5 gradient_clustering; 0.875 selective_backprop; 1 shuffle"


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a run."""

    until: float
    """share of the run, in (0, 1]"""
    policy: Policy


@dataclass(frozen=True, slots=True)
class Phases:
    """The policy of the first phase that is not over; a phase begins with an epoch."""

    name: ClassVar[str] = "phases"
    needs: ClassVar[frozenset[str]] = frozenset()
    kind: ClassVar[Kind] = "draw"
    min_coverage: ClassVar[float] = 0.0
    by_progress: ClassVar[bool] = True

    phases: tuple[Phase, ...]
    protect: float = PROTECTED
    """Share of the run, 0 … 1, before which no policy may begin that leaves examples out on purpose."""

    def __post_init__(self) -> None:
        ends = [phase.until for phase in self.phases]
        if not ends or ends != sorted(set(ends)) or not ends[0] > 0 or ends[-1] != 1:
            raise ConfigError(
                f"policy {self.name!r}: phases must end at rising shares of the run, the last at 1; they end at {ends}"
            )
        check_within(self.name, "protect", self.protect, "[0, 1]")
        begins = [0.0, *ends]
        for begin, phase in zip(begins, self.phases, strict=False):
            if begin < self.protect and not phase.policy.unbiased:
                raise ConfigError(
                    f"policy {self.name!r}: {phase.policy.name!r} from {begin:g} on leaves examples out on purpose, "
                    f"which early training does not make up for; begin it at {self.protect:g} or later, or lower "
                    "'protect'"
                )

    @property
    def unbiased(self) -> bool:
        """Whether the policies of all phases are."""
        return all(phase.policy.unbiased for phase in self.phases)

    def at(self, progress: float) -> Phase:
        """The phase at a share of the run, 0 … 1."""
        return next((phase for phase in self.phases if progress < phase.until), self.phases[-1])

    def rates(self, view: TableView, *, progress: float) -> Rates:
        return self.at(progress).policy.rates(view, progress=progress)

    def aside(self, view: TableView) -> str:  # noqa: ARG002 - each phase's policy stands aside by itself
        return ""


def read_phases(schedule: str, protect: float, make: Callable[[str, Mapping[str, str]], Policy]) -> Phases:
    """Phases from their text: "0.04 shuffle; 0.5 gradient_clustering alpha=0.3; 1 shuffle".

    Args:
        schedule: of each phase the share of the run at which it ends, its policy, and options of that.
        protect: see `Phases`.
        make: a policy from its name and its options.

    Raises:
        ConfigError: it reads otherwise, or `make` raised it.
    """
    phases: list[Phase] = []
    for part in schedule.split(";"):
        words = part.split()
        try:
            until, name = float(words[0]), words[1]
            options = dict(word.split("=", 1) for word in words[2:])
        except (ValueError, IndexError) as error:
            raise ConfigError(
                f"policy 'phases': {part.strip()!r} does not read as 'share policy option=value …'; the default is "
                f"{SCHEDULE!r}"
            ) from error
        if name in ("auto", Phases.name, "time_budget"):
            raise ConfigError(f"policy 'phases': {name!r} picks policies by itself and can't be one of a schedule")
        phases.append(Phase(until, make(name, options)))
    return Phases(tuple(phases), protect)
