"""The picture in the paper's form: a panel per problem, variance over iterations on a log scale.

Shapes: x places on the horizontal axis, s seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gradient_variance.tasks import TRAJECTORY

Row = Mapping[str, Any]

STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    # the paper's colours first
    "sg_b": ("SG-B", {"color": "tab:blue"}),
    "sg_2b": ("SG-2B", {"color": "tab:orange"}),
    "gc": ("GC (paper)", {"color": "tab:red"}),
    "svrg": ("SVRG", {"color": "tab:green"}),
    "hartigan_alpha0": ("Hartigan, alpha 0 (ours)", {"color": "tab:purple", "linewidth": 2.2}),
    "hartigan_alpha50": ("Hartigan, alpha 0.5 (ours)", {"color": "black", "linewidth": 2.2, "linestyle": "--"}),
}

LEAST = 1e-12
"""of a panel's largest value: lower ones are rounding, and not drawn"""


def draw(rows: Sequence[Row], titles: Mapping[str, str], path: Path) -> None:
    """Random features over h/N, in both statistics, by duplicates; below, every task over iterations."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        sweep = _sweep_panels(rows)
        plain, redundant = _trajectory_panels(rows, titles)
        lines = [
            (label, suffix, line)
            for label, suffix, line in (
                ("average variance", "_average", sweep),
                ("normalised variance", "", sweep),
                ("normalised variance", "", plain),
                ("normalised variance", "", redundant),
            )
            if line
        ]
        columns = max(len(line) for _, _, line in lines)
        figure = Figure(figsize=(0.6 + 3.3 * columns, 0.8 + 2.6 * len(lines)), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(lines), columns, squeeze=False)
        for axes_line, (label, suffix, line) in zip(grid, lines, strict=True):
            for axes, panel in zip(axes_line, line, strict=False):
                _draw_panel(axes, suffix, *panel)
            for axes in axes_line[len(line) :]:
                axes.set_axis_off()
            axes_line[0].set_ylabel(label)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 2 * columns), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


Panel = tuple[str, str, list[Row]]
"""title, the field of x, rows"""


def _sweep_panels(rows: Sequence[Row]) -> list[Panel]:
    """Random features in the second half of their training."""
    swept = [row for row in rows if row["over_parametrisation"] is not None]
    late = [row for row in swept if row["step"] >= max(row["step"] for row in swept) / 2]
    return [
        (
            f"random features, {_duplicates(redundancy)}",
            "over_parametrisation",
            [row for row in late if row["redundancy"] == redundancy],
        )
        for redundancy in sorted({row["redundancy"] for row in swept})
    ]


def _trajectory_panels(rows: Sequence[Row], titles: Mapping[str, str]) -> tuple[list[Panel], list[Panel]]:
    """Of every task two panels: no duplicates, and its largest share of them."""
    plain, redundant = [], []
    for name, title in titles.items():
        own = [row for row in rows if row["task"] == name and row["over_parametrisation"] in (None, TRAJECTORY)]
        if not own:
            continue
        most = max(row["redundancy"] for row in own)
        if own[0]["over_parametrisation"] is not None:
            title = f"{title}, h/N = {TRAJECTORY:g}"
        for line, redundancy in ((plain, 0.0), (redundant, most)):
            chosen = [row for row in own if row["redundancy"] == redundancy]
            line.append((f"{title}, {_duplicates(redundancy)}", "step", chosen))
    return plain, redundant


def _duplicates(redundancy: float) -> str:
    return f"{redundancy:.0%} duplicates" if redundancy else "no duplicates"


def _draw_panel(axes: Any, suffix: str, title: str, field: str, rows: list[Row]) -> None:
    """Means over seeds at every x, in a band from the least to the largest of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    places = sorted({row[field] for row in rows})
    least = LEAST * max(row[name + suffix] for row in rows for name in STYLES)
    for name, (label, style) in STYLES.items():
        value_xs = np.array([_of_seeds([row for row in rows if row[field] == x], name + suffix) for x in places])
        value_xs[(value_xs <= least).any(axis=1)] = np.nan
        axes.plot(places, value_xs.mean(1), label=label, **{"linewidth": 1.6} | style)
        axes.fill_between(places, value_xs.min(1), value_xs.max(1), color=style["color"], alpha=0.1, linewidth=0)
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_yscale("log")
    lowest, highest = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 30 * lowest else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", alpha=0.25, linewidth=0.5)
    if field == "over_parametrisation":
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
        axes.axvline(1.0, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_xlabel("features / examples (h/N)")
    else:
        for refresh in {row["step"] - row["partition_age"] for row in rows}:
            axes.axvline(refresh, color="0.8", linewidth=0.8, linestyle=":", zorder=0)
        axes.set_xlim(left=0)
        axes.set_xlabel("iteration")


def _of_seeds(rows: list[Row], name: str) -> list[float]:
    """Each seed's mean over its rows."""
    seeds = sorted({row["seed"] for row in rows})
    return [float(np.mean([row[name] for row in rows if row["seed"] == seed])) for seed in seeds]
