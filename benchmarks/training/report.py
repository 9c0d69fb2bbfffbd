"""Tables, plots and headline figures of the runs that are there. Nothing is trained here.

Shapes: s seeds of one method.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from benchmarks.training.cells import Results, for_accuracy, for_loss
from benchmarks.training.headline import NOTES, POINTS, headline
from benchmarks.training.loop import Curve
from benchmarks.training.methods import hyper_parameters
from trainer_examples.results import write_result

BASELINE = "shuffle"


def write_report(results: Results, out: Path, json_path: Path, seeds: range) -> None:
    """Write `out`/TASK.md and TASK.png for every task, and the headline to `json_path`."""
    from benchmarks.training.plots import draw_task

    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for task in results.tasks():
        table = task_rows(results, task, seeds)
        if not table:
            continue
        rows += table
        (out / f"{task}.md").write_text(_markdown(task, table))
        methods = [row["method"] for row in table]
        losses = {method: results.of(task, method, seeds, for_loss) for method in methods}
        errors = {method: results.of(task, method, seeds) for method in methods}
        draw_task(losses, errors, task, out / f"{task}.png")
    write_result(json_path, name="training", rows=rows, headline=headline(rows), notes=(*_NOTES, *NOTES))


def task_rows(results: Results, task: str, seeds: range) -> list[dict[str, Any]]:
    """One row for each method: means over the seeds with their standard deviation for what runs end with, medians for
    where something is first reached, which a run may never do.

    Each method and shuffle are compared twice: by training loss at the rates that are best for it (`loss_rate`,
    `final_loss`, `…_to_loss…`, `fitted_accuracy_gap`), and by the rest at those that are best for accuracy.
    What is reached is over shuffle's whole run (`…_to_loss`, its final training loss; `…_of_run`) or over what
    shuffle itself needs to get there (`…_to_accuracy`); `seconds`, `forwarded` and `backpropagated` are of whole runs.
    Seconds of runs that were made in another session than shuffle's are left out; `seconds` is the median of the ratios
    to shuffle's run of the same rate and seed, over all rates. `same_runs_as` names the method whose
    runs these are, step by step, where one stood aside throughout: the two are one measurement.
    """
    baseline, fitted_baseline = (results.of(task, BASELINE, seeds, merit) for merit in (for_accuracy, for_loss))
    if not baseline:
        return []
    rows, first_with = [], dict[tuple[Any, ...], str]()
    for method in results.methods(task):
        curves, fitted = (results.of(task, method, seeds, merit) for merit in (for_accuracy, for_loss))
        if curves:
            rates = results.searched(task, method, seeds)
            first = first_with.setdefault(_course(rates), method)
            about = {
                "task": task,
                "method": method,
                "hyper_parameters": hyper_parameters(method),
                "seeds": len(curves),
                "rates": sorted(rates),
                "same_runs_as": "" if first == method else first,
                "learning_rate": curves[0].learning_rate,
                "rate_at_edge": _at_edge(curves[0].learning_rate, rates),
                "loss_rate": fitted[0].learning_rate,
                "loss_rate_at_edge": _at_edge(fitted[0].learning_rate, rates),
                "diverged": sum(curve.diverged for curve in curves),
            }
            by_loss = _by_loss(fitted, fitted_baseline, accuracy=_final(baseline, "accuracies"))
            compared = by_loss | _by_accuracy(curves, baseline)
            compared |= _whole_seconds(rates, results.searched(task, BASELINE, seeds))
            rows.append(about | {key: _finite(value) for key, value in compared.items()})
    return rows


def _course(rates: Mapping[float, Sequence[Curve]]) -> tuple[Any, ...]:
    """What runs went through, clocks aside."""
    return tuple(
        (rate, tuple(curve.losses), tuple(curve.accuracies)) for rate in sorted(rates) for curve in rates[rate]
    )


def _at_edge(rate: float, rates: Collection[float]) -> bool:
    return len(rates) > 2 and rate in (min(rates), max(rates))


def _by_loss(curves: Sequence[Curve], baseline: Sequence[Curve], *, accuracy: float) -> dict[str, float]:
    loss, steps, seconds = _final(baseline, "losses"), _final(baseline, "steps"), _seconds(curves, baseline)
    reached = [curve.first("steps", loss=loss) / steps for curve in curves]
    opened = [curve.first("seconds", loss=loss) + _opening(curve) for curve in curves]
    return {
        "final_loss": _final(curves, "losses"),
        "final_loss_spread": _spread(curves, "losses"),
        "steps_to_loss": _over(_reach(curves, "steps", loss=loss), steps),
        "steps_to_loss_least": min(reached),
        "steps_to_loss_most": max(reached),
        "seconds_to_loss": _over(_reach(curves, "seconds", loss=loss), seconds),
        "seconds_to_loss_opened": _over(median(opened), seconds + mean(_opening(curve) for curve in baseline)),
        "fitted_accuracy_gap": _final(curves, "accuracies") - accuracy,
    }


def _by_accuracy(curves: Sequence[Curve], baseline: Sequence[Curve]) -> dict[str, float]:
    accuracy = _final(baseline, "accuracies")
    goal = accuracy - POINTS
    steps, backprops = _final(baseline, "steps"), _final(baseline, "backpropagated")
    seconds = _seconds(curves, baseline)

    def to_goal(axis: str, whole: float | None = None) -> float:
        return _over(
            _reach(curves, axis, accuracy=goal), _reach(baseline, axis, accuracy=goal) if whole is None else whole
        )

    return {
        "accuracy": _final(curves, "accuracies"),
        "accuracy_spread": _spread(curves, "accuracies"),
        "accuracy_gap": _final(curves, "accuracies") - accuracy,
        "steps_to_accuracy": to_goal("steps"),
        "seconds_to_accuracy": math.nan if math.isnan(seconds) else to_goal("seconds"),
        "backprops_to_accuracy": to_goal("backpropagated"),
        "steps_to_accuracy_of_run": to_goal("steps", steps),
        "backprops_to_accuracy_of_run": to_goal("backpropagated", backprops),
        "forwarded": _over(_final(curves, "forwarded"), backprops),
        "backpropagated": _over(_final(curves, "backpropagated"), backprops),
        "opening_s": median(_opening(curve) for curve in curves),
    }


def _whole_seconds(
    rates: Mapping[float, Sequence[Curve]], baseline: Mapping[float, Sequence[Curve]]
) -> dict[str, float]:
    """Of a run over those of the baseline's at the same rate with the same seed, if both were made in one session: what
    a step costs does not depend on the rate."""
    pairs = [pair for rate in rates.keys() & baseline.keys() for pair in zip(rates[rate], baseline[rate], strict=True)]
    ratios = [_over(c.seconds[-1], b.seconds[-1]) for c, b in pairs if c.session == b.session] or [math.nan]
    return {"seconds": median(ratios), "seconds_least": min(ratios), "seconds_most": max(ratios)}


def _seconds(curves: Sequence[Curve], baseline: Sequence[Curve]) -> float:
    """Of the baseline's run, NaN where it was made in another session."""
    together = [curve.session for curve in curves] == [curve.session for curve in baseline]
    return _final(baseline, "seconds") if together else math.nan


def _opening(curve: Curve) -> float:
    return curve.notes.get("opening_s", 0.0)


def _final(curves: Sequence[Curve], axis: str) -> float:
    values = [getattr(curve, axis)[-1] for curve in curves]
    return mean(math.inf if value is None or math.isnan(value) else float(value) for value in values)


def _spread(curves: Sequence[Curve], axis: str) -> float:
    """Standard deviation over the seeds, of a sample."""
    values = [float(getattr(curve, axis)[-1]) for curve in curves if not curve.diverged]
    return stdev(values) if len(values) > 1 else math.nan


def _reach(curves: Sequence[Curve], axis: str, *, loss: float | None = None, accuracy: float | None = None) -> float:
    return median(curve.first(axis, loss=loss, accuracy=accuracy) for curve in curves)


def _over(value: float, whole: float) -> float:
    return value / whole if whole > 0 else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


_COLUMNS = {
    "method": "method",
    "loss_rate": "lr",
    "final_loss": "training loss",
    "final_loss_spread": "±",
    "steps_to_loss": "steps to shuffle's loss",
    "steps_to_loss_least": "least",
    "steps_to_loss_most": "most",
    "seconds_to_loss": "seconds to it",
    "seconds_to_loss_opened": "with opening",
    "fitted_accuracy_gap": "points over shuffle's accuracy",
    "learning_rate": "lr",
    "accuracy": "test accuracy",
    "accuracy_spread": "±",
    "steps_to_accuracy": "steps to shuffle's accuracy",
    "backprops_to_accuracy": "backprops to it",
    "seconds": "seconds",
    "forwarded": "forwarded",
    "backpropagated": "backprops",
    "diverged": "diverged",
    "hyper_parameters": "with",
}


_EDGES = {"loss_rate": "loss_rate_at_edge", "learning_rate": "rate_at_edge"}


def _markdown(task: str, rows: list[dict[str, Any]]) -> str:
    seeds = {row["seeds"] for row in rows}
    rates = sorted({rate for row in rows for rate in row["rates"]})
    same = [f"{row['method']} and {row['same_runs_as']}" for row in rows if row["same_runs_as"]]
    lines = [
        f"# {task}",
        "",
        f"{' or '.join(map(str, sorted(seeds)))} seeds: means of losses and accuracies with their standard deviation",
        "(±), medians of where something is first reached. What follows the first learning rate is at that with the",
        "lowest training loss, what follows the second one at that with the best accuracy on a validation set (* the",
        "lowest or highest of more than two). Steps and seconds to shuffle's final training loss are over its whole",
        "run, those to its accuracy (0.2 points below its final one) over its own. Forwarded and backprops: examples",
        "of whole runs over those that shuffle trains on; seconds: of whole runs over shuffle's of the same rate and",
        "seed, the median over all rates. A dash was never reached, or are seconds of another session than shuffle's.",
        "Accuracies are means over the classes. Opening a run through the service counts only where it says so.",
        "",
        f"Learning rates tried: {', '.join(f'{rate:g}' for rate in rates)}.",
        "",
        *([f"Step by step the same runs, since the method stood aside: {'; '.join(same)}.", ""] if same else []),
        "| " + " | ".join(_COLUMNS.values()) + " |",
        "| --- |" + " ---: |" * (len(_COLUMNS) - 2) + " --- |",
    ]
    lines += ["| " + " | ".join(_cell(row, key) for key in _COLUMNS) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if value is None:
        return "-"
    if key in _EDGES:
        return f"{value:g}{'*' if row[_EDGES[key]] else ''}"
    if key == "accuracy":
        return f"{value:.2%}"
    if key == "accuracy_spread":
        return f"{100 * value:.2f}"
    if key == "fitted_accuracy_gap":
        return f"{100 * value:+.2f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


_NOTES = (
    "every method runs at its own best learning rate: all rates run with all seeds. Figures of training losses are at "
    "the one with the lowest mean final training loss, all others at the one with the highest mean accuracy on a "
    "validation set, which is neither trained nor tested on; the other hyper-parameters are the papers' or our "
    "defaults, `hyper_parameters` in the rows",
    "the service's policies run through a real service in processes of its own on the same cores, with ahead=16; peers "
    "run in process",
    "seconds run from the first batch asked for, without evaluations; opening a run takes opening_s more, in "
    "`seconds_to_loss_opened`. Reports under way are waited for before each evaluation, on the clock; up to 16 batches "
    "may be planned during one, and clusters made, which favours the service where steps take a millisecond",
    "passes that only score run in bfloat16 where the processor computes in it, ours and the peers'",
    "OpenMP threads of every method wait without spinning: a trainer that spins beside a service takes twice as long",
    "the bounds of trimmed_loss and of auto's look at wrong labels were chosen on this MNIST subset with 20 and 40 % "
    "wrong labels, and on digits, with other seeds: their figures under label noise are of a case they were made for",
)
