"""Policies: what is known about the examples in, rates out. Pure numpy; `contract.py` has the promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sampler_service.errors import ConfigError
from sampler_service.policies.auto import REDUNDANT, Auto, Pick
from sampler_service.policies.balanced_order import BalancedOrder
from sampler_service.policies.contract import Policy, check_within, choose, coverage
from sampler_service.policies.gradient_clustering import GradientClustering
from sampler_service.policies.hard_negative import HardNegative
from sampler_service.policies.importance import Importance
from sampler_service.policies.infobatch import InfoBatch
from sampler_service.policies.phases import PROTECTED, SCHEDULE, Phases, read_phases
from sampler_service.policies.poa import Poa
from sampler_service.policies.rho_loss import RhoLoss
from sampler_service.policies.selective_backprop import SelectiveBackprop
from sampler_service.policies.shuffle import Shuffle
from sampler_service.policies.time_budget import ANNEAL, INNER, TimeBudget, within_budget
from sampler_service.policies.trimmed_loss import TrimmedLoss
from sampler_service.policies.two_stage import TwoStage
from sampler_service.policies.validation_alignment import ValidationAlignment

__all__ = [
    "POLICIES",
    "REDUNDANT",
    "Auto",
    "HardNegative",
    "Phases",
    "Pick",
    "Policy",
    "Shuffle",
    "TimeBudget",
    "TwoStage",
    "choose",
    "coverage",
    "make_policy",
    "read_options",
]

POLICIES: dict[str, type[Policy]] = {
    cls.name: cls
    for cls in (
        Shuffle,
        GradientClustering,
        Importance,
        InfoBatch,
        SelectiveBackprop,
        RhoLoss,
        TwoStage,
        TrimmedLoss,
        HardNegative,
        Poa,
        BalancedOrder,
        ValidationAlignment,
        Auto,
        Phases,
        TimeBudget,
    )
}


def make_policy(name: str, options: Mapping[str, float | str | bool]) -> Policy:
    """The policy `name` with its options set; options left out keep their defaults.

    Raises:
        ConfigError: unknown policy or option, or a value of the wrong type or out of range; it names the
        value and the choices.
    """
    if name not in POLICIES:
        raise ConfigError(f"unknown policy {name!r}; choose one of {sorted(POLICIES)}")
    if name == Phases.name:
        return _phases(options)
    if name == TimeBudget.name:
        return _time_budget(options)
    cls: Any = POLICIES[name]
    types = {field.name: type(field.default) for field in fields(cls)}
    for option, value in options.items():
        if option not in types:
            raise ConfigError(f"policy {name!r} has no option {option!r} (= {value!r}); it has {sorted(types)}")
        if types[option] is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f"policy {name!r}: option {option!r} must be a number, got {value!r}")
        if types[option] is str and not isinstance(value, str):
            raise ConfigError(f"policy {name!r}: option {option!r} must be a word, got {value!r}")
    return cls(**options)


def read_options(options: Mapping[str, str]) -> dict[str, float | str | bool]:
    """Options from their texts: numbers where they read as such."""
    values: dict[str, float | str | bool] = {}
    for name, text in options.items():
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = text
    return values


def _time_budget(options: Mapping[str, float | str | bool]) -> TimeBudget:
    rest = {"policy": INNER, "anneal": ANNEAL, **options}
    inner, anneal = rest.pop("policy"), rest.pop("anneal")
    if not isinstance(inner, str) or inner in (Auto.name, Phases.name, TimeBudget.name):
        raise ConfigError(f"policy 'time_budget': option 'policy' must be one that picks no others, got {inner!r}")
    if isinstance(anneal, bool | str):
        raise ConfigError(f"policy 'time_budget': option 'anneal' must be a number, got {anneal!r}")
    check_within(TimeBudget.name, "anneal", anneal, "[0, 1]")
    return within_budget(make_policy(inner, rest), anneal)


def _phases(options: Mapping[str, float | str | bool]) -> Phases:
    schedule, protect = options.get("schedule", SCHEDULE), options.get("protect", PROTECTED)
    strange = options.keys() - {"schedule", "protect"}
    if strange or not isinstance(schedule, str) or isinstance(protect, bool | str):
        raise ConfigError(
            f"policy 'phases' has the options 'schedule', such as {SCHEDULE!r}, and 'protect', a share of the run; got "
            f"{dict(options)}"
        )
    return read_phases(schedule, protect, lambda name, texts: make_policy(name, read_options(texts)))
