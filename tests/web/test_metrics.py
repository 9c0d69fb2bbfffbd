"""What Prometheus scrapes: parsed by its own client, and equal to what the service says."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from sampler_client.client import SamplerClient
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
    *("sampler_scorers", "sampler_dataset_examples", "sampler_never_drawn_examples", "sampler_weight_table_version"),
    *("sampler_leases_outstanding", "sampler_stage_candidates", "sampler_index_vectors", "sampler_rank_connected"),
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
