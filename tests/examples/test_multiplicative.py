"""The heat maps of multiplicative updates are made as it is printed, each cell by the rule that it names."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from torch.nn import functional

from trainer_examples import multiplicative
from trainer_examples.data import load
from trainer_examples.heat_maps import FRAME, heat_maps
from trainer_examples.models import mlp
from trainer_examples.multiplicative import BATCH, WIDTH, Cell, train


def test_every_cell_is_trained_drawn_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(multiplicative, "RATES", (0.03, 0.3))
    monkeypatch.setattr(multiplicative, "SCALES", (0.3, 1.0, 3.0))
    runs = multiplicative.main(steps=5, seeds=2, plot=tmp_path / "maps.png", json=tmp_path / "result.json")
    assert len(runs) == 5 * 3 * 2 * 3 * 2
    assert (tmp_path / "maps.png").stat().st_size > 10_000
    written = json.loads((tmp_path / "result.json").read_text())
    assert len(written["rows"]) == 15
    assert all(len(seeds) == 2 for row in written["rows"] for scales in row["losses"] for seeds in scales)
    assert "momentum" in capsys.readouterr().out


@pytest.mark.parametrize("rule", ["plain", "multiplicative", "hybrid"])
def test_one_step_is_that_of_the_rule(rule: str) -> None:
    data = load()
    images, labels = data.train.tensors
    torch.manual_seed(5)
    model = mlp(64, 10, width=WIDTH)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    at = torch.randperm(len(images))[:BATCH]
    functional.cross_entropy(model(images[at]), labels[at]).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            multiplied = 0.1 * parameter.abs() * torch.tanh(10 * parameter.grad)
            added = 0.1 * parameter.grad
            parameter -= {"plain": added, "multiplicative": multiplied, "hybrid": (multiplied + added) / 2}[rule]
        expected = float(functional.cross_entropy(model(images), labels))
    cell = Cell(optimizer="SGD", rule=rule, rate=0.1, scale=3.0, eta_in=10.0)
    assert train(cell, data, 1, 5).loss == pytest.approx(expected, rel=1e-4)


def test_a_run_that_diverges_is_infinite() -> None:
    run = train(Cell(optimizer="SGD", rule="plain", rate=1e30, scale=1.0, eta_in=1.0), load(limit=100), 20, 0)
    assert run.loss == math.inf
    assert math.isnan(run.accuracy)


def test_heat_maps_leave_what_is_infinite_blank_and_frame_the_lowest() -> None:
    figure = heat_maps(
        {("SGD", "plain"): [[0.1, math.inf], [0.02, 3.0]], ("Adam", "plain"): [[math.inf, 5000.0], [12.0, 0.0001]]},
        across=("rate", ["1", "2"]),
        down=("scale", ["3", "4"]),
        value="loss",
    )
    of_sgd, of_adam, _ = figure.axes
    assert [axes.get_ylabel() for axes in (of_sgd, of_adam)] == ["SGD", "Adam"] and of_sgd.get_title() == "plain"
    assert opacity_of(of_sgd) == [[1, 0], [1, 1]] and opacity_of(of_adam) == [[0, 1], [1, 1]]
    assert [text.get_text() for text in of_sgd.texts] == ["0.1", "", "0.02", "3"]
    assert [text.get_text() for text in of_adam.texts] == ["", ">999", "12", "<.001"]
    assert framed(of_sgd) == (0, 1) and framed(of_adam) == (1, 1)
    assert of_sgd.images[0].norm is of_adam.images[0].norm, "one scale of colours"
    brightness = of_sgd.images[0].to_rgba([[0.02, 0.1, 3.0]])[..., :3].sum(-1)[0]
    assert brightness[0] < brightness[1] < brightness[2]


def opacity_of(axes: Axes) -> list[list[float]]:
    """Of the cells as they are painted."""
    (image,) = axes.images
    return image.to_rgba(image.get_array())[..., 3].tolist()


def framed(axes: Axes) -> tuple[float, float]:
    """Column and row of the cell."""
    (frame,) = axes.patches
    assert isinstance(frame, Rectangle) and frame.get_edgecolor() == to_rgba(FRAME)
    assert (frame.get_width(), frame.get_height()) == (1, 1)
    return frame.get_x() + 0.5, frame.get_y() + 0.5
