"""What a terminal shows."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient
from sampler_service.terminal import Top, explanation
from tests.served import ServedService
from tests.web.conftest import Trainer


def shown(renderable: RenderableType) -> str:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def cell(text: str, column: str) -> str:
    """Of the first run in a table of runs: cells are ranged right, below their column's name."""
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if column in line.split())
    ends = lines[head].index(column) + len(column)
    row = next(line for line in lines[head + 1 :] if line.lstrip().startswith("seen"))
    return row[:ends].split()[-1]


def test_top_shows_rates_between_two_looks_and_every_trainer(served: ServedService, monkeypatch):
    trainer = Trainer(served.address)
    trainer.epoch(0)
    view, now = Top("here:1"), [100.0]
    monkeypatch.setattr("sampler_service.terminal.time.monotonic", lambda: now[0])
    with SamplerClient(served.address) as client:
        first = shown(view.frame({"seen": client.statistics("seen")}))
        trainer.epoch(1)
        now[0] += 4.0
        second = shown(view.frame({"seen": client.statistics("seen")}))
    assert "gradient_clustering" in first
    assert cell(second, "ex/s") == "50", "200 examples in 4 s"
    assert "trainers of seen" in second
    trainer.session.close()


def test_top_says_that_there_is_no_run():
    assert "no run yet" in shown(Top("here:1").frame({}))


def test_an_explanation_without_a_sketch_says_so():
    found = pb.ExplainResponse(
        example=pb.ExampleStatistics(example_id=7, cluster=-1),
        why=["It was never handed out."],
        no_neighbours="It has no sketch, so nothing is known of its neighbours.",
    )
    text = shown(explanation("run", found))
    assert "example 7 of run" in text
    assert "nothing is known of its neighbours" in text
