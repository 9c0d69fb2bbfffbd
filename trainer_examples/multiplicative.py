"""Plain, multiplicative and hybrid updates over learning rates and initialisations, as heat maps of the final loss.

    python -m trainer_examples.multiplicative                             # scikit-learn's digits, some minutes
    python -m trainer_examples.multiplicative --plot docs/images/multiplicative.png --json out.json

One learning rate means for each rule what its steps are proportional to: eta for the plain rule, eta_out for the
multiplicative one, and both, blended half and half, for the hybrid. The claim to look at is that the new rules are less
sensitive to it and to the initialisation, whose scale is a factor on PyTorch's own. eta_in, which plain updates have no
counterpart of, is chosen for each optimiser and rule of `ETAS_IN`, at each one's best cell and by another seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adagrad, Adam, Optimizer, RMSprop

from sampler_client.optim import Multiplicative
from trainer_examples.data import ImageData, load
from trainer_examples.heat_maps import save_heat_maps
from trainer_examples.models import accuracy, full_loss, mlp
from trainer_examples.results import new_table, write_result
from trainer_examples.tuning import TUNING_SEED

BATCH = 64
WIDTH = 64  # of the hidden layer
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9)
SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the initialisation
ETAS_IN = (1.0, 10.0, 100.0, 1000.0)
BLENDS = {"plain": 0.0, "multiplicative": 1.0, "hybrid": 0.5}
REACHED = 0.1
"""a training loss, in nats, below which a cell counts as trained"""

OPTIMIZERS: dict[str, Callable[[Any, float], Optimizer]] = {
    "SGD": lambda parameters, rate: SGD(parameters, lr=rate),
    "momentum": lambda parameters, rate: SGD(parameters, lr=rate, momentum=0.9),
    "Adagrad": lambda parameters, rate: Adagrad(parameters, lr=rate),
    "RMSprop": lambda parameters, rate: RMSprop(parameters, lr=rate),
    "Adam": lambda parameters, rate: Adam(parameters, lr=rate),
}

console = Console()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Of a heat map."""

    optimizer: str
    rule: str
    rate: float
    scale: float
    eta_in: float
    """means nothing to the plain rule"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    cell: Cell
    seed: int
    loss: float
    """in nats, over the training set after the last step; infinite when it was not finite on the way"""
    accuracy: float
    """on the test images"""


def train(cell: Cell, data: ImageData, steps: int, seed: int) -> Run:
    torch.manual_seed(seed)
    images, labels = data.train.tensors
    model = mlp(images[0].numel(), data.num_classes, width=WIDTH)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= cell.scale
    optimizer = OPTIMIZERS[cell.optimizer](model.parameters(), cell.rate)
    if cell.rule != "plain":
        optimizer = Multiplicative(optimizer, eta_out=cell.rate, eta_in=cell.eta_in, blend=BLENDS[cell.rule])

    places = torch.cat([torch.randperm(len(images)) for _ in range(1 + steps * BATCH // len(images))])
    for at in places[: steps * BATCH].split(BATCH):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[at]), labels[at])
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if not (loss.isfinite() and norm.isfinite()):
            return Run(cell=cell, seed=seed, loss=math.inf, accuracy=math.nan)
        optimizer.step()
    loss = full_loss(model, data.train)
    return Run(
        cell=cell, seed=seed, loss=loss if math.isfinite(loss) else math.inf, accuracy=accuracy(model, data.test)
    )


def best_eta_in(optimizer: str, rule: str, data: ImageData, steps: int) -> float:
    """Of `ETAS_IN`, where the best of all rates ends lowest from PyTorch's own initialisation."""
    if rule == "plain":
        return 1.0
    cells = [
        Cell(optimizer=optimizer, rule=rule, rate=rate, scale=1.0, eta_in=eta_in)
        for eta_in, rate in product(ETAS_IN, RATES)
    ]
    return min(cells, key=lambda cell: train(cell, data, steps, TUNING_SEED).loss).eta_in


def main(
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    examples: Annotated[int, typer.Option(help="largest training set")] = 10_000,
    steps: Annotated[int, typer.Option(help="of each run")] = 200,
    seeds: Annotated[int, typer.Option(help="runs of each cell")] = 3,
    plot: Annotated[Path | None, typer.Option(help="where the heat maps go")] = None,
    json: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
) -> list[Run]:
    """Train every cell."""
    torch.set_num_threads(1)
    task = load(data, limit=examples)
    console.print(str(task), highlight=False)
    runs: list[Run] = []
    for optimizer, rule in track(list(product(OPTIMIZERS, BLENDS)), description="training", console=console):
        eta_in = best_eta_in(optimizer, rule, task, steps)
        for rate, scale, seed in product(RATES, SCALES, range(seeds)):
            cell = Cell(optimizer=optimizer, rule=rule, rate=rate, scale=scale, eta_in=eta_in)
            runs.append(train(cell, task, steps, seed))
    summaries = [Summary.of(optimizer, rule, runs) for optimizer, rule in product(OPTIMIZERS, BLENDS)]
    title = f"{task.name}, {steps} steps of {BATCH}, {seeds} seeds; best cell, and share of the cells below {REACHED:g}"
    console.print(_table(title, summaries))
    if plot is not None:
        _draw(plot, task.name, steps, runs)
    if json is not None:
        _write(json, task, steps, runs, summaries)
    return runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of one heat map."""

    optimizer: str
    rule: str
    eta_in: float
    best: float
    """lowest median of a cell"""
    at: Cell
    accuracy: float
    """median there"""
    reached: list[float]
    """share of the cells that ended below `REACHED`, by seed"""

    @classmethod
    def of(cls, optimizer: str, rule: str, runs: list[Run]) -> Summary:
        own = [run for run in runs if (run.cell.optimizer, run.cell.rule) == (optimizer, rule)]
        losses = _medians(own)
        at = min(losses, key=lambda cell: losses[cell])
        seeds = sorted({run.seed for run in own})
        return cls(
            optimizer=optimizer,
            rule=rule,
            eta_in=at.eta_in,
            best=losses[at],
            at=at,
            accuracy=statistics.median(run.accuracy for run in own if run.cell == at),
            reached=[statistics.mean(run.loss < REACHED for run in own if run.seed == seed) for seed in seeds],
        )


def _medians(runs: list[Run]) -> dict[Cell, float]:
    """The loss of each cell."""
    losses: dict[Cell, list[float]] = {}
    for run in runs:
        losses.setdefault(run.cell, []).append(run.loss)
    return {cell: statistics.median(own) for cell, own in losses.items()}


def _table(title: str, summaries: list[Summary]) -> Table:
    headings = ("optimiser", "rule", "eta_in", "best", "rate", "scale", "accuracy", f"below {REACHED:g}")
    table = new_table(title, *headings, left=2)
    for each in summaries:
        few, usual, most = (
            f"{100 * share:.0f}" for share in (min(each.reached), statistics.mean(each.reached), max(each.reached))
        )
        table.add_row(
            each.optimizer,
            each.rule,
            "-" if each.rule == "plain" else f"{each.eta_in:g}",
            f"{each.best:.4f}",
            f"{each.at.rate:g}",
            f"{each.at.scale:g}",
            f"{each.accuracy:.1%}",
            f"{usual} % ({few} … {most})",
        )
    return table


def _draw(path: Path, name: str, steps: int, runs: list[Run]) -> None:
    losses = {(c.optimizer, c.rule, c.scale, c.rate): loss for c, loss in _medians(runs).items()}
    save_heat_maps(
        {
            (optimizer, rule): [[losses[optimizer, rule, scale, rate] for rate in RATES] for scale in reversed(SCALES)]
            for optimizer, rule in product(OPTIMIZERS, BLENDS)
        },
        path,
        across=("learning rate", [f"{rate:g}" for rate in RATES]),
        down=("scale of the initialisation", [f"{scale:g}" for scale in reversed(SCALES)]),
        value=f"training loss on {name} after {steps} steps, median over seeds",
    )
    console.print(f"plot: {path}")


def _write(path: Path, task: ImageData, steps: int, runs: list[Run], summaries: list[Summary]) -> None:
    headline: dict[str, float | None] = {}
    rows: list[dict[str, Any]] = []
    for each in summaries:
        headline[f"cells below {REACHED:g}, {each.optimizer}, {each.rule}"] = statistics.mean(each.reached)
        headline[f"best loss, {each.optimizer}, {each.rule}"] = each.best if math.isfinite(each.best) else None
        own = [run for run in runs if (run.cell.optimizer, run.cell.rule) == (each.optimizer, each.rule)]
        rows.append(
            {
                "optimizer": each.optimizer,
                "rule": each.rule,
                "eta_in": None if each.rule == "plain" else each.eta_in,
                "best_rate": each.at.rate,
                "best_scale": each.at.scale,
                "accuracy": each.accuracy,
                "reached": each.reached,
                "rates": RATES,
                "scales": SCALES,
                # (rates, scales, seeds); None where a run was not finite
                "losses": [
                    [
                        [_rounded(run.loss) for run in own if run.cell.rate == rate and run.cell.scale == scale]
                        for scale in SCALES
                    ]
                    for rate in RATES
                ],
            }
        )
    notes = [
        f"{task}; an MLP with {WIDTH} hidden units, {steps} steps of {BATCH}.",
        "rate is eta of the plain rule, eta_out of the multiplicative one, and both of the hybrid.",
        f"eta_in is the best of {ETAS_IN} by another seed, which plain updates have no counterpart of.",
        "losses: over the training set, by rate, scale and seed; None where a run was not finite.",
        "The share of cells is one of this grid; best losses are of the cell that is best on the same seeds.",
    ]
    write_result(path, name="multiplicative", rows=rows, headline=headline, notes=notes)


def _rounded(loss: float) -> float | None:
    return float(f"{loss:.4g}") if math.isfinite(loss) else None


if __name__ == "__main__":
    typer.run(main)
