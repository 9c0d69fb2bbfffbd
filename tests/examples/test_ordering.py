"""Orders that are compared: who is shown what, the order each method makes, and the comparison from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sampler_client.pytorch.lookahead import lookahead_drops
from tests.served import ServedService
from trainer_examples import ordering, orders
from trainer_examples.data import load
from trainer_examples.ordering import main
from trainer_examples.orders import BATCH, LOOKAHEAD, PACING, Alone, Task, Trained, at_best_rate, loss_of
from trainer_examples.ranks import agreement, spearman

TASK = Task.of(load())
SMALL = Task.of(load(limit=550))  # ten batches


def rows_of(*sets: torch.utils.data.TensorDataset) -> list[bytes]:
    return [image.numpy().tobytes() for each in sets for image in each.tensors[0]]


def test_no_image_serves_two_purposes():
    known = set(rows_of(load().train, load().test))
    shown = rows_of(TASK.train, TASK.target, TASK.held_out, TASK.test)
    assert len(set(shown)) == len(shown) and set(shown) <= known
    assert len(TASK.train) == TASK.steps * BATCH == 896


def test_random_pacing_draws_whole_batches_of_ever_more_images():
    fit = Alone(PACING, SMALL, rate=0.1, seed=0, epochs=4)
    shown = []
    for _ in range(4):
        batches = list(fit._next())
        assert [len(images) for images, _ in batches] == [BATCH] * SMALL.steps
        shown.append(set(rows_of(*(torch.utils.data.TensorDataset(images) for images, _ in batches))))
        fit.epoch()
    # A fifth of 320 images, then three fifths, then all; ten batches a time.
    assert [len(each) for each in shown] == [64, pytest.approx(192, abs=10), 320, 320]
    assert shown[0] < shown[1] < shown[2]


def test_exact_look_ahead_shows_every_image_once_and_the_best_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(orders, "ATTEMPTS", SMALL.steps)
    fit = Alone(LOOKAHEAD, SMALL, rate=0.1, seed=0, epochs=1)
    batches = list(fit._next())  # none of them is trained on here, so the best comes first, and so on
    drops = lookahead_drops(fit.model, fit.optimizer, loss_of, batches, SMALL.target.tensors)
    assert drops.tolist() == sorted(drops.tolist(), reverse=True)
    images = [torch.utils.data.TensorDataset(images) for images, _ in batches]
    assert sorted(rows_of(*images)) == sorted(rows_of(SMALL.train))


def test_ranks_are_compared_whatever_the_values():
    values = np.array([0.1, 5.0, -2.0, 30.0])
    assert spearman(values, np.exp(values)) == pytest.approx(1)
    assert spearman(values, -values) == pytest.approx(-1)
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 4, 3])) == pytest.approx(0.6)  # 1 - 6 * 4 / (4 * 15)


def test_sketches_rank_batches_as_steps_do():
    found = agreement(TASK, dim=256, rate=0.05, seed=0, points=(0, 0.5, 1))
    assert [row.epochs for row in found] == [0, 0.5, 1]
    assert min(row.fresh for row in found) > 0.5
    assert [row.begun == row.fresh for row in found] == [True, False, True]
    assert [row.as_poa is None for row in found] == [True, True, False]


def test_old_sketches_rank_like_fresh_ones_of_a_model_that_stays():
    (found,) = agreement(SMALL, dim=64, rate=1e-6, seed=0, points=(1.5,))
    assert found.begun == pytest.approx(found.fresh, abs=0.05)
    assert found.as_poa == pytest.approx(found.fresh, abs=0.05)


def test_each_method_has_the_rate_that_suits_held_out_images():
    def run(rate: float, seed: int, held_out_loss: float, method: str = "poa") -> Trained:
        return Trained(
            method=method, rate=rate, seed=seed, epochs=2, train_loss=0, held_out_loss=held_out_loss,
            accuracy=0, step_ms=1, ordered=1,
        )  # fmt: skip

    runs = [run(0.1, 0, 1.0), run(0.1, 1, 3.0), run(0.2, 0, 0.1), run(0.2, 1, float("nan")), run(0.05, 0, 2.5)]
    runs += [run(0.05, 1, 2.5), run(0.4, 0, 0.0, "shuffle")]
    assert [(run.rate, run.seed) for run in at_best_rate(runs, "poa", 2)] == [(0.1, 0), (0.1, 1)]
    assert at_best_rate(runs, "poa", 3) == []


def test_the_comparison_runs_through_a_service(
    served: ServedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(ordering, "RATES", (0.05,))
    monkeypatch.setattr(ordering, "TURNS", 1)
    monkeypatch.setattr(ordering, "POINTS", (0, 1))
    out = tmp_path / "ordering.json"
    headline = main(examples=550, epochs=2, short=1, seeds=1, momentum=0.5, address=served.address, json=out)
    written = json.loads(out.read_text())
    assert {row.get("rate") for row in written["rows"]} == {0.025}, "half of it, with a momentum of a half"
    assert written["headline"] == headline
    assert all(np.isfinite(value) for value in headline.values())
    trained = {(row["method"], row["epochs"]): row for row in written["rows"] if row["part"] == "training"}
    # Policies of the service know nothing in their first epoch, and are at work in the second.
    shares = {key: row["ordered"] for key, row in trained.items()}
    served_ones = ("poa", "poa, random order", "balanced_order")
    expected = {(PACING, 1): 1, (PACING, 2): 1, (LOOKAHEAD, 1): 1, ("shuffle", 1): 1, ("shuffle", 2): 1}
    assert shares == expected | {(method, epochs): (epochs - 1) / 2 for method in served_ones for epochs in (1, 2)}
    losses = {method: trained[method, 1]["train_loss"] for method, epochs in trained if epochs == 1}
    assert losses["poa"] == pytest.approx(losses["shuffle"]) == losses["balanced_order"], "they shuffled alike"
    assert losses[LOOKAHEAD] != losses["shuffle"]
    assert served.service.runs() == []
    assert "ranks of batches by sketches and by real steps" in " ".join(capsys.readouterr().out.split())
