"""What the demo shows: a table for the terminal and a plot. `runs` are {policy: its curves, one per seed}."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from trainer_examples.comparison import Curve
from trainer_examples.results import new_table

Runs = Mapping[str, Sequence[Curve]]

COLOURS = {
    "shuffle": "#444444",
    "gradient_clustering": "#0072b2",
    "importance": "#d55e00",
    "infobatch": "#009e73",
    "selective_backprop": "#cc79a7",
    "rho_loss": "#e69f00",
}
"""Okabe and Ito's, told apart by the colour-blind"""


def target_of(runs: Runs) -> float:
    """The full-set training loss that shuffling ends at, whatever the seed: late in its worst run."""
    return max(curve.late_loss for curve in runs["shuffle"])


def table_of(title: str, runs: Runs, target: float) -> Table:
    """A row per policy; medians over the seeds. Best cells are bold."""
    table = new_table(title, "policy", "steps", "seconds", "loss", "accuracy", "seen", "ratio", "active")
    rows = {policy: _row(curves, target) for policy, curves in runs.items()}
    best = {
        "steps": min((row["steps"] for row in rows.values()), key=_nan_last),
        "seconds": min((row["seconds"] for row in rows.values()), key=_nan_last),
        "loss": min(row["loss"] for row in rows.values()),
        "accuracy": max(row["accuracy"] for row in rows.values()),
        "seen": min(row["seen"] for row in rows.values()),
    }
    for policy, row in rows.items():
        cells = [_cell(name, value, bold=value == best.get(name)) for name, value in row.items()]
        table.add_row(policy, *cells)
    return table


def notes_of(runs: Runs) -> list[str]:
    """Why policies stood aside, each with an example of the service's own words."""
    notes: list[str] = []
    for policy, curves in runs.items():
        aside = [curve.steps[-1] - curve.steps_active for curve in curves]
        if policy == "shuffle" or not any(aside):
            continue
        first, last = curves[0].reasons[:1], curves[0].reasons[1:][-1:]
        words = "; later ".join(reason.removeprefix("shuffle: ") for reason in [*first, *last])
        notes.append(
            f"{policy} shuffled for {np.median(aside):.0f} of {curves[0].steps[-1]} steps: {words or 'unknown'}"
        )
    return notes


def _row(curves: Sequence[Curve], target: float) -> dict[str, float]:
    reached = np.array([curve.reach(target) for curve in curves])
    # A seed that never reached the target counts as infinitely late, so that the median stays honest.
    steps, seconds = np.median(np.nan_to_num(reached, nan=math.inf), axis=0)
    ratios = [curve.variance_ratio for curve in curves if not math.isnan(curve.variance_ratio)]
    return {
        "steps": float(steps),
        "seconds": float(seconds),
        "loss": float(np.median([curve.late_loss for curve in curves])),
        "accuracy": float(np.median([curve.accuracy for curve in curves])),
        "seen": float(np.median([curve.examples for curve in curves])),
        "ratio": float(np.median(ratios)) if ratios else math.nan,
        "active": float(np.median([curve.steps_active / max(1, curve.steps[-1]) for curve in curves])),
    }


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _cell(name: str, value: float, *, bold: bool) -> str:
    if math.isinf(value):
        return "never"
    if math.isnan(value):
        return "-"
    form = {"steps": ",.0f", "seen": ",.0f", "accuracy": ".1%", "active": ".0%", "loss": ".4f"}.get(name, ".2f")
    return f"[bold]{value:{form}}[/bold]" if bold else f"{value:{form}}"


def save_plot(scenarios: Mapping[str, Runs], path: Path) -> None:
    """Full-set training loss against steps and against seconds; a row of panels per scenario.

    Lines are means of the logarithms over the seeds; shades span the seeds.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 0.6 + 3.5 * len(scenarios)), layout="constrained")
        FigureCanvasAgg(figure)
        rows = figure.subplots(len(scenarios), 2, squeeze=False, sharey="row")
        for (name, runs), (by_step, by_second) in zip(scenarios.items(), rows, strict=True):
            target = target_of(runs)
            for policy, curves in runs.items():
                _draw(by_step, by_second, policy, curves)
            for axes in (by_step, by_second):
                axes.axhline(target, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)))
                axes.set_yscale("log")
                axes.set_xlim(left=0)
                axes.grid(alpha=0.25, linewidth=0.5)
            by_step.set_title(name, loc="left", fontweight="bold")
            by_step.set_ylabel("loss over the whole training set")
            by_step.annotate(
                "target: where shuffle ends",
                (0.01, target),
                xycoords=("axes fraction", "data"),
                xytext=(0, -3),
                textcoords="offset points",
                va="top",
                color="#777777",
                fontsize=7.5,
            )
            by_step.set_xlabel("steps")
            by_second.set_xlabel("seconds, service included, evaluation not")
        handles, labels = rows[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _draw(by_step: Any, by_second: Any, policy: str, curves: Sequence[Curve]) -> None:
    """One policy's line in both panels."""
    loss = np.log([curve.losses for curve in curves])
    low, middle, high = np.exp(loss.min(0)), np.exp(loss.mean(0)), np.exp(loss.max(0))
    steps, seconds = curves[0].steps, np.mean([curve.seconds for curve in curves], axis=0)
    plain = policy == "shuffle"
    for axes, x in ((by_step, steps), (by_second, seconds)):
        axes.fill_between(x, low, high, color=COLOURS.get(policy), alpha=0.08, linewidth=0)
        axes.plot(
            x, middle, label=policy, color=COLOURS.get(policy), linewidth=2.2 if plain else 1.6,
            linestyle="--" if plain else "-", zorder=3 if plain else 2,
        )  # fmt: skip
