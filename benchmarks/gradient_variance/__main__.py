"""The paper's figures: normalised variance of SG-B, SG-2B, GC and SVRG along one trajectory, and of ours.

    OMP_NUM_THREADS=1 python -m benchmarks.gradient_variance --data path/to/data \\
        --json benchmarks/results/gradient_variance.json --plot benchmarks/results/gradient_variance.png

Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning", arXiv 2007.04532. A model is trained by
SGD on shuffled batches; at points of its way, at the same weights, the variance of every estimator of the mean
gradient is computed from the true gradients of all examples. `gc` is the paper's clustering as its code has it;
`hartigan_*` are this service's partitions of 64-number sketches, drawn from at the rates of its policy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from benchmarks.gradient_variance import tasks
from benchmarks.gradient_variance.plot import draw
from benchmarks.gradient_variance.tasks import Task
from benchmarks.gradient_variance.trajectory import COORDINATES, ESTIMATORS, measure
from trainer_examples.results import write_result

TASKS: dict[str, Callable[[Path], Iterator[Task]]] = {
    "random_features": lambda _: tasks.random_features(),
    "digits_mlp": lambda _: tasks.digits_mlp(),
    "mnist_mlp": tasks.mnist_mlp,
    "mnist_cnn": tasks.mnist_cnn,
    "cifar_resnet": tasks.cifar_resnet,
}

HEADLINE_CELLS = tuple((ratio, redundancy) for ratio in (0.5, 2.0) for redundancy in (0.0, 0.9))
"""fewer and more features than examples, without and with duplicates"""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradient_variance", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="default: all whose files are there")
    parser.add_argument("--points", type=int, default=12, help="of each trajectory, at most")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with mnist/ and cifar10/")
    parser.add_argument("--json", type=Path, help="where to write the rows and the headline")
    parser.add_argument("--plot", type=Path, help="where to write the picture, PNG")
    options = parser.parse_args(arguments)
    if options.points < 1:
        parser.error(f"--points must be at least 1, got {options.points}")
    missing = {name: path for name, path in files_below(options.data).items() if not path.exists()}
    names = options.tasks or [name for name in TASKS if name not in missing and (name != "digits_mlp" or missing)]
    for name in names:
        if name in missing:
            parser.error(f"{missing[name]}: no such file; {name} reads it. random_features and digits_mlp need none")
    torch.set_num_threads(1)
    rows, titles = measure_all(names, options.points, options.data)
    write_result(options.json, name="gradient_variance", rows=rows, headline=headline_of(rows), notes=NOTES)
    if options.plot is not None:
        draw(rows, titles, options.plot)


def files_below(data: Path) -> dict[str, Path]:
    """What each task reads, where it reads anything."""
    folders = {"mnist_mlp": "mnist", "mnist_cnn": "mnist", "cifar_resnet": "cifar10"}
    return {name: data / folder / "train.parquet" for name, folder in folders.items()}


def measure_all(names: Sequence[str], points: int, data: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of all tasks, and how each is called."""
    rows, titles = [], {}
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(names))
        for name in names:
            for task in TASKS[name](data):
                titles[name] = task.title
                for row in measure(task, points):
                    rows.append({key: _rounded(value) for key, value in row.items()})
                    progress.update(bar, description=f"{name}, {len(rows)} points")
            progress.advance(bar)
    return rows, titles


NOTES = (
    "Rows: sg_b … are normalised variances, *_average average variances, both over coordinates. Headline: average "
    "variance in the second half of a run, divided by that of SG-B; SG-2B has 0.5.",
    f"Per coordinate from the exact gradients of all examples, over {COORDINATES:,} coordinates chosen at random where "
    "there are more.",
    "Draws are with replacement, closed form; one shuffled batch has (N-B)/(N-1) of SG-B.",
    "SVRG's snapshot is half an epoch old at every point; its full gradient, once an epoch, is not counted.",
    f"Images: {tasks.IMAGES} of each set or fewer, {tasks.COPIED:.0%} of them copies of {tasks.ORIGINALS} where there "
    "are duplicates, one seed. Random features: three seeds.",
)


def headline_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Average variance over that of SG-B, in the second half of a run; of the sweep, the cells in HEADLINE_CELLS."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        ratio = row["over_parametrisation"]
        if ratio is not None and (ratio, row["redundancy"]) not in HEADLINE_CELLS:
            continue
        kind = "" if ratio is None else f"_h{ratio:g}"
        runs.setdefault(f"{row['task']}{kind}_r{round(100 * row['redundancy'])}", []).append(row)
    found = {}
    for name, run in runs.items():
        late = [row for row in run if row["step"] >= max(row["step"] for row in run) / 2]
        plain = np.mean([row["sg_b_average"] for row in late])
        for estimator in ESTIMATORS[2:]:
            found[f"{name}_{estimator}"] = float(np.mean([row[f"{estimator}_average"] for row in late]) / plain)
    return found


def _rounded(value: Any) -> Any:
    """Four digits of a measurement are enough for a file that people read."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
