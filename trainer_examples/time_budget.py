"""Training for a fixed time: what a budget of seconds buys, with shuffling and with the policy `time_budget`.

    python -m trainer_examples.time_budget                             # digits
    python -m trainer_examples.time_budget --data path/to/cifar10

Both stop at the deadline, and their learning rates fall with the share of the budget that is spent: a schedule fitted
to the budget is the baseline to beat. The whole budget is the time that shuffling takes for --steps steps; then a half
and a quarter of it, in which there must still be some epochs: the first one has no losses that anything could be pruned
by. What the service costs is in its seconds, so the model is a CNN whatever the images are: a step of a small MLP takes
less than any service. Each learning rate is chosen of the same ones, by runs of another seed, on images that are
neither trained nor tested on.
"""

from __future__ import annotations

import time
import uuid
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_service.embedded import running_service
from trainer_examples.data import ImageData, endless, load
from trainer_examples.models import accuracy, cnn, full_loss
from trainer_examples.results import new_table, spread, write_result
from trainer_examples.tuning import TUNING_SEED

BATCH_SIZE = 64
RATES = (0.01, 0.02, 0.05, 0.1)
SHARES = (0.25, 0.5, 1.0)
"""of the time that shuffling takes"""
METHODS: dict[str, dict[str, str] | None] = {
    "shuffle": None,
    "time_budget": {},
    "time_budget, hard first": {"policy": "selective_backprop"},
}
"""with the options of the policy `time_budget`; the last one leaves easy examples out, without weights that undo it"""

console = Console()


def train(
    method: str, data: ImageData, seconds: float, *, address: str, run: str, rate: float, seed: int
) -> tuple[nn.Module, dict[str, float]]:
    """A model; its steps, the share of them in which the policy pruned, and the seconds they took."""
    torch.manual_seed(seed)
    model = cnn(data.image_shape[0], data.num_classes)
    budget = sampler.TimeBudget(seconds)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, budget.cosine)
    loader: Any = DataLoader(data.train, batch_size=BATCH_SIZE, shuffle=True, drop_last=True)
    options = METHODS[method]
    if options is not None:
        given = {"policy": "time_budget", "policy_options": options, "budget": budget}
        loader = sampler.attach(loader, address, run=run, seed=seed, ahead=16, **given)
    steps = pruned = 0
    for item in budget.over(loader):
        (x, y), batch = (item, None) if options is None else item
        optimizer.zero_grad()
        losses = F.cross_entropy(model(x), y, reduction="none")
        (losses.mean() if batch is None else batch.weighted_mean(losses)).backward()
        optimizer.step()
        schedule.step()
        if batch is not None:
            batch.report(losses)
            pruned += batch.policy != "shuffle" and batch.epoch > 0
        steps += 1
    took = budget.elapsed
    if options is not None:
        loader.close()
        with sampler.SamplerClient(address) as client:
            client.close_run(run)  # or what the service keeps of it would slow those that follow
    return model, {"steps": steps, "pruned": pruned / steps, "seconds": took}


def seconds_of(data: ImageData, steps: int) -> float:
    """What so many steps of shuffling take."""
    model = cnn(data.image_shape[0], data.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(data.train, batch_size=BATCH_SIZE, shuffle=True, drop_last=True)
    began = time.perf_counter()
    for x, y in islice(endless(loader), steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return time.perf_counter() - began


def main(
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    examples: Annotated[int, typer.Option(help="largest training set, of which a sixth chooses learning rates")] = 3000,
    steps: Annotated[int, typer.Option(help="of shuffling, whose time is the whole budget")] = 800,
    seeds: Annotated[int, typer.Option(help="runs of each method and budget")] = 3,
    json: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
) -> dict[str, float]:
    """Train with each budget, and print a table; returns the headline figures."""
    torch.set_num_threads(1)
    whole = load(data, limit=examples)
    tuning = whole.held_out()
    images = ImageData(name=whole.name, train=tuning.train, test=whole.test, num_classes=whole.num_classes)
    console.print(str(whole))
    rows: list[dict[str, Any]] = []
    with running_service() as address:
        full_s = seconds_of(images, steps)
        console.print(f"{steps} steps of shuffling take {full_s:.1f} s")
        for share in SHARES:
            seconds = share * full_s
            rates = {method: _best_rate(method, tuning, seconds, address) for method in METHODS}
            for seed in range(seeds):
                for method in METHODS:  # in turn, so that what else the machine does hits both
                    run = f"budget-{share}-{len(rows)}"
                    model, said = train(
                        method, images, seconds, address=address, run=run, rate=rates[method], seed=seed
                    )
                    rows.append(
                        {
                            "budget": share,
                            "method": method,
                            "seed": seed,
                            "learning_rate": rates[method],
                            **said,
                            "over_deadline_s": max(0.0, said["seconds"] - seconds),
                            "training_loss": full_loss(model, images.train),
                            "accuracy": accuracy(model, images.test),
                        }
                    )
    return _say(images.name, rows, seeds, json)


def _say(name: str, rows: list[dict[str, Any]], seeds: int, json: Path | None) -> dict[str, float]:
    headings = ("budget", "method", "rate", "steps", "pruned", "training loss", "accuracy")
    table = new_table(f"{name}, {seeds} seeds", *headings, left=2)
    headline: dict[str, float] = {}
    for share in SHARES:
        accuracies: dict[str, Any] = {}
        for method in METHODS:
            mine = [row for row in rows if (row["budget"], row["method"]) == (share, method)]
            accuracies[method] = np.array([row["accuracy"] for row in mine])
            table.add_row(
                f"{share:.0%}",
                method,
                f"{mine[0]['learning_rate']:g}",
                f"{np.mean([row['steps'] for row in mine]):.0f}",
                f"{np.mean([row['pruned'] for row in mine]):.0%}",
                f"{np.mean([row['training_loss'] for row in mine]):.4g}",
                "{:.2%} ± {:.2%}".format(*spread(accuracies[method].tolist())),
            )
        for method, ending in (("time_budget", ""), ("time_budget, hard first", "_hard_first")):
            gap = spread((accuracies[method] - accuracies["shuffle"]).tolist())
            name = f"{100 * share:.0f}{ending}"
            headline[f"accuracy_gap_{name}"], headline[f"accuracy_gap_deviation_{name}"] = gap
    headline["most_over_deadline_s"] = max(row["over_deadline_s"] for row in rows)
    console.print(table)
    notes = ["Gaps in accuracy are from shuffling, paired by seed; deviations are over seeds, of a sample."]
    write_result(json, name="time_budget", rows=rows, headline=headline, notes=notes)
    return headline


def _best_rate(method: str, data: ImageData, seconds: float, address: str) -> float:
    def found(rate: float) -> float:
        run = f"tuning-{uuid.uuid4().hex[:8]}"
        model, _ = train(method, data, seconds, address=address, run=run, rate=rate, seed=TUNING_SEED)
        return accuracy(model, data.test)

    return max(RATES, key=found)


if __name__ == "__main__":
    typer.run(main)
