"""What `sampler-service status` shows, in a terminal of 80 columns and in a pipe."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient
from sampler_client.config import RunOptions
from sampler_service import cli, terminal
from tests.served import ServedService

RUN = "experiments/resnet-cifar10/gradient-clustering/seed-7"
NUMBERS = ["50,000,000", "0%", "0", "-", "0/64", "0"]


@pytest.fixture
def service(served: ServedService) -> str:
    """A service with two runs, one of a long name over many examples."""
    with SamplerClient(served.address) as client:
        client.register_dataset("many", 50_000_000)
        client.open_run(RUN, "many", RunOptions(policy="shuffle"))
        client.open_run("short", "many", RunOptions(policy="selective_backprop", sketch_dim=1))
    return served.address


def shown(monkeypatch: pytest.MonkeyPatch, service: str, width: int) -> list[str]:
    """What a terminal of that width shows."""
    written = io.StringIO()
    monkeypatch.setattr(cli, "console", Console(width=width, file=written, force_terminal=True, color_system=None))
    cli.status(service)
    return written.getvalue().splitlines()


def test_nothing_is_lost_in_80_columns(monkeypatch: pytest.MonkeyPatch, service: str):
    lines = shown(monkeypatch, service, 80)
    assert all(len(line.rstrip()) <= 80 and "…" not in line for line in lines)
    rows = [line for line in lines if line.split()[-6:] == NUMBERS]
    assert len(rows) == 2
    width = rows[0].index(NUMBERS[0])
    assert RUN in "".join(line[:width].strip() for line in lines)


def test_in_a_pipe_no_name_is_folded(capsys: pytest.CaptureFixture[str], service: str):
    cli.status(service)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if RUN in line] == [[RUN, *NUMBERS]]
    assert "  selective_backprop" in [line.rstrip() for line in lines]


def test_scripts_get_all_figures_as_json(capsys: pytest.CaptureFixture[str], service: str):
    cli.status(service, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["service"] == service
    assert [run["run"] for run in said["runs"]] == [RUN, "short"]
    assert said["runs"][0]["num_examples"] == 50_000_000
    assert said["runs"][0]["variance_ratio"] is None, "JSON has no NaN"
    assert said["runs"][0]["detail"]["clusters"] == []


def test_trouble_with_shards_is_told_below_the_table():
    said = pb.GetStatisticsResponse(shards=4, shards_away=1, shards_lost=2)
    assert terminal.shard_trouble(said) == (
        "1 of 4 shards do not answer; shards came back empty 2 times, their sketches are lost"
    )
    assert not terminal.shard_trouble(pb.GetStatisticsResponse(shards=4))
