"""What Prometheus scrapes: the statistics of all runs, in base units, named after its rules.

Labels are bounded: runs, ranks, shards, policies, reasons, and of the clusters the ten that are drawn from most.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient
from sampler_client.errors import NotFound, SamplerError, Stale
from sampler_service import __version__

TOP_CLUSTERS = 10

ASKING_S = 4.0
"""after which no further run is asked: with the deadline of the last call it is within the 10 s of Prometheus"""

_COUNTERS = {
    # name: (field, what it is)
    "sampler_examples_served": ("examples", "examples handed to trainers"),
    "sampler_leases_expired": ("leases_expired", "batches of lost trainers that went to others or were dropped"),
    "sampler_reclusterings": ("refreshes", "times the clusters were made anew"),
    "sampler_scored_rows": ("scored_rows", "rows taken in from scorers"),
    "sampler_shards_lost": ("shards_lost", "times a shard was seen to have come back empty"),
}

_GAUGES = {
    "sampler_dataset_examples": ("num_examples", "examples that the run has of its dataset, deleted ones among them"),
    "sampler_deleted_examples": ("deleted", "of them, those that were deleted"),
    "sampler_epoch": ("epoch", "latest epoch started"),
    "sampler_run_progress_ratio": ("progress", "share of the steps of the planned epochs that was handed out"),
    "sampler_sketch_coverage_ratio": ("sketch_coverage", "share of the examples that have a sketch"),
    "sampler_variance_ratio": ("variance_ratio", "variance of a batch gradient over that of an i.i.d. batch"),
    "sampler_stage_variance_ratio": ("stage_ratio", "second moment of a draw by both stages over a uniform one's"),
    "sampler_stage_trained_ratio": ("trained_ratio", "the same by what was trained on, whatever the scores say"),
    "sampler_stage_cost_ratio": ("stage_cost", "seconds of a step with scoring over one without"),
    "sampler_stage_candidates": ("candidates", "candidates for each example of a batch; 1: no second stage"),
    "sampler_effective_sample_size_ratio": ("effective_sample_ratio", "effective sample size of a draw over the set"),
    "sampler_never_drawn_examples": ("never_drawn", "examples that were never handed out"),
    "sampler_clusters": ("num_clusters", "clusters of the run's sketches"),
    "sampler_weight_table_version": ("table_version", "rises with every report and reclustering"),
    "sampler_trainers": ("trainers", "trainers that are connected"),
    "sampler_leases_outstanding": ("leases", "batches that trainers hold unfinished"),
    "sampler_lead_batches": ("lead", "batches that the trainer with the most holds unfinished"),
    "sampler_lead_limit_batches": ("max_lead", "batches that a trainer may hold unfinished"),
    "sampler_run_memory_bytes": ("memory_bytes", "of the run's table, counts and sketches"),
    "sampler_shards": ("shards", "shards of the run's sketches"),
    "sampler_shards_away": ("shards_away", "shards that do not answer"),
    "sampler_scorers": ("scorers", "scorers that were heard of in the last half minute"),
}


class RunCollector:
    """Asks the service at every scrape. A run that ends meanwhile is left out; one that does not answer is counted."""

    def __init__(self, client: SamplerClient) -> None:
        self._client = client

    def describe(self) -> list[Metric]:
        """Nothing: what there is depends on the service, which is not asked before a scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("sampler_build", "release of the service", value={"version": __version__})
        up = GaugeMetricFamily("sampler_up", "whether the service answered this scrape")
        until = time.monotonic() + ASKING_S
        try:
            runs = self._client.runs()
        except SamplerError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        said, unanswered = [], 0
        for run in runs:
            try:
                if time.monotonic() < until:
                    said.append(self._client.statistics(run, detail=True))
                else:
                    unanswered += 1
            except (NotFound, Stale):
                pass  # it was closed just now
            except SamplerError:
                unanswered += 1
        yield GaugeMetricFamily("sampler_runs_unanswered", "runs that did not answer this scrape", value=unanswered)
        yield from metrics_of(said)


def metrics_of(said: list[pb.GetStatisticsResponse]) -> Iterator[Metric]:
    """All metrics of these runs. A figure that is not known yet has no sample."""
    for name, (field, text) in _COUNTERS.items():
        yield _family(CounterMetricFamily, name, text, ["run"], [((s.run,), getattr(s, field)) for s in said])
    for name, (field, text) in _GAUGES.items():
        yield _family(GaugeMetricFamily, name, text, ["run"], [((s.run,), getattr(s, field)) for s in said])
    yield _family(
        GaugeMetricFamily,
        "sampler_run_info",
        "1; the run's policy, the one that planned the last batch, and its dataset",
        ["run", "dataset", "policy", "active_policy"],
        [((s.run, s.dataset, s.policy, s.active_policy), 1) for s in said],
    )
    yield from _by_label(said)
    yield from _of_trainers(said)
    yield from _of_detail(said)


def _by_label(said: list[pb.GetStatisticsResponse]) -> Iterator[Metric]:
    batches = [((s.run, policy), count) for s in said for policy, count in s.batches_by_policy.items()]
    text = "batches handed to trainers, by the policy that planned them"
    yield _family(CounterMetricFamily, "sampler_batches_served", text, ["run", "policy"], batches)
    rows = [((s.run, "accepted"), s.reported_rows) for s in said]
    rows += [((s.run, reason), count) for s in said for reason, count in s.rejected_rows.items()]
    text = "rows of reports, accepted or by the reason they were left out for"
    yield _family(CounterMetricFamily, "sampler_feedback_rows", text, ["run", "result"], rows)
    coverage = [((s.run, "epoch"), s.epoch_coverage) for s in said]
    coverage += [((s.run, "last_n"), s.window_coverage) for s in said]
    text = "share of the examples that the latest pass has handed out, and that the last window has: a sweep, or n rows"
    yield _family(GaugeMetricFamily, "sampler_dataset_coverage_ratio", text, ["run", "window"], coverage)
    ages = [((s.run, "50"), s.median_age_steps) for s in said] + [((s.run, "99"), s.p99_age_steps) for s in said]
    text = "steps since what is known of an example was reported"
    # "quantile" is a label of summaries alone, which this is not: promtool says so.
    yield _family(GaugeMetricFamily, "sampler_sketch_age_steps", text, ["run", "percentile"], ages)


def _of_trainers(said: list[pb.GetStatisticsResponse]) -> Iterator[Metric]:
    ranks = [(s, rank) for s in said for rank in s.ranks]
    labels = ["run", "rank"]

    def per_rank(kind: type, name: str, text: str, field: str) -> Metric:
        return _family(kind, name, text, labels, [((s.run, str(r.rank)), getattr(r, field)) for s, r in ranks])

    yield per_rank(
        CounterMetricFamily,
        "sampler_client_blocked_seconds",
        "seconds that a trainer waited for batches since it joined, as it says",
        "waited_seconds",
    )
    yield per_rank(CounterMetricFamily, "sampler_rank_examples", "examples handed to a rank's trainer", "examples")
    yield per_rank(GaugeMetricFamily, "sampler_rank_held_batches", "batches that a rank holds unfinished", "held")
    yield per_rank(GaugeMetricFamily, "sampler_rank_connected", "whether a rank's trainer is connected", "connected")
    shards = [((s.run, str(shard.shard)), shard.sketched) for s in said for shard in s.shard if not shard.away]
    yield _family(GaugeMetricFamily, "sampler_index_vectors", "sketches in a shard", ["run", "shard"], shards)
    sizes = [((s.run, str(shard.shard)), shard.memory_bytes) for s in said for shard in s.shard if not shard.away]
    yield _family(GaugeMetricFamily, "sampler_index_memory_bytes", "of a shard's rows", ["run", "shard"], sizes)


def _of_detail(said: list[pb.GetStatisticsResponse]) -> Iterator[Metric]:
    staleness = HistogramMetricFamily(
        "sampler_staleness_batches", "batches that a trainer held when it was handed another", labels=["run"]
    )
    for s in said:
        leads, below = s.detail.leads, 0
        if not leads.counts:
            continue
        buckets: list[Any] = []
        for edge, count in zip(leads.edges[1:], leads.counts, strict=True):
            below += count
            # Counts are whole: below 2 is up to 1.
            buckets.append(("+Inf" if math.isinf(edge) else f"{edge - 1:g}", below))
        staleness.add_metric([s.run], buckets=buckets, sum_value=leads.sum)
    yield staleness
    shares = []
    for s in said:
        drawn = sorted(s.detail.clusters, key=lambda cluster: -cluster.draw_share)[:TOP_CLUSTERS]
        shares += [((s.run, f"top{i}"), cluster.draw_share) for i, cluster in enumerate(drawn, start=1)]
    text = "share of the latest draws that went to the clusters that are drawn from most"
    yield _family(GaugeMetricFamily, "sampler_cluster_share_ratio", text, ["run", "cluster"], shares)


def _family(
    kind: type, name: str, text: str, labels: list[str], samples: Sequence[tuple[tuple[str, ...], float]]
) -> Metric:
    family = kind(name, text, labels=labels)
    for values, value in samples:
        if not math.isnan(value):
            family.add_metric(list(values), float(value))
    return family
