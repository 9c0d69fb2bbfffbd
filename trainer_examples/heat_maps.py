"""Heat maps of losses: what `multiplicative.py` draws.

Shapes: rows x columns of panels, each of down x across cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Losses = Sequence[Sequence[float]]
"""(down, across); infinite ones are left blank"""
Axis = tuple[str, Sequence[str]]
"""its name, and what its places are called"""

FRAME = "#e69f00"


def save_heat_maps(
    panels: Mapping[tuple[str, str], Losses], path: Path, *, across: Axis, down: Axis, value: str
) -> None:
    """Losses, darker where lower, in a grid of panels with one scale of colours; each one's lowest is framed.

    Args:
        panels: the losses of {(row, column)}; both are called so.
        path: of the picture; its folder is made.
        value: what is shown.
    """
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 8}):
        figure = heat_maps(panels, across=across, down=down, value=value)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def heat_maps(panels: Mapping[tuple[str, str], Losses], *, across: Axis, down: Axis, value: str) -> Figure:
    """What `save_heat_maps` saves; its first axes are those of the panels, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    rows, columns = (list(dict.fromkeys(names)) for names in zip(*panels, strict=True))
    known = [loss for panel in panels.values() for row in panel for loss in row if math.isfinite(loss)]
    norm = LogNorm(max(min(known), 1e-3), min(max(known), 10.0), clip=True)
    figure = Figure(figsize=(1 + 2.9 * len(columns), 0.8 + 1.75 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    image: Any = None
    for (row, column), losses in panels.items():
        at = axes[rows.index(row), columns.index(column)]
        image = _draw(at, losses, norm)
        at.set_xticks(range(len(across[1])), across[1])
        at.set_yticks(range(len(down[1])), down[1])
        at.tick_params(length=0)
        at.spines[:].set_visible(False)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, fontweight="bold")
    for axis, name in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(name, fontweight="bold")
    figure.supxlabel(across[0], fontsize=8)
    figure.supylabel(down[0], fontsize=8)
    bar = figure.colorbar(image, ax=axes, label=value, shrink=0.6, pad=0.01, extend="both", format="%g")
    bar.outline.set_visible(False)
    return figure


def _draw(axes: Any, losses: Losses, norm: Any) -> Any:
    """One panel: colours, numbers, and a frame around the lowest."""
    from matplotlib.patches import Rectangle

    image = axes.imshow(np.ma.masked_invalid(losses), norm=norm, cmap="cividis", aspect="auto")
    for (y, x), loss in np.ndenumerate(np.asarray(losses)):
        ink = "black" if norm(loss) > 0.5 else "white"
        axes.text(x, y, _short(loss), ha="center", va="center", fontsize=5.5, color=ink)
    y, x = np.unravel_index(np.argmin(losses), np.shape(losses))
    corner = (float(x) - 0.5, float(y) - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=FRAME, linewidth=1.4))
    return image


def _short(loss: float) -> str:
    if math.isinf(loss):
        return ""
    return ">999" if loss > 999 else f"{loss:.0f}" if loss >= 10 else f"{loss:.2g}" if loss >= 0.001 else "<.001"
