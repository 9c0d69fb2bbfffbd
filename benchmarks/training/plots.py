"""Curves of one task: training loss over steps and over seconds, and accuracy over seconds.

Shapes: s seeds, e evaluations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.training.loop import Curve

_STYLES = {"shuffle": {"color": "black", "linewidth": 2.2}, "two_stage": {"linewidth": 2.2}}


def draw_task(curves: dict[str, list[Curve]], task: str, path: Path) -> None:
    """One line for each method, the median over its seeds; those that diverged are left out."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 5), constrained_layout=True)
    panels = (
        ("steps", "losses", "training loss"),
        ("seconds", "losses", ""),
        ("seconds", "accuracies", "test accuracy"),
    )
    colors = iter(plt.get_cmap("tab20").colors)  # pyright: ignore[reportAttributeAccessIssue]
    for method, runs in curves.items():
        sound = [run for run in runs if not run.diverged]
        if not sound:
            continue
        style = {"color": next(colors), "linewidth": 1.2} | _STYLES.get(method, {})
        if "(peer)" in method:
            style["linestyle"] = "--"
        for axis, (x, y, _) in zip(axes, panels, strict=True):
            length = min(len(run.steps) for run in sound)
            middle = [np.median([getattr(run, name)[:length] for run in sound], axis=0) for name in (x, y)]
            axis.plot(*middle, label=method, **style)
    for axis, (x, y, label) in zip(axes, panels, strict=True):
        axis.set_xlabel(x)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if y == "losses":
            axis.set_yscale("log")
    axes[2].legend(fontsize=8, loc="lower right")
    figure.suptitle(f"{task}: median over seeds, each method at its best learning rate; dashed: peers in process")
    figure.savefig(path, dpi=110)
    plt.close(figure)
