"""A real Prometheus scrapes a live service, answers with its figures, and takes the alert rules."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import path_of
from tests.deploy.live import PROMETHEUS, Live, Prometheus, live, prometheus

RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}


@pytest.fixture(scope="module")
def scene() -> Iterator[Live]:
    with live() as scene:
        yield scene


@pytest.fixture(scope="module")
def scraping(scene: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus(scene.web.server.port, tmp_path_factory.mktemp("prometheus")) as scraping:
        yield scraping


def promtool(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    words = [path_of("promtool"), *map(str, arguments)]
    return subprocess.run(words, input=text, capture_output=True, text=True, timeout=60)


def labels(**named: str) -> frozenset[tuple[str, str]]:
    return frozenset(named.items())


def test_a_missing_tool_fails_in_ci_unless_it_said_so_and_is_skipped_elsewhere_with_the_reason(monkeypatch):
    monkeypatch.setenv("CI", "1")
    monkeypatch.setenv("CI_WITHOUT", "kubectl no-other-tool")
    with pytest.raises(pytest.fail.Exception, match="no-such-tool is not on this machine, and what it checks"):
        path_of("no-such-tool")
    with pytest.raises(pytest.skip.Exception, match="no-other-tool is not on this machine"):
        path_of("no-other-tool")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no-such-tool is not on this machine"):
        path_of("no-such-tool")


# --- promtool ---


def test_promtool_finds_no_fault_with_what_is_exported(scene: Live):
    found = promtool("check", "metrics", text=scene.metrics())
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_promtool_finds_no_fault_with_the_rules():
    found = promtool("check", "rules", "--lint=all", "--lint-fatal", PROMETHEUS / "alerts.yml")
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"SUCCESS: {len(RULES)} rules found" in found.stdout


def test_every_alert_fires_in_its_scene_and_in_no_other():
    found = promtool("test", "rules", PROMETHEUS / "alerts_test.yml")
    assert found.returncode == 0, found.stdout + found.stderr
    scenes = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    checks = [check for scene in scenes for check in scene["alert_rule_test"]]
    for fires in (True, False):
        assert {check["alertname"] for check in checks if bool(check.get("exp_alerts")) is fires} == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_how_bad_it_is_and_what_to_do(name: str):
    rule = RULES[name]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert "for" in rule
    assert set(rule["annotations"]) == {"summary", "description"}
    assert rule["annotations"]["description"].endswith(".")


# --- Prometheus ---


def test_prometheus_answers_with_the_figures_of_the_service(scene: Live, scraping: Prometheus):
    said = scene.client.statistics("seen", detail=True)
    run = labels(run="seen")
    for name, value in {
        "sampler_examples_served_total": said.examples,
        "sampler_variance_ratio": said.variance_ratio,
        "sampler_effective_sample_size_ratio": said.effective_sample_ratio,
        "sampler_sketch_coverage_ratio": said.sketch_coverage,
        "sampler_run_progress_ratio": said.progress,
        "sampler_trainers": 1,
        "sampler_clusters": 4,
        "sampler_lead_limit_batches": said.max_lead,
    }.items():
        assert scraping.query(f'{name}{{run="seen"}}') == {run: pytest.approx(value)}, name
    assert scraping.query('sampler_feedback_rows_total{run="seen"}') == {
        labels(run="seen", result="accepted"): said.reported_rows,
        labels(run="seen", result="nan"): 1,
    }
    assert scraping.query('sum by (run) (sampler_batches_served_total{run="seen"})') == {run: said.batches}
    assert scraping.query('sum by (run) (sampler_cluster_share_ratio{run="seen"})') == {run: pytest.approx(1)}
    assert scraping.query('sampler_sketch_age_steps{run="seen", percentile="99"}') == {
        labels(run="seen", percentile="99"): said.p99_age_steps
    }
    assert scraping.query('sampler_staleness_batches_count{run="seen"}') == {run: said.batches}
    assert scraping.query("count(sampler_run_info)") == {labels(): 2}


def test_every_sample_that_is_exported_is_stored(scene: Live, scraping: Prometheus):
    # Prometheus leaves out a sample whose labels another one of the scrape has; names are those of the text.
    exported = [line for line in scene.metrics().splitlines() if not line.startswith("#")]
    assert scraping.query('count({__name__=~"sampler_.+"})') == {labels(): len(exported)}
    assert scraping.query("scrape_samples_scraped") == {labels(): len(exported)}
    assert set(scraping.get("metadata")) == set(re.findall(r"^# TYPE (\S+)", scene.metrics(), re.MULTILINE))


def test_quantiles_of_staleness_come_out_of_the_histogram(scene: Live, scraping: Prometheus):
    said = scene.client.statistics("seen")
    (quantile,) = scraping.query('histogram_quantile(0.99, sampler_staleness_batches_bucket{run="seen"})').values()
    # The bucket that the 99th percentile is in: (1, 3] for a trainer that may hold four.
    assert 1 < quantile <= 3
    assert said.p99_lead == 3


def test_rates_follow_a_run_that_goes_on(scene: Live, scraping: Prometheus):
    before = scene.client.statistics("seen").examples
    scene.trainer.epoch(3)
    now = scene.client.statistics("seen").examples
    assert now >= before + 1000
    scraping.until(
        lambda: scraping.query('sampler_examples_served_total{run="seen"}') == {labels(run="seen"): now}, "the epoch"
    )
    (grown,) = scraping.query('increase(sampler_examples_served_total{run="seen"}[1m])').values()
    assert grown >= now - before


def test_prometheus_evaluates_every_alert_and_none_fires_on_runs_that_are_well(scraping: Prometheus):
    def rules() -> list[dict]:
        found = [rule for group in scraping.get("rules")["groups"] for rule in group["rules"]]
        return found if all(rule["health"] == "ok" for rule in found) else []

    found = scraping.until(rules, "an evaluation of all rules")
    assert {rule["name"] for rule in found} == set(RULES)
    assert {rule["name"] for rule in found if rule["state"] == "firing"} == set()


def test_a_service_that_is_away_is_down_for_prometheus_while_its_page_is_up(scene: Live, scraping: Prometheus):
    scene.service.stop()
    try:
        scraping.until(lambda: scraping.query("sampler_up == 0"), "the outage")
        assert scraping.query('up{job="sampler"}') == {labels(): 1}
        assert scraping.query("sampler_trainers") == {}, "what nobody knows any more has no sample"
        scraping.until(lambda: scraping.get("alerts")["alerts"], "an alert that is pending")
        assert {alert["labels"]["alertname"] for alert in scraping.get("alerts")["alerts"]} == {"SamplerServiceDown"}
    finally:
        scene.service.start()
    scraping.until(lambda: scraping.query("sampler_up == 1"), "the service's return")
