"""The evaluation harness: faults of data sets, budgets of methods, results that survive a stop."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.training.__main__ as command
import sampler_client as sampler
from benchmarks.training.cells import Results, count, run_all
from benchmarks.training.headline import headline
from benchmarks.training.loop import Curve, train
from benchmarks.training.methods import METHODS, SHORTER, hyper_parameters, make_method, setup
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
    stream,
    with_condition,
)
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


@pytest.mark.parametrize("name", OURS)
def test_every_batch_that_was_trained_on_is_reported_as_in_the_readme(task, name, served: ServedService, monkeypatch):
    reported: list[int] = []
    report = sampler.Batch.report

    def noting(batch: sampler.Batch, *arguments: object) -> None:
        reported.append(batch.batch_id)
        report(batch, *arguments)

    monkeypatch.setattr(sampler.Batch, "report", noting)
    curve = train(task, Ours(task, name, address=served.address, seed=0), name, learning_rate=0.1, seed=0)
    assert len(set(reported)) == curve.steps[-1]


@pytest.mark.parametrize("shorter", sorted(SHORTER))
@pytest.mark.parametrize("name", ["shuffle", "two_stage"])
def test_fewer_steps_are_a_whole_run_of_that_length(task, name, shorter, served: ServedService):
    method = make_method(name + shorter, task, seed=0, address=served.address)
    steps = round(120 * SHORTER[shorter])
    rates: list[float] = []
    after = method.after
    method.after = lambda step, *rest: (rates.append(step.progress), after(step, *rest))[1]
    curve = train(task, method, name + shorter, learning_rate=0.1, seed=0)
    assert curve.steps[-1] == steps
    assert (rates[0], rates[steps // 2]) == (0, 0.5), "its learning rate has fallen at its own end"


@pytest.mark.parametrize("name", sorted(PEERS))
def test_an_epoch_does_not_begin_with_the_faulty_examples(name):
    """One stream of random numbers for both once put all wrong labels into the first steps of seed 0."""
    labels, seen = np.zeros(3000, np.int64), []
    rows, noisy = faulty(labels, "noise40", 10, stream("faults", 0))
    examples = Examples(torch.from_numpy(rows).float().reshape(-1, 1, 1, 1), torch.from_numpy(noisy))
    setting = replace(SETTINGS["digits_mlp"], steps=30, model="mlp")
    task = Task(
        setting=setting, train=examples, test=examples, validation=examples, image_shape=(1, 1, 1), num_classes=10
    )
    for seed in range(3):
        method = PEERS[name](task, seed)
        drawn = (step.labels for step in method.steps(task.make_model(seed)))
        seen += [float((y != 0).float().mean()) for y, _ in zip(drawn, range(20), strict=False)]
    assert np.mean(seen) == pytest.approx(0.4, abs=0.25 if name == "rho_loss (peer)" else 0.05)


def curve_of(method: str, rate: float, seed: int, final: float) -> Curve:
    """Falls evenly to its final loss in ten evaluations."""
    curve = Curve(task="digits_mlp-clean", method=method, learning_rate=rate, seed=seed)
    curve.validation = 0.9
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
        # The better rate by the validation set, on average: neither the loss, the test set nor one seed tells.
        better = rate == (0.2 if method == "two_stage" else 0.1)
        curve.validation = [0.95, 0.85][seed] if better else [0.80, 0.88][seed]
        curve.accuracies[-1] = 0.5 if better else 0.9
        return curve

    def make(methods: list[str]) -> Results:
        results = Results(tmp_path / "runs.jsonl")
        run_all(results, [(setting, methods)], range(2), run)
        return results

    make(["shuffle"])
    assert made == [("shuffle", rate, seed) for seed in (0, 1) for rate in (0.1, 0.2)]
    made.clear()
    both = [(setting, ["shuffle", "two_stage"])]
    assert count(Results(tmp_path / "runs.jsonl"), both, range(2)) == (4, 8)
    results = make(["shuffle", "two_stage"])
    assert [entry[0] for entry in made] == ["two_stage"] * 4, "nothing is run twice"
    assert count(results, both, range(2)) == (8, 8)
    assert [curve.learning_rate for curve in results.of("digits_mlp-clean", "two_stage", range(2))] == [0.2, 0.2]
    rows = {row["method"]: row for row in task_rows(results, "digits_mlp-clean", range(2))}
    assert rows["shuffle"]["steps_to_loss"] == pytest.approx(1.0)
    assert rows["two_stage"]["loss_rate"] == 0.1, "the lower training loss is at the other rate"
    assert rows["two_stage"]["learning_rate"] == 0.2
    assert rows["two_stage"]["final_loss"] == pytest.approx(0.1)
    assert rows["two_stage"]["accuracy"] == pytest.approx(0.5)
    assert rows["two_stage"]["fitted_accuracy_gap"] == pytest.approx(0.9 - 0.5)
    write_report(results, tmp_path / "out", tmp_path / "training.json", range(2))
    assert (tmp_path / "out" / "digits_mlp-clean.png").stat().st_size > 10_000
    table = (tmp_path / "out" / "digits_mlp-clean.md").read_text()
    assert "| two_stage | 0.1 |" in table and "| 0.2 | 50.00% |" in table, "no edge of two rates"
    assert "Learning rates tried: 0.1, 0.2." in table
    assert "| +40.00 | 0.2 | 50.00% |" in table, "accuracy where the training loss is lowest"
    assert json.loads((tmp_path / "training.json").read_text())["rows"]


def test_methods_take_turns_so_that_a_slower_machine_slows_all(tmp_path):
    setting = replace(SETTINGS["digits_mlp"], learning_rates=(0.1,))
    made: list[tuple[str, int]] = []

    def run(_setting: Setting, method: str, rate: float, seed: int) -> Curve:
        made.append((method, seed))
        return curve_of(method, rate, seed, final=0.1)

    run_all(Results(tmp_path / "runs.jsonl"), [(setting, ["a", "b"])], range(2), run)
    assert made == [(method, seed) for seed in (0, 1) for method in ("a", "b")]


def test_a_learning_rate_counts_when_all_seeds_ran_with_it(tmp_path):
    results = Results(tmp_path / "runs.jsonl")
    for rate, seed in ((0.1, 0), (0.1, 1), (0.2, 0)):
        curve = curve_of("m", rate, seed, final=1.0)
        curve.validation = rate
        results.add(curve)
    assert [curve.learning_rate for curve in results.of("digits_mlp-clean", "m", range(2))] == [0.1, 0.1]
    assert [curve.learning_rate for curve in results.of("digits_mlp-clean", "m", range(1))] == [0.2]


def test_the_best_of_three_rates_is_marked_where_it_is_the_last_one(tmp_path):
    results = Results(tmp_path / "runs.jsonl")
    for method, best in (("shuffle", 0.2), ("two_stage", 0.4)):
        for rate in (0.1, 0.2, 0.4):
            curve = curve_of(method, rate, 0, final=1.0)
            curve.validation = 0.9 if rate == best else 0.8
            results.add(curve)
    edge = {row["method"]: row["rate_at_edge"] for row in task_rows(results, "digits_mlp-clean", range(1))}
    assert edge == {"shuffle": False, "two_stage": True}


def test_methods_that_stood_aside_throughout_are_named_as_one_measurement(tmp_path):
    results = Results(tmp_path / "runs.jsonl")
    for method, final in (("shuffle", 1.0), ("two_stage", 0.5), ("importance", 1.0)):
        for seed in range(2):
            results.add(curve_of(method, 0.1, seed, final=final))
    rows = task_rows(results, "digits_mlp-clean", range(2))
    assert {row["method"]: row["same_runs_as"] for row in rows} == {
        "shuffle": "",
        "two_stage": "",
        "importance": "shuffle",
    }
    write_report(results, tmp_path / "out", tmp_path / "training.json", range(2))
    table = (tmp_path / "out" / "digits_mlp-clean.md").read_text()
    assert "the same runs, since the method stood aside: importance and shuffle." in table


def test_seconds_of_different_sessions_are_not_compared(tmp_path):
    results = Results(tmp_path / "runs.jsonl")
    for method, session in (("shuffle", "one"), ("importance", "one"), ("two_stage", "two")):
        curve = curve_of(method, 0.1, 0, final=1.0)
        curve.session = session
        results.add(curve)
    rows = {row["method"]: row for row in task_rows(results, "digits_mlp-clean", range(1))}
    seconds = ("seconds", "seconds_to_loss", "seconds_to_loss_opened", "seconds_to_accuracy")
    assert [rows["importance"][key] for key in seconds] == pytest.approx([1.0] * 4)
    assert [rows["two_stage"][key] for key in seconds] == [None] * 4
    assert rows["two_stage"]["steps_to_loss"] == pytest.approx(1.0)


def test_whole_seconds_are_the_median_over_runs_of_the_same_rate_and_seed(tmp_path):
    results = Results(tmp_path / "runs.jsonl")
    took = {0.1: (10.0, 10.0, 10.0), 0.2: (20.0, 20.0, 20.0)}
    factors = {0.1: (1.0, 1.2, 1.3), 0.2: (1.1, 1.5, 9.0)}  # the last one's session is another
    for rate, seconds in took.items():
        for seed, (whole, factor) in enumerate(zip(seconds, factors[rate], strict=True)):
            for method, times in (("shuffle", 1.0), ("importance", factor)):
                curve = curve_of(method, rate, seed, final=1.0)
                curve.seconds[-1] = times * whole
                curve.session = "two" if times == 9.0 else "one"
                results.add(curve)
    row = next(row for row in task_rows(results, "digits_mlp-clean", range(3)) if row["method"] == "importance")
    assert [row[key] for key in ("seconds", "seconds_least", "seconds_most")] == pytest.approx([1.2, 1.0, 1.5])


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
    lost = curve_of("m", 0.1, 0, final=1.0)
    lost.losses[-1] = lost.validation = math.nan
    results.add(lost)
    results.add(curve_of("m", 0.2, 0, final=1.9))
    again = Results(tmp_path / "runs.jsonl")
    assert [curve.learning_rate for curve in again.of("digits_mlp-clean", "m", range(1))] == [0.2]
    found = again.find(("digits_mlp-clean", "m", 0.1, 0))
    assert found is not None and found.diverged
    assert headline(task_rows(again, "digits_mlp-clean", range(1))) == {}


HALF, MOST = SHORTER


def rows_of(tmp_path: Path, task: str, **finals: tuple[float, float, float]) -> list[dict]:
    """Rows of curves that rise evenly to an accuracy, in so many steps (over 100) and to so low a loss."""
    results = Results(tmp_path / "runs.jsonl")
    for method, (accuracy, length, loss) in finals.items():
        name = method.replace("_peer", " (peer)").replace("_half", HALF).replace("_most", MOST)
        curve = curve_of(name, 0.1, 0, final=loss)
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
        two_stage_half=(0.9, 0.5, 0.1),
        two_stage_most=(0.91, 0.6, 0.1),
        shuffle_half=(0.85, 0.5, 0.1),
        shuffle_most=(0.89, 0.6, 0.1),
    )
    reached = 10 * (0.898 - 0.1) / 0.8 / 10  # of a curve that rises evenly to 0.9
    assert headline(rows) == {
        "steps_mnist_mlp": pytest.approx(0.8),
        "seconds_mnist_mlp": pytest.approx(0.8),
        "seconds_mnist_mlp_opened": pytest.approx(0.8),
        "infobatch_backprops_mnist_mlp": pytest.approx(0.5),
        "infobatch_policy_backprops_mnist_mlp": pytest.approx(0.7),
        "infobatch_peer_backprops_mnist_mlp": pytest.approx(0.6),
        "shuffle_accuracy_gap_mnist_mlp_0.5": pytest.approx(-0.05),
        "shuffle_accuracy_gap_mnist_mlp_0.6": pytest.approx(-0.01),
        "two_stage_accuracy_gap_mnist_mlp_0.5": pytest.approx(0.0),
        "two_stage_accuracy_gap_mnist_mlp_0.6": pytest.approx(0.01),
        "backprops_to_accuracy_mnist_mlp_two_stage": pytest.approx(0.8 * reached),
        "backprops_to_accuracy_mnist_mlp_infobatch_peer": pytest.approx(0.6 * reached),
        "backprops_to_accuracy_mnist_mlp_shuffle": pytest.approx(reached),
    }


@pytest.mark.parametrize(("half", "most", "share"), [(0.899, 0.9, 0.5), (0.89, 0.899, 0.6), (0.89, 0.89, None)])
def test_the_shortest_run_that_is_no_worse_counts(tmp_path, half, most, share):
    finals = {"two_stage_half": (half, 0.5, 0.1), "two_stage_most": (most, 0.6, 0.1)}
    rows = rows_of(tmp_path, "cifar_cnn-clean", shuffle=(0.9, 1.0, 0.1), **finals)
    figure = headline(rows)["infobatch_backprops_cifar_cnn"]
    assert figure == (share if share is None else pytest.approx(share))


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
    assert noisy.learning_rates == (0.02, 0.05, 0.1)
    assert setup(clean, "shuffle") == setup(replace(clean, learning_rates=(9.0,)), "shuffle")
    assert len({setup(clean, "shuffle"), setup(noisy, "shuffle"), setup(replace(clean, steps=9), "shuffle")}) == 3


def test_tables_tell_what_each_method_runs_with():
    assert hyper_parameters("selective_backprop (peer)") == "beta 3", "the paper's"
    assert hyper_parameters("selective_backprop beta 1 (peer)") == "beta 1"
    assert hyper_parameters("infobatch (peer)") == hyper_parameters("infobatch") == "prune_ratio 0.5, delta 0.875"
    assert hyper_parameters("two_stage" + HALF) == hyper_parameters("two_stage")
    assert hyper_parameters("two_stage").endswith("candidates 3, mix 0.3, order random")
    assert hyper_parameters("two_stage, similar").endswith("order similar")
    assert hyper_parameters("a method of old") == ""


def test_the_committed_grid_has_what_the_headline_needs_and_only_methods_that_there_are():
    for name, conditions, methods in command.COMMITTED:
        assert name in SETTINGS
        assert set(conditions) <= set(CONDITIONS)
        assert set(methods) <= set(METHODS)
        assert "shuffle" in methods
    on_mnist = {
        c: methods for name, conditions, methods in command.COMMITTED for c in conditions if name == "mnist_mlp"
    }
    assert set(on_mnist) == {"clean", "noise40", "longtail", "dup90"}
    assert on_mnist["clean"] == METHODS


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
    everything = make_task(replace(SETTINGS["mnist_mlp"], limit=None), tmp_path)
    assert (len(everything.train), len(everything.validation)) == (25, 5), "some are spared where none are left over"


def test_a_run_is_judged_by_the_test_set_and_its_rate_by_the_validation_set(task, monkeypatch):
    wrong = Examples(task.validation.images, (task.validation.labels + 1) % 10)
    curve = train(replace(task, validation=wrong), PEERS["shuffle"](task, 0), "shuffle", learning_rate=0.1, seed=0)
    assert curve.accuracies[-1] > 0.6 > 0.3 > curve.validation


def test_the_command_notes_the_session_and_what_a_run_depends_on(task, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "make_task", lambda *_: replace(task, setting=replace(task.setting, steps=8)))
    monkeypatch.setattr(command, "running_service", lambda: nullcontext("nobody:1"))
    out = ["--out", str(tmp_path), "--json", str(tmp_path / "training.json")]
    command.main([*out, "--tasks", "digits_mlp", "--methods", "shuffle", "--seeds", "2"])
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len(runs) == 2 * len(SETTINGS["digits_mlp"].learning_rates)
    assert len({run["session"] for run in runs}) == 1
    assert {run["setup"] for run in runs} == {setup(SETTINGS["digits_mlp"], "shuffle")}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_diverges_ends_and_says_so(task, name, served: ServedService):
    curve = train(task, make_method(name, task, seed=0, address=served.address), name, learning_rate=1e6, seed=0)
    assert curve.diverged or curve.losses[-1] > curve.losses[0]
