"""What a run makes of its sketches now and then, beside the batches: clusters, balanced orders, near pairs, alignments.

Shapes: n examples, m held-out examples, d sketch length.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np

from sampler_service.clustering import recluster, refresh_due
from sampler_service.delivery import Delivery
from sampler_service.errors import ConfigError
from sampler_service.mining import mine
from sampler_service.policies import HardNegative
from sampler_service.types import Float32
from sampler_service.watched import Clusters, Watched

log = logging.getLogger(__name__)

FIRST_COVERAGE = 0.5
"""share of the examples whose sketches make the first clusters, for a policy that can do without any"""

LATE = 0.9
"""share of an epoch that was lent when the order of the next one is made, at the earliest"""

_TARGET = "a target of held-out examples: loader.set_target(sketches)"
_GIVE = {
    "alignment": "sketches: batch.report(losses, sketcher)",
    "place": "sketches: batch.report(losses, sketcher)",
    "nearby": "the embeddings of its pairs: batch.report(losses, PairSketches(left, right))",
}
"""what a trainer reports for a policy to make something of"""


class Refreshes:
    """Makes them when they are due. Calls of `make` do not overlap.

    Args:
        watched: the parts of the run.
        measured_ratio: variance that the present draws leave, NaN when unknown; asked without the run's lock.
    """

    def __init__(self, watched: Watched, measured_ratio: Callable[[], float]) -> None:
        self._watched = watched
        self._measured_ratio = measured_ratio
        self._rate_dropped = False
        self._pass = self._made_in = 0
        self.count = 0
        """times that something was made"""

    def announce_drop(self) -> None:
        """The learning rate drops: gradients change abruptly, so the clusters are made anew soon."""
        with self._watched.lock:
            self._rate_dropped = True

    def due(self, delivery: Delivery | None) -> str | None:
        """Why something should be made anew, or None."""
        watched = self._watched
        wanted = self._wanted()
        if wanted & {"place", "nearby"}:
            if delivery is None:
                return None
            with watched.lock:
                # A pass that went by between two looks is made up for in the next one.
                self._pass = delivery.passes - (delivery.epoch_lent < LATE)
                missed = self._pass > self._made_in
                return "epoch" if missed and watched.intake.fresh_rows > 0 else None
        if "cluster" not in wanted:
            return None
        # Made before the lock is taken: batches and reports do not wait for it.
        ratio = self._measured_ratio() if watched.rates.by_clusters else math.nan
        with watched.lock:
            first = not watched.table.cluster_sse_k.size  # also after they were forgotten
            if not first:
                watched.rates.judge(ratio)
            least = watched.rates.policy.min_coverage or FIRST_COVERAGE
            return refresh_due(
                fresh_rows=watched.intake.fresh_rows,
                num_examples=watched.examples.present.alive,
                ratio=ratio,
                learning_rate_dropped=self._rate_dropped,
                coverage=min(watched.config.refresh_coverage, least if first else 1.0),
            )

    def make(self) -> None:
        """Make what is due from the present sketches. Slow; batches go on meanwhile."""
        policy = self._watched.rates.policy  # once: another phase may begin meanwhile
        if isinstance(policy, HardNegative):
            self._mine(policy)
        elif "place" in self._wants(policy):
            self._balance()
        else:
            self._cluster()

    def aim(self, sketch_md: Float32) -> int:
        """Compare all sketches with the mean of held-out ones; returns the table's version.

        Raises:
            ConfigError: none of them, another width than the run's, or one that is not finite.
            Unavailable: a shard is away; what was compared before stays.
        """
        watched = self._watched
        width = watched.config.sketch_dim
        if sketch_md.ndim != 2 or not len(sketch_md) or sketch_md.shape[1] != width:
            raise ConfigError(
                f"a target is the sketches of held-out examples, (m, {width}) for run {watched.config.run!r}; got "
                f"shape {sketch_md.shape}"
            )
        if not np.isfinite(sketch_md).all():
            bad = int(np.flatnonzero(~np.isfinite(sketch_md).all(axis=1))[0])
            raise ConfigError(f"the sketch of held-out example {bad} is not finite; leave it out")
        target_d = sketch_md.mean(axis=0, dtype=np.float32)
        alignment_n = watched.shards.dots(target_d, watched.timeout_s)
        watched.shards.keep("target_md", sketch_md)
        with watched.lock:
            watched.table.align(alignment_n, _agreement(sketch_md, target_d))
            watched.rates.outdate()
            return watched.table.version

    def lacking(self) -> str:
        """What the policy in force can't do without and was not given; empty when there is nothing."""
        watched, policy = self._watched, self._watched.rates.policy
        sketched = watched.rates.sketched or watched.intake.scored
        for column in self._wants(policy) & _GIVE.keys():
            if not sketched:
                return f"policy {policy.name!r} needs {_GIVE[column]}"
            if column == "alignment" and watched.table.alignment_n is None:
                return f"policy {policy.name!r} needs {_TARGET}"
        return ""

    # --- inside ---

    def _wanted(self) -> frozenset[str]:
        return self._wants(self._watched.rates.policy)

    @staticmethod
    def _wants(policy: object) -> frozenset[str]:
        nothing: frozenset[str] = frozenset()
        return getattr(policy, "needs", nothing) | getattr(policy, "uses", nothing)

    def _cluster(self) -> None:
        watched = self._watched
        with watched.lock:
            neyman = getattr(watched.rates.policy, "allocation", "equal") == "neyman"
            fresh_rows, rate_dropped = watched.intake.fresh_rows, self._rate_dropped
            scored = watched.intake.scored
        partition = recluster(
            watched.shards,
            num_clusters=self._num_clusters(),
            method="kmeans" if neyman else "hartigan",
            seed=watched.config.seed,
            timeout_s=watched.timeout_s,
        )
        clusters = Clusters.of(partition)
        with watched.lock:
            if scored != watched.intake.scored:
                return  # they are of sketches that were forgotten meanwhile
            watched.intake.fresh_rows -= fresh_rows  # only now: a refresh that failed is due again
            self._rate_dropped &= not rate_dropped
            watched.table.install(partition.cluster_n, partition.sse_k, partition.scatter)
            watched.clusters = clusters
            watched.intake.clustered_at = watched.table.version
            watched.monitor.reset()
            self.count += 1
            watched.rates.clusters_changed()
        log.info(
            "run %s: %d clusters, objective %.4g -> %.4g in %d passes",
            watched.config.run,
            len(partition),
            partition.objective_before,
            partition.objective,
            partition.passes,
        )

    def _balance(self) -> None:
        watched, at = self._watched, self._pass
        place_n = watched.table.place_n
        if place_n is None:
            rng = np.random.default_rng(watched.config.seed)
            place_n = rng.permutation(watched.shards.num_examples).astype(np.float64)
        place_n = watched.shards.balance(place_n, watched.timeout_s)
        with watched.lock:
            watched.table.place(place_n)
            self._done(at)

    def _mine(self, policy: HardNegative) -> None:
        watched, at = self._watched, self._pass
        nearby = mine(
            watched.shards,
            policy,
            group_n=watched.table.group_n,
            seed=watched.config.seed,
            turn=at,
            timeout_s=watched.timeout_s,
        )
        with watched.lock:
            watched.table.bring_near(nearby)
            self._done(at)

    def _done(self, at: int) -> None:
        self._made_in = at
        self._watched.intake.fresh_rows = 0
        self.count += 1

    def _num_clusters(self) -> int:
        """K = B unless it was set, and few enough for clusters to have members."""
        config, group = self._watched.config, self._watched.members.group
        batch = group.batch_size * group.world_size if group else 64
        return config.num_clusters or max(1, min(batch, self._watched.examples.present.alive // 4))


def _agreement(sketch_md: Float32, mean_d: Float32) -> float:
    """|mean|^2 / mean |.|^2, 0 … 1; 0 when all are 0."""
    squares = float(np.square(sketch_md, dtype=np.float64).sum()) / len(sketch_md)
    return min(1.0, float(np.square(mean_d, dtype=np.float64).sum()) / squares) if squares > 0 else 0.0
