"""The evaluation harness: faults of data sets, budgets of methods, results that survive a stop."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.training.cells import SEARCH_SEED, Results, run_all
from benchmarks.training.loop import Curve, train
from benchmarks.training.ours import OURS, Ours
from benchmarks.training.peers import PEERS
from benchmarks.training.report import headline, task_rows, write_report
from benchmarks.training.tasks import SETTINGS, Setting, Task, faulty, make_task
from tests.served import ServedService

LABELS = np.arange(4000) % 10


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(replace(SETTINGS["digits_mlp"], steps=120), Path())


def fault(condition: str) -> tuple[np.ndarray, np.ndarray]:
    return faulty(LABELS, condition, 10, np.random.default_rng(0))


@pytest.mark.parametrize(("condition", "share"), [("dup50", 0.5), ("dup90", 0.9)])
def test_duplicates_are_that_share_and_copies_of_few(condition, share):
    rows, labels = fault(condition)
    assert len(rows) == len(LABELS)
    assert (labels == LABELS[rows]).all()
    copied = np.bincount(rows, minlength=len(LABELS)) > 1
    assert copied.sum() <= 40
    assert copied[rows].mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(("condition", "share"), [("noise20", 0.2), ("noise40", 0.4)])
def test_wrong_labels_are_that_share_and_always_wrong(condition, share):
    rows, labels = fault(condition)
    assert (rows == np.arange(len(LABELS))).all()
    assert (labels != LABELS).mean() == pytest.approx(share)
    assert ((labels >= 0) & (labels < 10)).all()


def test_a_long_tail_falls_a_hundredfold():
    _, labels = fault("longtail")
    counts = np.bincount(labels)
    assert counts[0] == 100 * counts[-1] == 400
    assert (np.diff(counts) < 0).all()


@pytest.mark.parametrize("name", sorted(PEERS))
def test_every_peer_trains_within_its_budget(task, name):
    curve = train(task, PEERS[name](task, 0), name, learning_rate=0.1, seed=0)
    assert curve.losses[-1] < 0.5 * curve.losses[0]
    assert curve.accuracies[-1] > 0.6
    full = 120 * 32
    assert 0.4 * full < curve.backpropagated[-1] <= full
    assert curve.forwarded[-1] >= curve.backpropagated[-1]
    assert (np.diff(curve.seconds) > 0).all()
    if name in ("infobatch (peer)", "kakurenbo (peer)"):
        assert curve.steps[-1] < 120, "it leaves examples out"
    else:
        assert curve.steps[-1] == 120


@pytest.mark.parametrize("name", OURS)
def test_every_policy_trains_within_its_budget(task, name, served: ServedService):
    curve = train(task, Ours(task, name, address=served.address, seed=0), name, learning_rate=0.1, seed=0)
    assert curve.losses[-1] < 0.5 * curve.losses[0]
    assert curve.backpropagated[-1] <= 120 * 32
    assert curve.notes["dropped"] == 0 and not curve.notes["rejected"]
    assert not served.service.runs(), "the run is closed"
    if name == "two_stage":
        assert curve.forwarded[-1] > curve.backpropagated[-1]


def curve_of(method: str, rate: float, seed: int, final: float) -> Curve:
    """Falls evenly to its final loss in ten evaluations."""
    curve = Curve(task="digits_mlp-clean", method=method, learning_rate=rate, seed=seed)
    curve.losses = np.linspace(2.0, final, 11).tolist()
    curve.accuracies = np.linspace(0.1, 0.9, 11).tolist()
    curve.steps = [10 * i for i in range(11)]
    curve.seconds = [0.1 * i for i in range(11)]
    curve.forwarded = curve.backpropagated = [320 * i for i in range(11)]
    return curve


def test_a_goal_is_reached_between_evaluations_or_never():
    curve = curve_of("m", 0.1, 0, final=1.0)
    assert curve.first("steps", loss=1.95) == pytest.approx(5)
    assert curve.first("seconds", accuracy=0.5) == pytest.approx(0.5)
    assert curve.first("steps", loss=0.5) == math.inf


def test_runs_go_on_where_they_stopped_each_method_at_its_own_best_rate(tmp_path):
    setting = replace(SETTINGS["digits_mlp"], learning_rates=(0.1, 0.2))
    made: list[tuple[str, float, int]] = []

    def run(_setting: Setting, method: str, rate: float, seed: int) -> Curve:
        made.append((method, rate, seed))
        return curve_of(method, rate, seed, final=abs(rate - (0.2 if method == "two_stage" else 0.1)) + 0.1)

    def make(methods: list[str]) -> Results:
        results = Results(tmp_path / "runs.jsonl")
        run_all(results, [setting], methods, range(2), run)
        return results

    make(["shuffle"])
    assert made == [
        ("shuffle", 0.1, SEARCH_SEED),
        ("shuffle", 0.2, SEARCH_SEED),
        ("shuffle", 0.1, 0),
        ("shuffle", 0.1, 1),
    ]
    made.clear()
    results = make(["shuffle", "two_stage"])
    assert [entry[0] for entry in made] == ["two_stage"] * 4, "nothing is run twice"
    assert results.best_rate("digits_mlp-clean", "two_stage") == 0.2
    rows = {row["method"]: row for row in task_rows(results, "digits_mlp-clean", range(2))}
    assert rows["shuffle"]["steps_to_loss"] == pytest.approx(1.0)
    write_report(results, tmp_path / "out", tmp_path / "training.json", range(2))
    assert (tmp_path / "out" / "digits_mlp-clean.png").stat().st_size > 10_000
    assert "| two_stage | 0.2 |" in (tmp_path / "out" / "digits_mlp-clean.md").read_text()
    assert json.loads((tmp_path / "training.json").read_text())["rows"]


def test_a_run_that_diverged_is_kept_as_such(tmp_path):
    results = Results(tmp_path / "runs.jsonl")
    lost = curve_of("m", 0.1, SEARCH_SEED, final=1.0)
    lost.losses[-1] = math.nan
    results.add(lost)
    results.add(curve_of("m", 0.2, SEARCH_SEED, final=1.9))
    again = Results(tmp_path / "runs.jsonl")
    assert again.best_rate("digits_mlp-clean", "m") == 0.2
    found = again.find(("digits_mlp-clean", "m", 0.1, SEARCH_SEED))
    assert found is not None and found.diverged
    assert headline(again, range(1)) == {}
