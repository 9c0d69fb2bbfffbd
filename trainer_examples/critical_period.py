"""When to prefer hard examples: the same window of them, moved along the run.

    python -m trainer_examples.critical_period                                   # digits, in a minute
    python -m trainer_examples.critical_period --data path/to/cifar10 --epochs 17 --examples 5000

A quarter of each run's steps prefers hard examples (`selective_backprop`, which leaves easy ones out), the rest
shuffles. Which are hard is known by losses, so every run begins with one shuffled epoch, before any window. What the
model is not shown early it may never make up for: critical learning periods (Achille, Rovere, Soatto, ICLR 2019, arXiv
1711.08856). The schedule is `attach(…, phases=…)`; that early windows are refused unless `protect` says otherwise is
what this example looks into. All runs have the learning rate at which whole shuffled runs without the last sixth of the
training images are most accurate on these.

Epochs that leave examples out are shorter, so that a quarter of the epochs would be another part of the steps in each
place: the run goes by a budget, whose clock is the number of steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch.nn import functional as F
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_service.embedded import running_service
from trainer_examples.data import ImageData, load
from trainer_examples.models import accuracy, full_loss, make_model
from trainer_examples.results import new_table, spread, write_result
from trainer_examples.tuning import RATES, TUNING_SEED

BATCH_SIZE = 64
WINDOW = 0.25
HARD = "selective_backprop"

console = Console()


def schedules() -> dict[str, list[sampler.Phase]]:
    """The window at each quarter of the run; never; and all along."""
    found = {"never": [sampler.Phase(1, "shuffle")]}
    for begin in np.arange(0, 1, WINDOW).tolist():
        phases = [sampler.Phase(begin, "shuffle")] if begin else []
        phases.append(sampler.Phase(begin + WINDOW, HARD))
        if begin + WINDOW < 1:
            phases.append(sampler.Phase(1, "shuffle"))
        found[f"{begin:.0%} to {begin + WINDOW:.0%}"] = phases
    return found | {"always": [sampler.Phase(1, HARD)]}


def train(
    data: ImageData, phases: list[sampler.Phase], *, address: str, run: str, epochs: int, rate: float, seed: int
) -> dict[str, float]:
    """One run; every schedule makes as many steps as shuffling would in so many epochs."""
    torch.manual_seed(seed)
    model = make_model(data.image_shape, data.num_classes)
    plain = DataLoader(data.train, batch_size=BATCH_SIZE, shuffle=True)
    steps = epochs * len(plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done = hard = 0
    first = len(plain)  # steps until every example has a loss: the windows are shares of the steps after them
    budget = sampler.TimeBudget(steps - first, clock=lambda: float(max(0, done - first)))
    loader = sampler.attach(
        plain,
        address,
        run=run,
        seed=seed,
        budget=budget,
        phases=phases,
        policy_options={"protect": 0},  # refused otherwise, which is what we look into
    )
    drawn_n = np.zeros(len(data.train))
    with loader:
        for (x, y), batch in budget.over(loader):
            optimizer.zero_grad()
            losses = F.cross_entropy(model(x), y, reduction="none")
            batch.weighted_mean(losses).backward()
            optimizer.step()
            schedule.step()
            batch.report(losses)
            drawn_n[batch.example_ids] += 1
            done += 1
            hard += batch.policy == HARD and done > first
    with sampler.SamplerClient(address) as client:
        client.close_run(run)
    return {
        "accuracy": accuracy(model, data.test),
        "training_loss": full_loss(model, data.train),
        "least_drawn": float(drawn_n.min()),
        "most_drawn": float(drawn_n.max()),
        "steps": done,
        "hard_steps": hard,
    }


def main(
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    examples: Annotated[int, typer.Option(help="largest training set")] = 5000,
    epochs: Annotated[int, typer.Option(min=2, help="passes over the data, one of them before the windows")] = 17,
    seeds: Annotated[int, typer.Option(help="runs of each schedule")] = 3,
    json: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
) -> dict[str, float]:
    """Train under each schedule, and print a table; returns the headline figures."""
    torch.set_num_threads(1)
    images = load(data, limit=examples)
    console.print(str(images))
    rows: list[dict[str, Any]] = []
    with running_service() as address:
        rate = _best_rate(images.held_out(), epochs, address)
        for seed in range(seeds):
            for name, phases in schedules().items():
                run = f"critical-{seed}-{len(rows)}"
                found = train(images, phases, address=address, run=run, epochs=epochs, rate=rate, seed=seed)
                rows.append({"window": name, "seed": seed, "learning_rate": rate, **found})
                console.print(f"seed {seed}, hard examples {name}: accuracy {found['accuracy']:.2%}")
    return _say(images.name, rows, seeds, json)


def _best_rate(data: ImageData, epochs: int, address: str) -> float:
    """At which whole shuffled runs are most accurate."""
    never = schedules()["never"]

    def found(rate: float) -> float:
        run = f"critical-tuning-{rate:g}"
        return train(data, never, address=address, run=run, epochs=epochs, rate=rate, seed=TUNING_SEED)["accuracy"]

    return max(RATES, key=found)


def _say(name: str, rows: list[dict[str, Any]], seeds: int, json: Path | None) -> dict[str, float]:
    """The table and the file; returns the headline figures."""
    title = f"{name}: {HARD} in a window, shuffling outside; {seeds} seeds"
    table = new_table(title, "hard examples", "hard steps", "test accuracy", "over never", "training loss")
    headline: dict[str, float] = {}
    never_s = np.array([row["accuracy"] for row in rows if row["window"] == "never"])
    for window in schedules():
        mine = [row for row in rows if row["window"] == window]
        accuracy_s, loss_s = (np.array([row[key] for row in mine]) for key in ("accuracy", "training_loss"))
        gap = spread((accuracy_s - never_s).tolist())
        table.add_row(
            window,
            f"{np.mean([row['hard_steps'] / row['steps'] for row in mine]):.0%}",
            "{:.2%} ± {:.2%}".format(*spread(accuracy_s.tolist())),
            "{:+.2%} ± {:.2%}".format(*gap),
            f"{loss_s.mean():.4g}",
        )
        if window != "never":
            ending = window.replace("%", "").replace(" to ", "_")
            headline[f"accuracy_gap_{ending}"], headline[f"accuracy_gap_deviation_{ending}"] = gap
    console.print(table)
    notes = ["Gaps in accuracy are from `never`, paired by seed; deviations are over seeds, of a sample."]
    write_result(json, name="critical_period", rows=rows, headline=headline, notes=notes)
    return headline


if __name__ == "__main__":
    typer.run(main)
