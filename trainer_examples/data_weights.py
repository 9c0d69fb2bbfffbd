"""Data weights by a few held-out examples, where classes are uneven or data is little.

    python -m trainer_examples.data_weights                       # scikit-learn's digits; the tasks shrink to them
    python -m trainer_examples.data_weights --data path/to/cifar10 --json weights.json

Two tasks of Hu et al. 2019 (`scarce.py`): two classes with 20 and 1000 examples, and 40 examples of each class. Six
ways to choose batches: shuffled epochs; draws in which classes are even; the same with the held-out examples trained on
as well; weights inside each batch by differentiating through a step (Ren et al., `reweighting.py`); and draws by the
service's policy `validation_alignment`, to which the trainer tells the held-out gradients every few steps, with the
labels for groups and without any: only then what it does for a rare class is all by alignment.

Model, steps (15 epochs, as in the source), momentum and a learning rate that falls linearly to 0 are the same for all.
Each has the rate of one grid that is best for it on draws of the task that no comparison has, tested on images that no
comparison tests on.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import sampler_client as sampler
from sampler_service.embedded import running_service
from trainer_examples.data import endless, load
from trainer_examples.models import MLP_PIXELS, accuracy, cnn, mlp
from trainer_examples.options import chosen_of
from trainer_examples.results import new_table, spread, write_result
from trainer_examples.reweighting import meta_weights
from trainer_examples.scarce import Scarce, imbalance, low_data

TASKS: dict[str, Callable[..., Scarce]] = {"imbalance": imbalance, "low data": low_data}
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
EPOCHS = 15
"""the source's; a run is as many steps as they are of shuffling"""
FIRST_SEED = 100
"""of the draws of the comparison: the policy's form was found on some of lower seeds"""
TUNING_SEEDS = (1_000_003, 1_000_033)
"""of the draws that learning rates are chosen on; no run of the comparison has them"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all methods share, and what `validation_alignment` has besides."""

    epochs: int = EPOCHS
    batch_size: int = 20
    momentum: float = 0.9
    target_every: int = 5
    """steps from one held-out gradient to the next: it turns as soon as the classes that it asked for were trained"""
    sketch_dim: int = 64

    def steps(self, task: Scarce) -> int:
        """Of each run on a task."""
        return self.epochs * math.ceil(len(task.train) / self.batch_size)


class Training:
    """A model and its optimiser: one step after another."""

    def __init__(self, task: Scarce, settings: Settings, rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        c, h, w = task.image_shape
        small = c == 1 and h * w <= MLP_PIXELS
        self.model: nn.Module = mlp(h * w, task.num_classes) if small else cnn(c, task.num_classes, width=16)
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=settings.momentum)
        self._schedule = LinearLR(self._optimizer, start_factor=1.0, end_factor=0.0, total_iters=settings.steps(task))

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """(b,) of a batch."""
        self._optimizer.zero_grad()
        return F.cross_entropy(self.model(images), labels, reduction="none")

    def step(self, loss: Tensor) -> None:
        loss.backward()
        self._optimizer.step()
        self._schedule.step()


# --- the methods ---


def uniform(training: Training, task: Scarce, settings: Settings, **_: Any) -> None:
    _train_plainly(training, DataLoader(task.train, settings.batch_size, shuffle=True), settings.steps(task))


def class_balanced(training: Training, task: Scarce, settings: Settings, **_: Any) -> None:
    _train_plainly(training, _balanced(task.train, settings.batch_size), settings.steps(task))


def class_balanced_with_held_out(training: Training, task: Scarce, settings: Settings, **_: Any) -> None:
    images, labels = (torch.cat(parts) for parts in zip(task.train.tensors, task.held_out.tensors, strict=True))
    _train_plainly(training, _balanced(TensorDataset(images, labels), settings.batch_size), settings.steps(task))


def ren_et_al(training: Training, task: Scarce, settings: Settings, **_: Any) -> None:
    loader = DataLoader(task.train, settings.batch_size, shuffle=True)
    for images, labels in islice(endless(loader), settings.steps(task)):
        weights = meta_weights(training.model, images, labels, *task.held_out.tensors)
        training.step(weights @ training.losses(images, labels))


def validation_alignment(
    training: Training, task: Scarce, settings: Settings, *, address: str, seed: int, grouped: bool = False
) -> None:
    """The loop of `train.py`, and every few steps a backward pass over the held-out examples."""
    run, dim = f"weights-{uuid.uuid4().hex[:12]}", settings.sketch_dim
    loader = sampler.attach(
        DataLoader(task.train, settings.batch_size, shuffle=True),
        address,
        run=run,
        policy="validation_alignment",
        sketch_dim=dim,
        seed=seed,
    )
    with (
        sampler.SamplerClient(address) as client,
        sampler.GradientSketcher(training.model, dim, layers="all") as sketcher,
    ):
        if grouped:
            client.set_groups(run, task.train.tensors[1].numpy())
        with loader:
            for step, ((images, labels), batch) in enumerate(islice(endless(loader), settings.steps(task))):
                if step % settings.target_every == 0:
                    training.losses(*task.held_out.tensors).mean().backward()
                    loader.set_target(sketcher.take())
                losses = training.losses(images, labels)
                training.step(batch.weighted_mean(losses))
                batch.report(losses, sketcher)
        client.close_run(run)


METHODS: dict[str, Callable[..., None]] = {
    "uniform": uniform,
    "class balanced": class_balanced,
    "class balanced, held-out too": class_balanced_with_held_out,
    "Ren et al.": ren_et_al,
    "validation_alignment": validation_alignment,
    "validation_alignment, labels": partial(validation_alignment, grouped=True),
}

AGAINST = ("uniform", "Ren et al.")
"""what the others are held against; where no name is said, the first one"""


def _train_plainly(training: Training, loader: DataLoader[Any], steps: int) -> None:
    for images, labels in islice(endless(loader), steps):
        training.step(training.losses(images, labels).mean())


def _balanced(train: TensorDataset, batch_size: int) -> DataLoader[Any]:
    """Each class is drawn as often as any other."""
    labels = train.tensors[1]
    weights = 1 / labels.bincount()[labels]
    return DataLoader(train, batch_size, sampler=WeightedRandomSampler(weights.tolist(), len(labels)))


# --- the comparison ---


@dataclass(slots=True, kw_only=True)
class Result:
    """One method on one task."""

    task: str
    method: str
    rate: float
    tuning: dict[float, float]
    """{learning rate: mean accuracy on the tuning draws}"""
    accuracies: list[float]
    """of the seeds FIRST_SEED, FIRST_SEED + 1, …"""
    seconds: float
    """of a run, mean"""


def compare(
    name: str,
    draw: Callable[..., Scarce],
    settings: Settings,
    *,
    seeds: int,
    address: str,
    methods: Sequence[str],
    rates: Sequence[float],
) -> list[Result]:
    """Some methods on one task."""

    def run(method: str, task: Scarce, rate: float, seed: int) -> float:
        training = Training(task, settings, rate, seed)
        METHODS[method](training, task, settings, address=address, seed=seed)
        return accuracy(training.model, task.test)

    tuning_draws = {seed: draw(seed, tuning=True) for seed in TUNING_SEEDS}
    draws = {seed: draw(seed) for seed in range(FIRST_SEED, FIRST_SEED + seeds)}
    results = []
    for method in methods:
        tuning = {
            rate: float(np.mean([run(method, task, rate, seed) for seed, task in tuning_draws.items()]))
            for rate in rates
        }
        rate = max(tuning, key=lambda rate: tuning[rate])
        began = time.perf_counter()
        accuracies = [run(method, task, rate, seed) for seed, task in draws.items()]
        seconds = (time.perf_counter() - began) / seeds
        results.append(
            Result(task=name, method=method, rate=rate, tuning=tuning, accuracies=accuracies, seconds=seconds)
        )
    return results


def table_of(results: Sequence[Result]) -> Table:
    """A row per method; differences are paired by seed."""
    others = {result.method: np.array(result.accuracies) for result in results if result.method in AGAINST}
    against = [f"minus\n{name}" for name in others]
    table = new_table(results[0].task, "method", "rate", "accuracy", *against, "seconds")
    for result in results:
        accuracies = np.array(result.accuracies)
        gaps = ["" if name == result.method else points(accuracies - others[name]) for name in others]
        cells = [f"{result.rate:g}", points(accuracies), *gaps]
        table.add_row(result.method, *cells, f"{result.seconds:.1f}")
    return table


def points(values: np.ndarray) -> str:
    """Mean and deviation over the draws."""
    return "{:.1f} ± {:.1f}".format(*spread((100 * values).tolist()))


def main(
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="draws of each task")] = 10,
    epochs: Annotated[int, typer.Option(min=1, help="of each run")] = EPOCHS,
    tasks: Annotated[list[str] | None, typer.Option("--task", help="one of several; none: all")] = None,
    methods: Annotated[list[str] | None, typer.Option("--method", help="one of several; none: all")] = None,
    rates: Annotated[list[float] | None, typer.Option("--rate", min=0, help="one that is tried; none: RATES")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="file for the results")] = None,
) -> list[Result]:
    """Compare the methods on the tasks; several of either are several options."""
    tasks, methods = chosen_of(tasks, TASKS), chosen_of(methods, METHODS)
    torch.set_num_threads(1)
    images, settings, console = load(data), Settings(epochs=epochs), Console()
    console.print(str(images))
    results: list[Result] = []
    with running_service() as address:
        for name in tasks:
            found = compare(
                name, partial(TASKS[name], images), settings,
                seeds=seeds, address=address, methods=methods, rates=rates or RATES,
            )  # fmt: skip
            console.print(table_of(found))
            results += found
    rows = [asdict(result) for result in results]
    notes = [
        f"{images}; {settings}",
        "Differences are means over draws, each less the same draw's accuracy of what it is held against.",
    ]
    write_result(json_file, name="data_weights", rows=rows, headline=headline_of(results), notes=notes)
    return results


def headline_of(results: Sequence[Result]) -> dict[str, float | None]:
    """Points of accuracy by which each method is above those of AGAINST, of each task, and deviations over draws."""
    accuracies = {(result.task, result.method): np.array(result.accuracies) for result in results}
    figures: dict[str, float | None] = {}
    for other in AGAINST:
        for (task, method), mine in accuracies.items():
            if method not in (other, AGAINST[0]) and (task, other) in accuracies:
                name = f"{task}, {method}" + (f" over {other}" if other != AGAINST[0] else "")
                figures[name], figures[f"deviation, {name}"] = spread((100 * (mine - accuracies[task, other])).tolist())
    return figures


if __name__ == "__main__":
    typer.run(main)
