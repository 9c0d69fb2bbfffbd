"""What can be seen of a run: plain values, from which every view is made.

Shares and ratios are 0 to 1 unless said otherwise; NaN: not known yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How often values came in between edges."""

    edges: list[float] = field(default_factory=list)
    """rising, one more than counts; the outermost may be infinite"""
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0
    """of all values"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankView:
    """One trainer of a run."""

    rank: int
    trainer: str
    connected: bool
    epoch: int
    """latest that it started; -1 before its first"""
    held: int
    """batches that it was lent and is not done with"""
    lead: int
    """batches that it may hold"""
    batches: int
    """handed to it since it joined"""
    examples: int
    waited_seconds: float
    """that it waited for batches since it joined, as it says itself"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardView:
    """One shard of a run's sketches."""

    shard: int
    away: bool
    sketched: int
    """examples with a sketch"""
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """One cluster, as it was made; what is drawn from it and what it loses are of now."""

    cluster: int
    size: int
    draw_share: float
    """of the latest draws"""
    loss: float
    """mean of the losses last reported"""
    scatter: float
    """mean squared distance of its sketches to their mean"""
    redundancy: float
    """share of its gradients' second moment that their mean explains: 1 when all are the same, 0 for one example"""
    x: float
    """its mean sketch on the two principal axes of all of them"""
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleView:
    """One example."""

    example_id: int
    loss: float
    norm: float
    age_steps: float
    """steps since it was last reported"""
    drawn: int
    """times that it was handed out since the run, or its actor anew, was started"""
    last_epoch: int
    """epoch in which it last was; -1: never"""
    cluster: int
    """-1: none yet"""
    rate: float
    """expected draws in an epoch's worth, by the present rates; with a second stage of the candidates"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """An example near another one in gradient space."""

    similarity: float
    """cosine of their sketches, -1 to 1"""
    example: ExampleView


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why an example was drawn as often as it was."""

    example: ExampleView
    why: list[str]
    """sentences"""
    neighbours: list[Neighbour]
    """nearest first, itself not among them"""
    no_neighbours: str
    """why there are none; empty when there are some"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """What costs more than a glance: histograms and clusters."""

    weights: Histogram
    """of the latest draws"""
    rates: Histogram
    """expected draws of an example in an epoch's worth, by the present rates"""
    ages: Histogram
    """steps since what is known of an example was reported"""
    leads: Histogram
    """batches that a trainer held when it was handed another"""
    clusters: list[ClusterView]
    """the largest ones"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """What a person may want to know of a run."""

    run: str
    dataset: str
    num_examples: int
    deleted: int
    policy: str
    active_policy: str
    reason: str
    progress: float
    unbiased: bool
    table_version: int
    epoch: int
    batches: int
    batches_by_policy: dict[str, int]
    examples: int
    reported_rows: int
    rejected_rows: dict[str, int]
    sketch_coverage: float
    epoch_coverage: float
    window_coverage: float
    never_drawn: int
    variance_ratio: float
    effective_sample_ratio: float
    num_clusters: int
    refreshes: int
    mean_age_steps: float
    lead: int
    max_lead: int
    leases: int
    trainers: int
    waited_seconds: float
    leases_expired: int
    memory_bytes: int
    shards: int
    shards_away: int
    shards_lost: int
    candidates: int
    stage_ratio: float
    stage_cost: float
    trained_ratio: float
    uniform_share: float
    median_age_steps: float
    p99_age_steps: float
    median_lead: float
    p99_lead: float
    median_rates_age_steps: float
    """of the latest drawn batches, the steps planned since their rates were made; a batch is older by its lead"""
    p99_rates_age_steps: float
    scorers: int
    scored_rows: int
    weights_version: int
    weights_step: int
    scorer_error: str
    ranks: list[RankView]
    shard: list[ShardView]
    detail: Detail | None
