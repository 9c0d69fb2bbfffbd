"""Tables, plots and headline figures of the runs that are there. Nothing is trained here.

Shapes: s seeds of one method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.common import write_result
from benchmarks.training.cells import Results
from benchmarks.training.loop import Curve

BASELINE = "shuffle"
POINTS = 0.002
"""0.2 points of accuracy: what counts as no worse"""

LOSSLESS = ("infobatch", "two_stage", "gradient_clustering", "importance")
ROBUST = ("two_stage", "importance", "gradient_clustering")


def write_report(results: Results, out: Path, json_path: Path, seeds: range) -> None:
    """Write `out`/TASK.md and TASK.png for every task, and the headline to `json_path`."""
    from benchmarks.training.plots import draw_task

    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for task in results.tasks():
        table = task_rows(results, task, seeds)
        if not table:
            continue
        rows += table
        (out / f"{task}.md").write_text(_markdown(task, table, len(seeds)))
        draw_task({m: results.of(task, m, seeds) for m in results.methods(task)}, task, out / f"{task}.png")
    write_result(json_path, name="training", rows=rows, headline=headline(results, seeds), notes=_NOTES)


def task_rows(results: Results, task: str, seeds: range) -> list[dict[str, object]]:
    """One row for each method: medians over the seeds, and the spread of what they are judged by."""
    baseline = results.of(task, BASELINE, seeds)
    if not baseline:
        return []
    loss, accuracy = _final(baseline, "losses"), _final(baseline, "accuracies")
    steps, seconds, backprops = (_final(baseline, axis) for axis in ("steps", "seconds", "backpropagated"))
    rows = []
    for method in results.methods(task):
        curves = results.of(task, method, seeds)
        if not curves:
            continue
        rows.append(
            {
                "task": task,
                "method": method,
                "seeds": len(curves),
                "learning_rate": curves[0].learning_rate,
                "diverged": sum(curve.diverged for curve in curves),
                "final_loss": _final(curves, "losses"),
                "final_loss_spread": _spread(curves, "losses"),
                "accuracy": _final(curves, "accuracies"),
                "accuracy_spread": _spread(curves, "accuracies"),
                "steps_to_loss": _reach(curves, "steps", loss=loss) / steps,
                "seconds_to_loss": _reach(curves, "seconds", loss=loss) / seconds,
                "steps_to_accuracy": _reach(curves, "steps", accuracy=accuracy - POINTS) / steps,
                "backprops_to_accuracy": _reach(curves, "backpropagated", accuracy=accuracy - POINTS) / backprops,
                "seconds": _final(curves, "seconds") / seconds,
                "forwarded": _final(curves, "forwarded") / backprops,
                "backpropagated": _final(curves, "backpropagated") / backprops,
            }
        )
    return [{key: _finite(value) for key, value in row.items()} for row in rows]


def headline(results: Results, seeds: range) -> dict[str, float]:
    """The figures that are followed over time, those whose runs are there."""
    found: dict[str, float] = {}
    rows = {(row["task"], row["method"]): row for task in results.tasks() for row in task_rows(results, task, seeds)}

    def put(name: str, value: object) -> None:
        if isinstance(value, float) and math.isfinite(value):
            found[name] = value

    mnist = rows.get(("mnist_mlp-clean", "two_stage"), {})
    put("steps_mnist_mlp", mnist.get("steps_to_loss"))
    put("seconds_mnist_mlp", mnist.get("seconds_to_loss"))
    for task in ("mnist_mlp-clean", "mnist_cnn-clean", "cifar_cnn-clean"):
        shares = {m: rows[task, m]["backprops_to_accuracy"] for m in LOSSLESS if (task, m) in rows}
        known = {m: v for m, v in shares.items() if isinstance(v, float)}
        if known:
            put(f"infobatch_backprops_{task.split('-')[0]}", min(known.values()))
        peer = rows.get((task, "infobatch (peer)"), {})
        put(f"infobatch_peer_{task.split('-')[0]}", peer.get("backprops_to_accuracy"))
    noise = {
        m: rows["mnist_mlp-noise40", m]["accuracy"] for m in (BASELINE, *ROBUST) if ("mnist_mlp-noise40", m) in rows
    }
    robust = [value for method, value in noise.items() if method != BASELINE and isinstance(value, float)]
    if robust and isinstance(noise.get(BASELINE), float):
        put("noise40_accuracy", max(robust) - noise[BASELINE])  # pyright: ignore[reportOperatorIssue]
    longtail = [rows.get(("mnist_mlp-longtail", m), {}).get("steps_to_accuracy") for m in LOSSLESS]
    reached = [value for value in longtail if isinstance(value, float)]
    if reached:
        put("longtail_steps", min(reached))
    return found


def _final(curves: Sequence[Curve], axis: str) -> float:
    values = [getattr(curve, axis)[-1] for curve in curves]
    return median(math.inf if value is None or math.isnan(value) else float(value) for value in values)


def _spread(curves: Sequence[Curve], axis: str) -> float:
    values = [float(getattr(curve, axis)[-1]) for curve in curves if not curve.diverged]
    return max(values) - min(values) if values else math.nan


def _reach(curves: Sequence[Curve], axis: str, *, loss: float | None = None, accuracy: float | None = None) -> float:
    return median(curve.first(axis, loss=loss, accuracy=accuracy) for curve in curves)


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


_COLUMNS = {
    "method": "method",
    "learning_rate": "lr",
    "final_loss": "training loss",
    "final_loss_spread": "spread",
    "accuracy": "test accuracy",
    "accuracy_spread": "spread",
    "steps_to_loss": "steps to shuffle's loss",
    "seconds_to_loss": "seconds to it",
    "backprops_to_accuracy": "backprops to shuffle's accuracy",
    "seconds": "seconds, whole run",
    "forwarded": "forwarded",
    "backpropagated": "backpropagated",
}


def _markdown(task: str, rows: list[dict[str, object]], seeds: int) -> str:
    lines = [
        f"# {task}",
        "",
        f"Medians over {seeds} seeds at each method's best learning rate; spread is highest minus lowest. Steps,",
        "seconds and examples are over those of the whole shuffled run; a dash was never reached.",
        "",
        "| " + " | ".join(_COLUMNS.values()) + " |",
        "| --- |" + " ---: |" * (len(_COLUMNS) - 1),
    ]
    lines += ["| " + " | ".join(_cell(row[key]) for key in _COLUMNS) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


_NOTES = (
    "every method runs at its own best learning rate, searched on a seed that is not counted",
    "the service's policies run through a real service in processes of its own on the same cores; peers run in process",
    "seconds run from the first batch asked for, without evaluations; opening a run of the service takes 1 to 3 s more",
)
