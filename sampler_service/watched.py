"""What a run shows to those who look at it: its parts, and what of them must be taken together.

Under the run's lock numbers are read and arrays are taken by reference; they are looked at afterwards, while they may
change, which blurs a histogram by a few rows.

Shapes: n examples, r rows, k clusters, d sketch length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock

import numpy as np

from sampler_service.clustering import Partition
from sampler_service.config import RunConfig
from sampler_service.datasets import Examples
from sampler_service.drawn import Drawn
from sampler_service.intake import Intake
from sampler_service.leases import Chosen, Membership
from sampler_service.monitor import VarianceMonitor
from sampler_service.policies import Policy
from sampler_service.population import Population
from sampler_service.rates import PresentRates
from sampler_service.scores import Scores
from sampler_service.shards import Shards
from sampler_service.table import ALL, Table
from sampler_service.telemetry import expected_draws, principal_axes, redundancy
from sampler_service.types import Float64, Int32, Int64

SAMPLE_ROWS = 1 << 16
"""examples that ages and histograms are made of, of runs with more"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """What stays of a partition as long as it serves."""

    size_k: Int64
    scatter_k: Float64
    redundancy_k: Float64
    at_k2: Float64
    """on the principal axes of their means"""

    @classmethod
    def of(cls, partition: Partition) -> Clusters:
        """O(k d² + d³): made before the run's lock is taken."""
        return cls(
            size_k=partition.size_k,
            scatter_k=partition.sse_k / np.maximum(partition.size_k, 1),
            redundancy_k=redundancy(partition.mean_kd, partition.sse_k, partition.size_k),
            at_k2=principal_axes(partition.mean_kd, partition.size_k),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """What serves at one moment."""

    chosen: Chosen | None
    """None before the first batch"""
    global_batch_size: int | None
    """None before the first trainer"""
    population: Population
    cluster_n: Int32
    clusters: Clusters | None
    """of `cluster_n`; None: there are none"""

    def expected(self, example_ids: Int64) -> Float64:
        """(r,) draws of examples in an epoch's worth; NaN before there are rates."""
        if self.chosen is None:
            return np.full(len(example_ids), np.nan)
        # Rates may be of an epoch that began with fewer, for a rank that is behind.
        known_r = example_ids < self.chosen.population.size
        deleted_r = self.population.without(example_ids)
        if deleted_r is not None:
            known_r &= ~deleted_r
        draws_r = np.zeros(len(example_ids))
        rates, size_k = self.chosen.rates, self.chosen.size_k
        draws_r[known_r] = expected_draws(rates, size_k, example_ids[known_r], self.global_batch_size)
        return draws_r


@dataclass(slots=True, kw_only=True)
class Watched:
    """The parts of one run that are looked at. Calls may overlap."""

    config: RunConfig
    examples: Examples
    policy: Policy
    shards: Shards
    table: Table
    members: Membership
    rates: PresentRates
    intake: Intake
    scores: Scores
    monitor: VarianceMonitor
    drawn: Drawn
    lock: RLock
    clock: Callable[[], float]
    timeout_s: float
    clusters: Clusters | None = None
    """of the partition that was installed last"""
    recovered: bool = False
    """whether the run was taken up again with what its shards had kept: what counts batches began anew"""
    sample: Int64 | slice = field(init=False)
    """rows that stand for all"""

    def __post_init__(self) -> None:
        self.grow()

    def grow(self) -> None:
        """The run has as many examples as its table."""
        n, rng = len(self.table), np.random.default_rng(0)
        self.sample = ALL if n <= SAMPLE_ROWS else np.unique(rng.integers(0, n, SAMPLE_ROWS))

    def present(self) -> Present:
        """What serves now."""
        with self.lock:
            group, clusters = self.members.group, self.clusters
            fits = clusters is not None and len(clusters.size_k) == len(self.table.cluster_sse_k)
            return Present(
                chosen=self.rates.chosen,
                global_batch_size=group.batch_size * group.world_size if group else None,
                population=self.examples.present,
                cluster_n=self.table.cluster_n,
                clusters=clusters if fits else None,
            )
