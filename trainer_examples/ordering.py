"""Orders of batches by look-ahead, exact and from sketches, and balanced ones, with the controls they need.

    python -m trainer_examples.ordering                             # scikit-learn's digits
    python -m trainer_examples.ordering --data path/to/mnist        # 10,000 of its images
    python -m trainer_examples.ordering --data path/to/mnist --momentum 0

Three questions, a table each.

1. Does training gain at equal steps? The controls are `poa` with one attempt, which leaves the order random, and
   random pacing: batches of a subset that grows at random, which does as well as sorted curricula do in "When Do
   Curricula Work?" (arXiv 2012.03107). Each method has the learning rate at which the mean loss of held-out images
   is lowest; there are as many, and steps are as long in the end, whatever the momentum.
2. Do sketches rank batches as real steps do? At some points of a shuffled run, `CANDIDATES` random batches are ranked
   by the exact drop of the target's loss, and by sketches: fresh ones; those of when the epoch began, which an order
   made then could have at best; and those that `poa` has, of when each image was last trained on.
3. What does a step of `poa` cost over one of shuffling, both through the service? Epochs of both take turns.

Images of the target, those that rates are chosen by, and test images are sets of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from sampler_service.embedded import running_service
from trainer_examples.data import load
from trainer_examples.orders import (
    BATCH,
    LOOKAHEAD,
    METHODS,
    PACING,
    SKETCH_DIM,
    Served,
    Task,
    Trained,
    at_best_rate,
    train,
)
from trainer_examples.ranks import CANDIDATES, Agreement, agreement
from trainer_examples.results import new_table, spread, write_result

DIMS = (SKETCH_DIM, 256)  # of sketches
POINTS = (0, 0.25, 0.5, 1, 1.1, 1.25, 1.5, 2, 3, 5, 8)  # epochs after which batches are ranked
EARLY = 2  # the last epoch that counts as early
TURNS = 12  # epochs of each that are timed
RATES = (0.02, 0.05, 0.1, 0.2, 0.5)  # learning rates without momentum; with it they are multiplied by 1 - momentum

console = Console()


def costs(task: Task, *, rate: float, turns: int, address: str) -> dict[str, dict[str, float]]:
    """Median milliseconds a step takes, over epochs that take turns; the first two of each are not counted, in which
    `poa` has no order yet."""
    lanes = {"shuffle, no sketcher": ("shuffle", False), "shuffle": ("shuffle", True), "poa": ("poa", True)}
    with ExitStack() as stack:
        fits = {
            name: stack.enter_context(
                Served(method, task, rate=rate, seed=0, epochs=turns + 2, address=address, sketched=sketched)
            )
            for name, (method, sketched) in lanes.items()
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in fits}
        for _ in range(turns + 2):
            for name, fit in fits.items():
                taken[name].append((fit.epoch(), fit.target_s))
    return {
        name: {
            "step_ms": 1e3 * median(whole for whole, _ in pairs[2:]) / task.steps,
            "target_ms": 1e3 * median(target_s for _, target_s in pairs[2:]),
        }
        for name, pairs in taken.items()
    }


def main(  # noqa: PLR0913 - the options of a command line
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    examples: Annotated[int, typer.Option(help="largest training set")] = 10_000,
    epochs: Annotated[int, typer.Option(help="of each run")] = 10,
    short: Annotated[int, typer.Option(help="epochs of a run with exact look-ahead; all are looked at then")] = 3,
    seeds: Annotated[int, typer.Option(help="runs of each method at each rate")] = 3,
    momentum: Annotated[float, typer.Option(min=0, max=0.99, help="of SGD, in all runs")] = 0.9,
    address: Annotated[str | None, typer.Option(help="a running service; none: one is started")] = None,
    json: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
) -> dict[str, float]:
    """Compare the orders; returns the figures that stand out."""
    torch.set_num_threads(1)  # the model is small; the other core is the service's
    images = load(data, limit=examples)
    task = Task.of(images, momentum)
    rates = [float(f"{rate * (1 - momentum):.3g}") for rate in RATES]
    about = f"{images}; {task.steps} steps of {BATCH} an epoch"
    console.print(about, highlight=False)
    horizons = sorted({short, epochs})
    with running_service() if address is None else nullcontext(address) as host:
        runs = _trained(task, rates, seeds, horizons, host)
        rate = at_best_rate(runs, "shuffle", epochs)[0].rate
        console.print("cost …")
        cost = costs(task, rate=rate, turns=TURNS, address=host)
    for horizon in horizons:
        console.print(_training_table(runs, horizon))
    console.print("ranks …")
    agreed = _agreed(task, rate, seeds)
    console.print(_agreement_table(agreed, rate))
    console.print(_cost_table(cost))
    headline = _headline(agreed, cost, runs)
    notes = [f"{about}.", *_notes(rate, momentum, rates, seeds)]
    write_result(json, name="ordering", rows=_rows(runs, agreed, cost, rate), headline=headline, notes=notes)
    return headline


def _trained(task: Task, rates: Sequence[float], seeds: int, horizons: Sequence[int], address: str) -> list[Trained]:
    """Every method at every rate."""
    runs: list[Trained] = []
    for method in METHODS:
        console.print(f"{method} …")
        for seed, rate in product(range(seeds), rates):
            runs += train(method, task, rate=rate, seed=seed, horizons=horizons, address=address)
    return runs


def _agreed(task: Task, rate: float, seeds: int) -> list[Agreement]:
    """Of runs of their own, one for each size of a sketch and seed."""
    return [
        row
        for dim, seed in product(DIMS, range(seeds))
        for row in agreement(task, dim=dim, rate=rate, seed=seed, points=POINTS)
    ]


def _headline(agreed: list[Agreement], cost: dict[str, dict[str, float]], runs: list[Trained]) -> dict[str, float]:
    def early(dim: int, kind: str) -> float:
        found = [getattr(row, kind) for row in agreed if row.dim == dim and row.epochs <= EARLY]
        return fmean(value for value in found if value is not None)

    def step_ms(method: str) -> float:
        return median(run.step_ms for run in runs if run.method == method)

    return {
        "poa_rank_agreement": early(SKETCH_DIM, "fresh"),
        **{f"poa_rank_agreement_{dim}": early(dim, "fresh") for dim in DIMS if dim != SKETCH_DIM},
        "poa_rank_agreement_as_begun": early(SKETCH_DIM, "begun"),
        "poa_rank_agreement_as_poa": early(SKETCH_DIM, "as_poa"),
        "poa_cost": cost["poa"]["step_ms"] / cost["shuffle"]["step_ms"],
        "sketcher_cost": cost["shuffle"]["step_ms"] / cost["shuffle, no sketcher"]["step_ms"],
        "poa_and_sketcher_cost": cost["poa"]["step_ms"] / cost["shuffle, no sketcher"]["step_ms"],
        "lookahead_cost": step_ms(LOOKAHEAD) / step_ms(PACING),
    }


def _notes(rate: float, momentum: float, rates: Sequence[float], seeds: int) -> list[str]:
    return [
        f"poa_rank_agreement: Spearman's correlation over {CANDIDATES} batches of {BATCH}, mean of the points of the "
        f"first {EARLY} epochs and of {seeds} seeds, fresh sketches of {SKETCH_DIM} numbers.",
        "poa_rank_agreement_as_begun: with sketches of when the epoch began; _as_poa: with those that poa has, of when "
        "each image was last trained on.",
        "poa_cost: a step of poa over one of shuffle, both through the service with a sketcher, medians over epochs "
        "that take turns; each epoch's target is counted.",
        "sketcher_cost: the same of shuffle with a sketcher over shuffle without.",
        "poa_and_sketcher_cost: a step of poa over one of shuffle without a sketcher, which shuffling has no need of.",
        "lookahead_cost: a step with exact look-ahead over one of random pacing, both without the service; not to be "
        "held against the others, whose steps wait for one.",
        f"SGD {rate:g} with momentum {momentum:g} for ranks and costs, which suits shuffle; in training each method "
        f"has that of the rates {', '.join(f'{each:g}' for each in rates)} at which the mean loss of held-out "
        "images is lowest.",
    ]


def _training_table(runs: list[Trained], epochs: int) -> Table:
    title = f"after {epochs} epochs, mean and deviation over the seeds"
    table = new_table(title, "method", "rate", "training loss", "test accuracy", "own order")
    for method in METHODS:
        if own := at_best_rate(runs, method, epochs):
            loss, accuracy = spread([run.train_loss for run in own]), spread([100 * run.accuracy for run in own])
            table.add_row(
                method,
                f"{own[0].rate:g}",
                "{:.4f} ± {:.4f}".format(*loss),
                "{:.2f} ± {:.2f} %".format(*accuracy),
                f"{fmean(run.ordered for run in own):.0%}",
            )
    return table


def _agreement_table(agreed: list[Agreement], rate: float) -> Table:
    """A row for each point of the training."""
    title = f"ranks of batches by sketches and by real steps (Spearman), SGD {rate:g}, mean over the seeds"
    columns = [(dim, kind) for dim in DIMS for kind in ("fresh", "begun", "as_poa")]
    kinds = [f"{dim}: {kind.replace('_', ' ')}" for dim, kind in columns]
    table = new_table(title, "epochs", *kinds, left=0, wrap=True)
    for point in sorted({row.epochs for row in agreed}):
        cells = []
        for dim, kind in columns:
            found = [getattr(row, kind) for row in agreed if (row.dim, row.epochs) == (dim, point)]
            cells.append("-" if None in found else "{:.2f} ± {:.2f}".format(*spread(found)))
        table.add_row(f"{point:g}", *cells)
    return table


def _cost_table(cost: dict[str, dict[str, float]]) -> Table:
    title = "milliseconds, medians over epochs that take turns"
    table = new_table(title, "method", "step", "target, once an epoch")
    for method, times in cost.items():
        table.add_row(method, f"{times['step_ms']:.3f}", f"{times['target_ms']:.1f}")
    return table


def _rows(
    runs: list[Trained], agreed: list[Agreement], cost: dict[str, dict[str, float]], rate: float
) -> list[dict[str, Any]]:
    """Of all three parts, for the file."""
    return [
        *(_plain({"part": "training", **asdict(run)}) for run in runs),
        *(_plain({"part": "agreement", "rate": rate, **asdict(row)}) for row in agreed),
        *({"part": "cost", "rate": rate, "method": method, **times} for method, times in cost.items()),
    ]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers that JSON has: a loss that is none becomes None."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


if __name__ == "__main__":
    typer.run(main)
