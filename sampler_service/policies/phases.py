"""Phases: another policy for each part of a run, by the share of it that is done.

Early training is a critical period: what the model is not shown then it can't make up for later, and regularisation
counts there or nowhere. So policies that leave examples out on purpose have no place in the first half, and those that
are there show no example less than a tenth as often as shuffling would: their rates are mixed until that holds.

Source: Achille, Rovere, Soatto, "Critical Learning Periods in Deep Networks", ICLR 2019, arXiv 1711.08856; Golatkar,
Achille, Soatto, "Time Matters in Regularizing Deep Networks", NeurIPS 2019, arXiv 1905.13277; the last part without
pruning is InfoBatch's, arXiv 2303.04947. The schedule is our reading of them, not a claim of theirs.

Shapes: n examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.policies.contract import Kind, Policy, check_within
from sampler_service.types import Rates, StratifiedDraw, Sweep, TableView, WeightedDraw

PROTECTED = 0.5
"""share of a run in which nothing may be left out, unless it is given another"""

LEAST_INCLUDED = 0.1
"""of the rate at which shuffling shows an example is the least there, so that no cluster goes unseen"""

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
        rises = all(one < next_ for one, next_ in pairwise([0.0, *ends]))  # no NaN does
        if not rises or not ends or ends[-1] != 1:
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
        return self.included(self.at(progress).policy.rates(view, progress=progress), progress)

    def included(self, rates: Rates, progress: float) -> Rates:
        """Rates of the present phase that leave out nothing where nothing may be left out. What weights undid, they
        still undo."""
        return with_least(rates, LEAST_INCLUDED) if progress < self.protect else rates

    def aside(self, view: TableView) -> str:  # noqa: ARG002 - each phase's policy stands aside by itself
        return ""


def with_least(rates: Rates, least: float) -> Rates:
    """The rates, or those nearest in kind by which no example comes less often than `least` times what shuffling gives.

    Draws are mixed with as many uniform ones, a sweep keeps what it left out more often, with the weight that undoes
    it.
    """
    if isinstance(rates, StratifiedDraw):
        size_k = np.bincount(rates.stratum_n, minlength=len(rates.rate_k))
        even_k = size_k / size_k.sum()
        enough = (rates.rate_k >= least * even_k).all()
        return rates if enough else replace(rates, rate_k=(1 - least) * rates.rate_k + least * even_k)
    if isinstance(rates, WeightedDraw):
        even = 1 / len(rates.probability_n)
        enough = (rates.probability_n >= least * even).all()
        return rates if enough else replace(rates, probability_n=(1 - least) * rates.probability_n + least * even)
    return _kept(rates, least)


def _kept(rates: Sweep, least: float) -> Sweep:
    rare_n = rates.keep_n < least
    if not rare_n.any():
        return rates
    undone_n = rates.weight_n * rates.keep_n / least
    return replace(
        rates,
        keep_n=np.where(rare_n, least, rates.keep_n),
        weight_n=np.where(rare_n, undone_n, rates.weight_n).astype(np.float32),
    )


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
