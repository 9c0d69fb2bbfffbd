"""Dashboards and alerts ask only for what a live service exports, in words that Prometheus understands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.live import PROMETHEUS, Live, Prometheus, live, prometheus

DASHBOARDS = {
    path.name: json.loads(path.read_text()) for path in (PROMETHEUS.parent / "grafana/dashboards").glob("*.json")
}
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
]
ALERTS = {
    rule["alert"]: rule["expr"]
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
        # Rates need two samples.
        scraping.until(lambda: scraping.query("rate(sampler_examples_served_total[1m])"), "a second scrape")
        yield scraping


def named(expression: str) -> set[str]:
    """Names of the service's metrics in a query."""
    return set(re.findall(r"\bsampler_\w+", expression))


def expressions(panel: dict[str, Any]) -> list[str]:
    """What a panel asks for, with Grafana's variables filled in."""
    return [filled(target["expr"], run) for target in panel["targets"] for run in ("seen", "chosen")]


def filled(expression: str, run: str) -> str:
    return expression.replace("$__rate_interval", "1m").replace("$run", run)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_names_only_metrics_that_have_a_sample(panel: dict[str, Any], scene: Live):
    samples = set(re.findall(r"^(sampler_\w+)", scene.metrics(), re.MULTILINE))
    for expression in expressions(panel):
        assert named(expression) <= samples


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_names_only_metrics_that_have_a_sample(name: str, scene: Live):
    samples = set(re.findall(r"^(sampler_\w+)", scene.metrics(), re.MULTILINE))
    assert named(ALERTS[name])
    assert named(ALERTS[name]) <= samples


@pytest.mark.parametrize("panel", PANELS)
def test_prometheus_has_an_answer_for_every_query_of_a_panel(panel: dict[str, Any], scraping: Prometheus):
    for target in panel["targets"]:
        answers = [scraping.query(filled(target["expr"], run)) for run in ("seen", "chosen")]
        assert any(answers), target["expr"]


def test_the_labels_of_legends_are_those_of_the_answers(scraping: Prometheus):
    for dashboard in DASHBOARDS.values():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                answers = scraping.query(filled(target["expr"], "seen")) or scraping.query(
                    filled(target["expr"], "chosen")
                )
                wanted = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
                for labels in answers:
                    assert wanted <= {name for name, _ in labels}, target


def test_every_metric_that_is_exported_is_on_a_dashboard(scene: Live):
    shown = {name for panel in PANELS for expression in expressions(panel.values[0]) for name in named(expression)}
    exported = set(re.findall(r"^# TYPE (\S+)", scene.metrics(), re.MULTILINE))
    # Of the histogram only the buckets are; the size of a dataset serves an alert.
    missing = {name for name in exported if not any(found.startswith(name) for found in shown)}
    assert missing == {"sampler_dataset_examples"}


def test_runs_are_those_that_the_variable_of_the_dashboard_finds(scraping: Prometheus):
    (run,) = [entry for entry in DASHBOARDS["run.json"]["templating"]["list"] if entry["name"] == "run"]
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", run["query"]["query"])
    assert asked
    metric, label = asked.groups()
    found = scraping.get(f"label/{label}/values", **{"match[]": metric})
    assert found == ["chosen", "seen"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_whole_and_asks_the_data_source_that_is_chosen(name: str):
    dashboard = DASHBOARDS[name]
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    panels = dashboard["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    cells = set()
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"]
        assert panel["description"].endswith(".")
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & cells, f"{panel['title']} lies on another panel"
        assert at["x"] + at["w"] <= 24
        cells |= mine


def test_links_between_dashboards_lead_to_one_that_is_there():
    uids = {dashboard["uid"] for dashboard in DASHBOARDS.values()}
    linked = set(re.findall(r'"url": "/d/([\w-]+)', json.dumps(DASHBOARDS)))
    assert linked == uids
