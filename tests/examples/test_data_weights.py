"""Scarce tasks are what they say, Ren et al.'s weights are the derivative they are, and the comparison runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from tests.served import ServedService
from trainer_examples import data_weights
from trainer_examples.data import ImageData, load
from trainer_examples.data_weights import Settings, Training
from trainer_examples.reweighting import meta_weights
from trainer_examples.scarce import FEW_HELD_OUT, HELD_OUT, Scarce, imbalance, low_data

DIGITS = load()


def images_of(*parts: torch.utils.data.TensorDataset) -> list[bytes]:
    return [image.numpy().tobytes() for part in parts for image in part.tensors[0]]


def counts(part: torch.utils.data.TensorDataset) -> list[int]:
    return part.tensors[1].bincount().tolist()


def test_the_numbers_of_the_source_where_a_set_has_them() -> None:
    labels = torch.arange(6000) % 3
    many = torch.utils.data.TensorDataset(torch.rand(6000, 1, 2, 2), labels)
    data = ImageData(name="many", train=many, test=many, num_classes=3)
    task = imbalance(data, 0)
    assert (counts(task.train), counts(task.held_out), counts(task.test)) == ([20, 1000], [10, 10], [1000, 1000])
    task = low_data(data, 0)
    assert (counts(task.train), counts(task.held_out), counts(task.test)) == ([40] * 3, [2] * 3, [666] * 3)


@pytest.mark.parametrize(("draw", "held_out"), [(imbalance, HELD_OUT), (low_data, FEW_HELD_OUT)])
@pytest.mark.parametrize("tuning", [False, True])
def test_no_image_is_in_two_parts_and_tuning_never_sees_a_test_image(draw, held_out: int, tuning: bool) -> None:
    task = draw(DIGITS, 3, tuning=tuning)
    assert set(counts(task.held_out)) == {held_out}
    assert len(set(counts(task.test))) == 1
    parts = images_of(task.train, task.held_out, task.test)
    assert len(set(parts)) == len(parts)
    assert set(images_of(task.train, task.held_out)) <= set(images_of(DIGITS.train))
    assert set(images_of(task.test)) <= set(images_of(DIGITS.train if tuning else DIGITS.test))
    assert images_of(task.train) != images_of(draw(DIGITS, 4, tuning=tuning).train)


def test_labels_stay_with_their_images() -> None:
    label_of = dict(zip(images_of(DIGITS.train), DIGITS.train.tensors[1].tolist(), strict=True))
    task = imbalance(DIGITS, 5)
    digits = [{label_of[image] for image, label in pairs(task) if label == place} for place in (0, 1)]
    assert [len(found) for found in digits] == [1, 1] and digits[0] != digits[1]


def pairs(task: Scarce) -> list[tuple[bytes, int]]:
    return list(zip(images_of(task.train), task.train.tensors[1].tolist(), strict=True))


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    return torch.cat([part.flatten() for part in grads])


def test_meta_weights_are_products_with_the_held_out_gradient() -> None:
    """At epsilon 0 the step has not moved: -dL/d epsilon_i = <g_i, g_held-out>."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y, held_out = torch.randn(8, 4), torch.arange(8) % 3, (torch.randn(5, 4), torch.arange(5) % 3)
    target = gradient(model, *held_out)
    gain = torch.stack([gradient(model, x[i : i + 1], y[i : i + 1]) @ target for i in range(8)]).clamp(min=0)
    assert 0 < int((gain > 0).sum()) < 8
    torch.testing.assert_close(meta_weights(model, x, y, *held_out), gain / gain.sum())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_meta_weights_are_zero_when_no_example_helps() -> None:
    model = nn.Linear(2, 2)
    x = torch.tensor([[1.0, 2.0]])
    assert meta_weights(model, x, torch.tensor([0]), x, torch.tensor([1])).tolist() == [0.0]


class Noting(Training):
    """Keeps the labels of the batches that it trained on."""

    def __init__(self, task: Scarce, settings: Settings, rate: float, seed: int) -> None:
        super().__init__(task, settings, rate, seed)
        self.held_out_labels = task.held_out.tensors[1]
        self.drawn: list[Tensor] = []

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        if labels is not self.held_out_labels:
            self.drawn.append(labels)
        return super().losses(images, labels)


@pytest.mark.usefixtures("prompt_reports")
@pytest.mark.parametrize(("grouped", "factor"), [(False, 2), (True, 5)])
def test_the_rare_class_is_drawn_far_more_often_than_it_is_there(
    served: ServedService, grouped: bool, factor: int
) -> None:
    task, settings = imbalance(DIGITS, 0), Settings(epochs=12)
    training = Noting(task, settings, rate=0.03, seed=0)
    data_weights.validation_alignment(training, task, settings, address=served.address, seed=0, grouped=grouped)
    there, drawn = (
        float((labels == 0).float().mean()) for labels in (task.train.tensors[1], torch.cat(training.drawn))
    )
    assert there < 0.03
    assert drawn > factor * there
    assert not served.service.runs()


def test_a_rate_is_chosen_by_other_draws_and_then_the_comparison_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[float, int]] = []

    class Fake(Training):
        def __init__(self, task: Scarce, settings: Settings, rate: float, seed: int) -> None:
            ran.append((rate, seed))
            self.model = rate

    monkeypatch.setattr(data_weights, "Training", Fake)
    monkeypatch.setattr(data_weights, "accuracy", lambda model, _: 1 - abs(model - 0.03))
    monkeypatch.setattr(data_weights, "METHODS", {"none": lambda *_, **__: None})
    rates = (0.001, 0.03, 0.3)
    (result,) = data_weights.compare(
        "task", partial(low_data, DIGITS), Settings(), seeds=2, address="", methods=["none"], rates=rates
    )
    assert ran == [(rate, seed) for rate in rates for seed in data_weights.TUNING_SEEDS] + [
        (0.03, data_weights.FIRST_SEED),
        (0.03, data_weights.FIRST_SEED + 1),
    ]
    assert (result.rate, result.accuracies) == (0.03, [1.0, 1.0])


def test_all_methods_are_compared_on_both_tasks(served: ServedService) -> None:
    for name, draw in data_weights.TASKS.items():
        found = data_weights.compare(
            name, partial(draw, DIGITS), Settings(epochs=1),
            seeds=2, address=served.address, methods=list(data_weights.METHODS), rates=(0.03,),
        )  # fmt: skip
        assert [result.method for result in found] == list(data_weights.METHODS)
        for result in found:
            assert len(result.accuracies) == 2 and 0 <= min(result.accuracies) <= max(result.accuracies) <= 1
        assert data_weights.table_of(found).row_count == len(data_weights.METHODS)


def test_a_spread_is_in_points_with_the_deviation_of_a_sample() -> None:
    assert data_weights.points(np.array([0.5, 0.7])) == "60.0 ± 14.1"
    assert data_weights.points(np.array([0.5])) == "50.0 ± 0.0"


@pytest.mark.ray
def test_the_command_prints_tables_and_writes_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "weights.json"
    data_weights.main(seeds=1, epochs=1, rates=[0.03], json_file=out)
    said, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert "epochs=1" in said["notes"][0]
    rows = [(row["task"], row["method"]) for row in said["rows"]]
    assert rows == [(task, method) for task in data_weights.TASKS for method in data_weights.METHODS]
    assert all(method in printed for _, method in rows)
    accuracy = {(row["task"], row["method"]): row["accuracies"][0] for row in said["rows"]}
    for (task, method), value in accuracy.items():
        if method != "uniform":
            gap = 100 * (value - accuracy[task, "uniform"])
            assert said["headline"][f"{task}, {method}"] == pytest.approx(gap)
        if method not in ("uniform", "Ren et al."):
            gap = 100 * (value - accuracy[task, "Ren et al."])
            assert said["headline"][f"{task}, {method} over Ren et al."] == pytest.approx(gap)


def test_what_is_compared_can_be_chosen_and_must_be_there() -> None:
    accuracies = {"uniform": [0.5, 0.7], "class balanced": [0.7, 0.7]}
    results = [
        data_weights.Result(task="imbalance", method=method, rate=0.1, tuning={}, accuracies=found, seconds=1)
        for method, found in accuracies.items()
    ]
    figures = data_weights.headline_of(results)
    assert figures == {"imbalance, class balanced": pytest.approx(10), "deviation, imbalance, class balanced": ANY}
    assert [column.header for column in data_weights.table_of(results).columns][3:] == ["minus\nuniform", "seconds"]
    with pytest.raises(typer.BadParameter, match=r"'unifrom' is none of uniform, class balanced, "):
        data_weights.main(methods=["unifrom"])
