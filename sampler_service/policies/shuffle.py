"""Shuffled epochs: the baseline, and what every other policy falls back to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sampler_service.policies.contract import Kind, shuffled
from sampler_service.types import Sweep, TableView


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffle:
    """Every example once an epoch in random order, weight 1."""

    name: ClassVar[str] = "shuffle"
    unbiased = True
    needs: ClassVar[frozenset[str]] = frozenset()
    kind: ClassVar[Kind] = "sweep"
    min_coverage: ClassVar[float] = 0.0

    def rates(self, view: TableView, *, progress: float) -> Sweep:  # noqa: ARG002 - the contract's signature
        return shuffled(len(view))

    def aside(self, view: TableView) -> str:  # noqa: ARG002 - the contract's signature
        return ""
