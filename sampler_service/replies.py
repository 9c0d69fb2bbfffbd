"""What the service answers: plain values, the same whether it runs in process or on Ray."""

from __future__ import annotations

from dataclasses import dataclass

from sampler_service.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    session: str
    steps_per_epoch: int
    max_lead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStarted:
    epoch: int
    num_steps: int
    """batches that this trainer will get in the rest of the epoch"""
    policy: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    batches: list[Batch]
    ended: bool
    """the epoch is over; when not, and there are no batches, ask again a little later"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSummary:
    table_version: int
    accepted: int
    rejected: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """What a person may want to know of a run; NaN where it is not known yet."""

    run: str
    dataset: str
    num_examples: int
    policy: str
    active_policy: str
    reason: str
    unbiased: bool
    table_version: int
    epoch: int
    batches: int
    examples: int
    reported_rows: int
    rejected_rows: dict[str, int]
    sketch_coverage: float
    variance_ratio: float
    effective_sample_ratio: float
    num_clusters: int
    refreshes: int
    mean_age_steps: float
    lead: int
    max_lead: int
    trainers: int
    leases_expired: int
    memory_bytes: int
