"""What Prometheus scrapes: parsed by its own client, and equal to what the service says."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient
from sampler_client.errors import NotFound, ReplyTimeout
from sampler_service.web import metrics
from tests.served import ServedService
from tests.web.conftest import Trainer, Web

UNITS = (
    "_total",
    "_ratio",
    "_bytes",
    "_seconds",
    "_batches",
    "_steps",
    "_info",
    "_bucket",
    "_sum",
    "_count",
    "_created",
)
COUNTED = (  # gauges whose unit is what they are named after
    *("sampler_up", "sampler_epoch", "sampler_clusters", "sampler_trainers", "sampler_shards", "sampler_shards_away"),
    *(
        "sampler_scorers",
        "sampler_dataset_examples",
        "sampler_deleted_examples",
        "sampler_never_drawn_examples",
        "sampler_weight_table_version",
    ),
    *(
        "sampler_runs_unanswered",
        "sampler_leases_outstanding",
        "sampler_stage_candidates",
        "sampler_index_vectors",
        "sampler_rank_connected",
    ),
)


def scraped(web: Web) -> dict[tuple[str, frozenset], float]:
    families = text_string_to_metric_families(web.get("/metrics").text)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for f in families for sample in f.samples}


def of(samples: dict, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_metrics_are_what_the_statistics_say(web: Web, trainer: Trainer, client: SamplerClient):
    samples, said = scraped(web), client.statistics("seen", detail=True)
    assert of(samples, "sampler_examples_served_total", run="seen") == said.examples
    assert of(samples, "sampler_feedback_rows_total", run="seen", result="accepted") == said.reported_rows
    assert of(samples, "sampler_dataset_coverage_ratio", run="seen", window="epoch") == said.epoch_coverage
    assert of(samples, "sampler_rank_examples_total", run="seen", rank="0") == said.examples
    assert of(samples, "sampler_index_vectors", run="seen", shard="0") == said.shard[0].sketched
    for policy, count in said.batches_by_policy.items():
        assert of(samples, "sampler_batches_served_total", run="seen", policy=policy) == count
    shares = [value for (name, _), value in samples.items() if name == "sampler_cluster_share_ratio"]
    assert len(shares) == 4
    assert abs(sum(shares) - 1) < 1e-9


def test_the_staleness_histogram_counts_every_batch_once(web: Web, trainer: Trainer, client: SamplerClient):
    samples, said = scraped(web), client.statistics("seen")
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in samples.items()
        if name == "sampler_staleness_batches_bucket"
    }
    assert buckets["+Inf"] == of(samples, "sampler_staleness_batches_count", run="seen") == said.batches
    ordered = [buckets[le] for le in sorted(buckets, key=float)]
    assert ordered == sorted(ordered)
    assert buckets["0"] <= buckets["3"] == buckets["+Inf"], "this trainer may hold four"


def test_names_end_in_their_unit(web: Web, trainer: Trainer):
    names = {name for name, _ in scraped(web)}
    assert all(re.fullmatch("sampler_[a-z_]+", name) for name in names)
    assert [name for name in sorted(names) if not name.endswith(UNITS) and name not in COUNTED] == []


def test_what_is_not_known_yet_has_no_sample(web: Web, served: ServedService):
    trainer = Trainer(served.address, run="new")
    names = {name for name, labels in scraped(web) if ("run", "new") in labels}
    assert "sampler_examples_served_total" in names
    assert not names & {"sampler_variance_ratio", "sampler_effective_sample_size_ratio", "sampler_sketch_age_steps"}
    trainer.session.close()


def test_a_run_that_ended_is_in_no_later_scrape(web: Web, trainer: Trainer, client: SamplerClient):
    assert any(("run", "seen") in labels for _, labels in scraped(web))
    client.close_run("seen")
    assert not any(("run", "seen") in labels for _, labels in scraped(web))


class HalfDeaf:
    """A client of a service with three runs, of which one never answers."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def runs(self) -> list[str]:
        return ["well", "stuck", "late"]

    def statistics(self, run: str, *, detail: bool) -> pb.GetStatisticsResponse:
        self.asked.append(run)
        if run == "stuck":
            raise ReplyTimeout("no answer in time")
        if run == "late":
            raise NotFound("it was closed just now")
        return pb.GetStatisticsResponse(run=run)


@pytest.mark.parametrize(("asking_s", "unanswered", "asked"), [(4.0, 1, 3), (0.0, 3, 0)])
def test_a_run_that_does_not_answer_is_counted_and_costs_the_others_nothing(
    monkeypatch, asking_s: float, unanswered: int, asked: int
):
    monkeypatch.setattr(metrics, "ASKING_S", asking_s)
    client = HalfDeaf()
    found = {family.name: family for family in metrics.RunCollector(client).collect()}
    assert found["sampler_up"].samples[0].value == 1
    assert found["sampler_runs_unanswered"].samples[0].value == unanswered
    assert len(client.asked) == asked
    assert {sample.labels["run"] for sample in found["sampler_trainers"].samples} == ({"well"} if asked else set())
