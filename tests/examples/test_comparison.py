"""What the demo compares: runs under every policy, and what is made of them."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.served import ServedService
from trainer_examples.comparison import Curve, Settings, best_rate, reference_losses, train_under
from trainer_examples.data import load
from trainer_examples.demo import POLICIES, main
from trainer_examples.figures import notes_of, save_plot, table_of, target_of
from trainer_examples.models import full_loss, make_model

DATA = load(limit=640)
SETTINGS = Settings(steps=90, batch_size=16, evaluations=6)


@pytest.mark.usefixtures("prompt_reports")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_gets_its_budget_and_takes_over_when_it_knows_enough(served: ServedService, policy: str) -> None:
    done = []
    curve = train_under(
        policy, DATA, SETTINGS, address=served.address, run="run", seed=0, on_step=lambda: done.append(1)
    )
    assert curve.steps == [0, 15, 30, 45, 60, 75, 90]
    assert len(done) == 90
    assert 0 < curve.examples <= 90 * 16
    assert curve.losses[-1] < curve.losses[0]
    assert curve.seconds == sorted(curve.seconds)
    assert curve.steps_active > 15
    draws = policy in ("gradient_clustering", "importance")
    assert (curve.variance_ratio > 0) is draws
    assert served.service.runs() == []  # a comparison leaves nothing behind


def test_reference_losses_come_from_models_that_did_not_see_the_example() -> None:
    losses = reference_losses(DATA, SETTINGS, seed=0)
    assert losses.shape == (640,)
    assert np.isfinite(losses).all()
    untrained = full_loss(make_model(DATA.image_shape, DATA.num_classes), DATA.train)
    assert 0 < losses.mean() < untrained


def test_the_learning_rate_is_the_one_at_which_shuffling_ends_lowest() -> None:
    assert best_rate(DATA, SETTINGS, (1e-5, 0.05, 1e6)) == 0.05  # neither too slow nor no number at all
    assert best_rate(load(limit=10), SETTINGS, (1e6, 1e-5)) == 1e-5  # fewer images than a batch has


def curve_of(policy: str, losses: list[float], **changes) -> Curve:
    steps = [10 * i for i in range(len(losses))]
    values = {
        "seed": 0,
        "steps": steps,
        "seconds": [0.5 * s for s in steps],
        "losses": losses,
        "steps_active": steps[-1],
    }
    return Curve(policy=policy, **(values | changes))


def test_a_target_is_reached_between_evaluations_or_never() -> None:
    curve = curve_of("shuffle", [2.0, 1.0, 0.5, 0.7])
    assert curve.reach(2.0) == (0, 0)
    assert curve.reach(0.75) == (15.0, 7.5)
    assert all(math.isnan(value) for value in curve.reach(0.1))
    assert curve.late_loss == 0.7


def test_the_table_names_the_fastest_and_who_never_came_there(tmp_path: Path) -> None:
    runs = {
        "shuffle": [curve_of("shuffle", [2.0, 1.0, 0.8, 0.7], accuracy=0.9, examples=100)],
        "importance": [
            curve_of("importance", [2.0, 0.6, 0.5, 0.4], ratios=[math.nan, 0.5, 0.7], accuracy=0.8, examples=100)
        ],
        "rho_loss": [curve_of("rho_loss", [2.0, 1.9, 1.8, 1.7], steps_active=10, reasons=["shuffle: 0 % are fresh"])],
    }
    target = target_of(runs)
    assert target == 0.7
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table_of("title", runs, target))
    text = console.export_text()
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert rows["shuffle"][:2] == ["30", "15.00"]
    assert rows["importance"] == ["9", "4.64", "0.4000", "80.0%", "100", "0.60", "100%"]
    assert rows["rho_loss"][:2] == ["never", "never"]
    assert notes_of(runs) == ["rho_loss shuffled for 20 of 30 steps: 0 % are fresh"]

    save_plot({"one": runs, "two": runs}, tmp_path / "new" / "plot.png")
    with Image.open(tmp_path / "new" / "plot.png") as image:
        assert image.width > 1000


def test_the_demo_uses_a_running_service_when_told_to(
    served: ServedService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo.png"
    results = main(steps=8, seeds=1, policies="infobatch", address=served.address, out=out)
    assert [list(runs) for runs in results.values()] == [["shuffle", "infobatch"]] * 2
    assert out.exists()
    assert "where shuffle ends" in " ".join(capsys.readouterr().out.split())


def test_a_set_of_ones_own_gets_a_learning_rate_of_its_own(
    served: ServedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer_examples.demo.load", lambda *_, **__: DATA)
    monkeypatch.setattr("trainer_examples.demo.best_rate", lambda *_: 0.2)
    main(data="mine", steps=8, seeds=1, policies="shuffle", address=served.address, out=tmp_path / "demo.png")
    said = " ".join(capsys.readouterr().out.split())
    assert "looking for the learning rate of 0.02, 0.05, 0.1, 0.2 that suits shuffling best" in said
    assert "8 steps of 32, SGD 0.2 with momentum" in said
