"""What benchmarks and examples write: rows, headline figures, and the machine and versions they were measured on."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_PACKAGES = ("numpy", "faiss-cpu", "faiss-gpu", "torch", "ray", "grpcio", "scikit-learn")


def write_result(
    path: Path | None,
    *,
    name: str,
    rows: list[dict[str, Any]],
    headline: Mapping[str, float | None],
    notes: Sequence[str] = (),
) -> None:
    """Print the headline and, unless `path` is None, write everything as JSON.

    Args:
        rows: one dict per measurement, plain numbers and strings.
        headline: the few figures the README quotes, by name; None where a figure has no value.
        notes: what a reader must know to compare the figures, one sentence each.
    """
    table = new_table(name, "headline", "value")
    for figure, value in headline.items():
        table.add_row(figure, "-" if value is None else f"{value:.4g}")
    console = Console()
    console.print(table)
    for note in notes:
        console.print(f"- {note}")
    if path is None:
        return
    result = {
        "name": name,
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
        "headline": dict(headline),
        "notes": list(notes),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    console.print(f"written to {path}")


def new_table(title: str, *headings: str, left: int = 1, wrap: bool = False) -> Table:
    """A table to add rows to: the first `left` columns hold words, the others figures.

    Args:
        wrap: figures may be on several lines where the terminal is too narrow; without it words alone may.
    """
    table = Table(
        title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD,
        collapse_padding=True, pad_edge=False,
    )  # fmt: skip
    for i, heading in enumerate(headings):
        words = i < left
        table.add_column(heading, justify="left" if words else "right", no_wrap=not (words or wrap))
    return table


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the deviation of a sample: how far one run is from another, 0 of a single one."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def machine() -> dict[str, str | int]:
    """Processor, cores this process may use, and system."""
    return {"processor": _processor(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()}


def versions() -> dict[str, str]:
    """Python's version and those of the packages that are installed."""
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
