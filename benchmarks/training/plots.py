"""Curves of one task: training loss over steps and over seconds, and test error over seconds.

Shapes: s seeds, e evaluations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.training.loop import Curve

_PANELS = (
    # x, y, label of y
    ("steps", "losses", "training loss"),
    ("seconds", "losses", "training loss"),
    ("seconds", "errors", "test error"),
)

_COLORS = {
    # a policy and its peer share a colour; after Okabe and Ito, who chose them for the colour-blind
    "shuffle": "#000000",
    "two_stage": "#d55e00",
    "presampling": "#e69f00",
    "infobatch": "#009e73",
    "kakurenbo": "#88c946",
    "importance": "#0072b2",
    "selective_backprop": "#cc79a7",
    "selective_backprop beta 1": "#8c564b",
    "rho_loss": "#7f7f7f",
    "gradient_clustering": "#56b4e9",
    "auto": "#6a00d5",
}
_WIDE = ("shuffle", "two_stage", "auto")

_LONGEST = 3.0
"""seconds are shown to so many times those of shuffle's run"""


def draw_task(losses: dict[str, list[Curve]], errors: dict[str, list[Curve]], task: str, path: Path) -> None:
    """One line for each method, the median over its seeds in a band from lowest to highest; none for diverged runs.

    Args:
        losses: by method, its runs at the learning rate that is best for the training loss.
        errors: the same for accuracy.
        task: its name, for the title.
        path: of the PNG.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = plt.subplots(1, 3, figsize=(17, 6), layout="constrained")
    shown = [losses if y == "losses" else errors for _, y, _ in _PANELS]
    for method in losses:
        style = _style(method)
        for axis, curves, (x, y, _) in zip(axes, shown, _PANELS, strict=True):
            sound = [run for run in curves[method] if not run.diverged]
            if not sound:
                continue
            x_se, y_se = _values(sound, x), _values(sound, y)
            place_e = np.median(x_se, axis=0)
            axis.plot(place_e, np.median(y_se, axis=0), label=method, **style)
            axis.fill_between(place_e, y_se.min(0), y_se.max(0), color=style["color"], alpha=0.12, linewidth=0)
    for axis, curves, (x, y, label) in zip(axes, shown, _PANELS, strict=True):
        baseline = [run for run in curves["shuffle"] if not run.diverged]
        axis.set(xlabel=x, ylabel=label, yscale="log")
        axis.grid(which="both", alpha=0.2)
        if y == "errors":
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
            axis.yaxis.set_minor_formatter(NullFormatter())
        if baseline:
            end = np.mean(_values(baseline, x)[:, -1])
            axis.axhline(float(np.mean(_values(baseline, y)[:, -1])), color="black", linewidth=0.8, alpha=0.5)
            axis.set_xlim(0, min(axis.get_xlim()[1], float(_LONGEST * end)))
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside right center", frameon=False)
    seeds = max((len(runs) for runs in losses.values()), default=0)
    figure.suptitle(
        f"{task}: median and range over seeds ({seeds}), each method at its best learning rate; dashed: "
        "peers, in process; dash-dotted: variants; thin line: where shuffle ends"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _style(method: str) -> dict[str, Any]:
    family = method.replace(" (peer)", "").replace(" (service)", "").partition(", ")[0]
    return {
        "color": _COLORS.get(family, "tan"),
        "linewidth": 2.4 if method in _WIDE else 1.4,
        "linestyle": "--" if "(peer)" in method else ":" if "(service)" in method else "-." if "," in method else "-",
        "zorder": 3 if method in _WIDE else 2,
    }


def _values(runs: list[Curve], axis: str) -> NDArray[np.float64]:
    """(s, e) values of all runs after the untrained model's, as many evaluations as the shortest has."""
    length = min(len(run.steps) for run in runs)
    if axis == "errors":
        # On a log scale there is no zero: none wrong is drawn as one in a hundred thousand.
        return np.maximum(1 - np.array([run.accuracies[1:length] for run in runs]), 1e-5)
    return np.array([getattr(run, axis)[1:length] for run in runs], np.float64)
