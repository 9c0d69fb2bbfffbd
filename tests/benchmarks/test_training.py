"""The evaluation harness: faults of data sets, budgets of methods, results that survive a stop."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import benchmarks.training.__main__ as command
from benchmarks.training.cells import SEARCH_SEED, Results, count, run_all
from benchmarks.training.headline import headline
from benchmarks.training.loop import Curve, train
from benchmarks.training.methods import METHODS, hyper_parameters, make_method, setup
from benchmarks.training.ours import OURS, Ours
from benchmarks.training.peers import PEERS
from benchmarks.training.report import task_rows, write_report
from benchmarks.training.tasks import (
    CONDITIONS,
    SETTINGS,
    Examples,
    Setting,
    Task,
    faulty,
    make_task,
    with_condition,
)
from sampler_service.policies import POLICIES
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
    full, before = 120 * 32, curve.backpropagated[0]
    assert 0.4 * full < curve.backpropagated[-1] - before <= full
    assert (before > 0) == (name == "rho_loss (peer)"), "reference models count from the start"
    assert curve.forwarded[-1] >= curve.backpropagated[-1]
    assert curve.forwarded[0] >= before
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
        curve = curve_of(method, rate, seed, final=0.1 if method == "shuffle" else rate)
        # The better rate by accuracy, which the loss does not tell.
        curve.accuracies[-1] = 0.95 if rate == (0.2 if method == "two_stage" else 0.1) else 0.9
        return curve

    def make(methods: list[str]) -> Results:
        results = Results(tmp_path / "runs.jsonl")
        run_all(results, [(setting, methods)], range(2), run)
        return results

    make(["shuffle"])
    assert made == [
        ("shuffle", 0.1, SEARCH_SEED),
        ("shuffle", 0.2, SEARCH_SEED),
        ("shuffle", 0.1, 0),
        ("shuffle", 0.1, 1),
    ]
    made.clear()
    both = [(setting, ["shuffle", "two_stage"])]
    assert count(Results(tmp_path / "runs.jsonl"), both, range(2)) == (4, 8)
    results = make(["shuffle", "two_stage"])
    assert [entry[0] for entry in made] == ["two_stage"] * 4, "nothing is run twice"
    assert count(results, both, range(2)) == (8, 8)
    assert results.best_rate("digits_mlp-clean", "two_stage") == 0.2
    rows = {row["method"]: row for row in task_rows(results, "digits_mlp-clean", range(2))}
    assert rows["shuffle"]["steps_to_loss"] == pytest.approx(1.0)
    write_report(results, tmp_path / "out", tmp_path / "training.json", range(2))
    assert (tmp_path / "out" / "digits_mlp-clean.png").stat().st_size > 10_000
    assert "| two_stage | 0.2* |" in (tmp_path / "out" / "digits_mlp-clean.md").read_text()
    assert json.loads((tmp_path / "training.json").read_text())["rows"]


def test_methods_take_turns_so_that_a_slower_machine_slows_all(tmp_path):
    setting = replace(SETTINGS["digits_mlp"], learning_rates=(0.1,))
    made: list[tuple[str, int]] = []

    def run(_setting: Setting, method: str, rate: float, seed: int) -> Curve:
        made.append((method, seed))
        return curve_of(method, rate, seed, final=0.1)

    run_all(Results(tmp_path / "runs.jsonl"), [(setting, ["a", "b"])], range(2), run)
    assert made == [(method, seed) for seed in (SEARCH_SEED, 0, 1) for method in ("a", "b")]


def test_a_line_that_was_being_written_when_it_stopped_is_made_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    results = Results(path)
    results.add(curve_of("m", 0.1, 0, final=1.0))
    whole = path.read_text()
    path.write_text(whole + whole[:100])
    again = Results(path)
    again.add(curve_of("m", 0.1, 1, final=1.0))
    assert len(Results(path).methods("digits_mlp-clean")) == 1
    assert len(path.read_text().splitlines()) == 2
    path.write_text(whole[:100])
    assert Results(path).tasks() == []


def test_runs_that_depended_on_something_else_are_made_anew(tmp_path):
    path = tmp_path / "runs.jsonl"
    results = Results(path)
    for method, made_with in (("shuffle", "now"), ("infobatch", "before")):
        results.add(Curve(task="digits_mlp-clean", method=method, learning_rate=0.1, seed=0, setup=made_with))
    assert Results(path, lambda *_: "now").methods("digits_mlp-clean") == ["shuffle"]
    setting = with_condition(SETTINGS["digits_mlp"], "clean")
    others = setup(replace(setting, steps=7), "infobatch"), setup(setting, "shuffle")
    assert setup(setting, "infobatch") not in others
    assert setup(setting, "infobatch") == setup(setting, "infobatch")


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
    assert headline(task_rows(again, "digits_mlp-clean", range(1))) == {}


def rows_of(tmp_path: Path, task: str, **finals: tuple[float, float, float]) -> list[dict]:
    """Rows of curves that rise evenly to an accuracy, in so many steps (over 100) and to so low a loss."""
    results = Results(tmp_path / "runs.jsonl")
    for method, (accuracy, length, loss) in finals.items():
        for seed in (SEARCH_SEED, 0):
            curve = curve_of(method.replace("_peer", " (peer)"), 0.1, seed, final=loss)
            curve.task = task
            curve.accuracies = np.linspace(0.1, accuracy, 11).tolist()
            for axis in ("steps", "seconds", "forwarded", "backpropagated"):
                setattr(curve, axis, [length * value for value in getattr(curve, axis)])
            results.add(curve)
    return task_rows(results, task, range(1))


def test_headlines_are_of_one_method_each_whatever_the_others_do(tmp_path):
    rows = rows_of(
        tmp_path,
        "mnist_mlp-clean",
        shuffle=(0.9, 1.0, 0.1),
        two_stage=(0.9, 0.8, 0.1),
        infobatch=(0.9, 0.7, 0.1),
        infobatch_peer=(0.9, 0.6, 0.1),
        importance=(0.9, 0.1, 0.1),
    )
    assert headline(rows) == {
        "steps_mnist_mlp": pytest.approx(0.8),
        "seconds_mnist_mlp": pytest.approx(0.8),
        "infobatch_backprops_mnist_mlp": pytest.approx(rows[1]["backprops_to_accuracy_of_run"]),
        "infobatch_policy_backprops_mnist_mlp": pytest.approx(0.7),
        "infobatch_peer_backprops_mnist_mlp": pytest.approx(0.6),
    }


def test_the_long_tail_counts_from_where_shuffle_itself_gets_there(tmp_path):
    rows = rows_of(tmp_path, "mnist_mlp-longtail", shuffle=(0.8, 1.0, 0.1), two_stage=(0.8, 0.5, 0.1))
    shuffled, ours = rows
    assert shuffled["steps_to_accuracy"] == pytest.approx(1.0)
    assert shuffled["steps_to_accuracy_of_run"] < 1.0, "shuffle gets there before its end"
    assert headline(rows) == {"longtail_steps": pytest.approx(0.5)}
    assert ours["steps_to_accuracy_of_run"] < 0.5


@pytest.mark.parametrize(("accuracy", "share"), [(0.8985, 0.7), (0.897, None)])
def test_examples_are_saved_only_at_an_accuracy_that_is_no_worse(tmp_path, accuracy, share):
    rows = rows_of(tmp_path, "cifar_cnn-clean", shuffle=(0.9, 1.0, 0.1), infobatch=(accuracy, 0.7, 0.1))
    figure = headline(rows)["infobatch_policy_backprops_cifar_cnn"]
    assert figure == (share if share is None else pytest.approx(share))


@pytest.mark.parametrize(("accuracy", "figure"), [(0.91, 0.6), (0.89, None)])
def test_seconds_to_a_loss_count_only_at_an_accuracy_that_is_no_worse(tmp_path, accuracy, figure):
    rows = rows_of(tmp_path, "cifar_cnn-clean", shuffle=(0.9, 1.0, 0.1), two_stage=(accuracy, 0.6, 0.1))
    found = headline(rows)
    assert found["seconds_cifar_cnn"] == (figure if figure is None else pytest.approx(figure))
    assert found["cifar_cnn_accuracy_gap"] == pytest.approx(accuracy - 0.9)


def test_wrong_labels_are_judged_beside_the_better_of_the_naive_policies(tmp_path):
    rows = rows_of(
        tmp_path,
        "mnist_mlp-noise40",
        shuffle=(0.9, 1.0, 0.1),
        trimmed_loss=(0.91, 1.0, 0.1),
        importance=(0.88, 1.0, 0.1),
        selective_backprop=(0.5, 1.0, 0.1),
    )
    found = headline(rows)
    assert found["noise40_accuracy"] == pytest.approx(0.01)
    assert found["noise40_naive"] == found["noise40_naive_importance"] == pytest.approx(-0.02)


def test_overhead_is_that_of_auto_where_nothing_is_gained(tmp_path):
    rows = rows_of(
        tmp_path, "cifar_cnn_short-clean", shuffle=(0.3, 1.0, 1.5), auto=(0.3, 1.1, 1.5), two_stage=(0.3, 1.5, 1.5)
    )
    assert headline(rows) == {"clean_overhead": pytest.approx(1.1)}


def test_figures_without_a_value_are_null_in_the_file(tmp_path):
    rows_of(tmp_path, "cifar_cnn-clean", shuffle=(0.9, 1.0, 0.1), infobatch=(0.5, 0.7, 0.1))
    write_report(Results(tmp_path / "runs.jsonl"), tmp_path, tmp_path / "training.json", range(1))
    assert (
        json.loads((tmp_path / "training.json").read_text())["headline"]["infobatch_policy_backprops_cifar_cnn"] is None
    )


def test_other_learning_rates_to_try_make_no_run_anew_and_wrong_labels_get_lower_ones():
    clean, noisy = SETTINGS["mnist_mlp"], with_condition(SETTINGS["mnist_mlp"], "noise40")
    assert noisy.learning_rates == (0.01, 0.02, 0.05, 0.1)
    assert setup(clean, "shuffle") == setup(replace(clean, learning_rates=(9.0,)), "shuffle")
    assert len({setup(clean, "shuffle"), setup(noisy, "shuffle"), setup(replace(clean, steps=9), "shuffle")}) == 3


def test_tables_tell_what_each_method_runs_with():
    assert hyper_parameters("selective_backprop (peer)") == "beta 3", "the paper's"
    assert hyper_parameters("selective_backprop beta 1 (peer)") == "beta 1"
    assert hyper_parameters("infobatch (peer)") == hyper_parameters("infobatch") == "prune_ratio 0.5, delta 0.875"
    assert hyper_parameters("a method of old") == ""


def test_the_committed_grid_has_every_condition_and_only_methods_that_there_are():
    on_mnist = [(conditions, methods) for name, conditions, methods in command.COMMITTED if name == "mnist_mlp"]
    assert sorted(condition for conditions, _ in on_mnist for condition in conditions) == sorted(CONDITIONS)
    assert all(methods == METHODS for _, methods in on_mnist)
    deep = [(name, methods) for name, _, methods in command.COMMITTED if name != "mnist_mlp"]
    assert {name for name, _ in deep} == {"cifar_cnn", "cifar_cnn_short"}
    for _, chosen in deep:
        assert set(chosen) - {"auto"} <= set(METHODS)
    assert ("auto" in METHODS) == ("auto" in POLICIES)


def test_missing_data_are_named_with_what_belongs_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--tasks", "mnist_mlp"])
    said = " ".join(capsys.readouterr().err.split())
    assert str(tmp_path / "mnist" / "train.parquet") in said
    assert "--tasks digits_mlp needs no files" in said


def test_learning_rates_are_not_chosen_by_the_test_set(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, size in (("train", 30), ("test", 6)):
        image = pa.array([[i] * 4 for i in range(size)], pa.list_(pa.uint8()))
        pq.write_table(pa.table({"image": image, "label": [i % 3 for i in range(size)]}), folder / f"{name}.parquet")
    found = make_task(replace(SETTINGS["mnist_mlp"], limit=20), tmp_path)
    pixel = [(part.images[:, 0, 0, 0] * 255).round().int().tolist() for part in (found.train, found.validation)]
    assert pixel == [list(range(20)), list(range(20, 30))]
    assert len(found.test) == 6


def test_the_search_is_judged_by_the_validation_set_and_what_counts_by_the_test_set(task, tmp_path, monkeypatch):
    spare = replace(task, validation=Examples(task.test.images[:50], task.test.labels[:50]))
    judged: dict[int, int] = {}

    def fake(given: Task, _method: object, name: str, *, learning_rate: float, seed: int) -> Curve:
        judged[seed] = len(given.test)
        return curve_of(name, learning_rate, seed, final=learning_rate)

    monkeypatch.setattr(command, "make_task", lambda *_: spare)
    monkeypatch.setattr(command, "running_service", lambda: nullcontext("nobody:1"))
    monkeypatch.setattr(command, "train", fake)
    out = ["--out", str(tmp_path), "--json", str(tmp_path / "training.json")]
    command.main([*out, "--tasks", "digits_mlp", "--methods", "shuffle", "--seeds", "1"])
    assert judged == {SEARCH_SEED: 50, 0: len(task.test)}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_diverges_ends_and_says_so(task, name, served: ServedService):
    curve = train(task, make_method(name, task, seed=0, address=served.address), name, learning_rate=1e6, seed=0)
    assert curve.diverged or curve.losses[-1] > curve.losses[0]
