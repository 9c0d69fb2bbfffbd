"""Cascading sums of images against mixup and against no mixing: errors, and errors under attack.

    python -m trainer_examples.cascading_sum --per-class 20 --epochs 60     # scikit-learn's digits, some minutes
    python -m trainer_examples.cascading_sum --data path/to/cifar10         # 500 images of each class, much longer

A few images per class, a small CNN, random shifts (of colour images also flips) for all. Equal budgets: every method
sends as many rows forward and backward through the model, in steps of `BATCH` rows, which is what training costs. A
mixed row is made of up to `GROUPS` images, so the cascade *loads* more images in that time; the table says how many.
Tuples of one class or of different ones need nothing else; those of clusters need sketches of the images themselves,
to which a fifth of the rows goes, and not to steps. Each method has the learning rate of `RATES`
at which it errs least on fifths of the training images that are held out then, the mean of `FOLDS` of them: one alone
is 40 images where there are 20 of each class.

The attack is projected gradient descent on the margin of the logits, which unlike a loss asks for no probabilities: the
methods' are softmax's of one and sigmoids of the other.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from sampler_client.mixing import CascadingSum, mixed_loss
from sampler_client.pytorch.sketcher import GradientSketcher
from sampler_client.robust.attacks import attack
from sampler_service.local import LocalService
from trainer_examples.data import ImageData, endless, load, shifted
from trainer_examples.models import Pixels, accuracy, cnn
from trainer_examples.options import chosen_of
from trainer_examples.results import new_table, spread, write_result
from trainer_examples.tuning import TUNING_SEED

BATCH = 64  # rows of a step, whatever they are mixed of
GROUPS = 4  # images in a mixed one at the start
CASCADE = 0.75  # share of the training over which they become one; the rest is plain
ALPHA = 1.0  # of mixup's Beta distribution
CLUSTERS = 10  # of the sampler, as many as there are classes
SKETCHED = 0.2  # share of the rows that clusters cost, as nearly as whole passes allow
SKETCH_DIM = 64
RATES = (0.01, 0.03, 0.1, 0.3)
FOLDS = 3  # fifths of the training images that a rate is judged by
WEIGHT_DECAY = 5e-4
WIDTH = 16  # of the CNN
RADII = (1 / 255, 2 / 255)  # of the attack, in pixels of 0 … 1
ATTACK_STEPS = 10
ATTACKED = 500  # test images

Draw = Callable[[int], tuple[Tensor, Tensor, Tensor]]
"""so many of the training images (b, c, h, w), their labels (b,), and of which kinds they are for tuples (b,)"""
Loss = Callable[[nn.Module, Draw, float], Tensor]
"""of a step at a share of the training, for a model and what it may draw"""

console = Console()


# --- the methods ---


def plain(model: nn.Module, draw: Draw, progress: float) -> Tensor:  # noqa: ARG001
    images, labels, _ = draw(BATCH)
    return F.cross_entropy(model(images), labels)


def plain_binary(model: nn.Module, draw: Draw, progress: float) -> Tensor:  # noqa: ARG001
    """The cascade's loss without its sums, to tell the one from the other."""
    images, labels, _ = draw(BATCH)
    logits = model(images)
    return mixed_loss(logits, F.one_hot(labels, logits.shape[1])).mean()


def mixup(model: nn.Module, draw: Draw, progress: float) -> Tensor:  # noqa: ARG001
    """Zhang et al., arXiv 1710.09412: two images of the batch, in a random proportion."""
    images, labels, _ = draw(BATCH)
    share = float(torch.distributions.Beta(ALPHA, ALPHA).sample())
    other = torch.randperm(BATCH)
    logits = model(share * images + (1 - share) * images[other])
    return share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels[other])


def cascade(num_classes: int, tuples: Literal["different", "same"] | None = None) -> Loss:
    mixer = CascadingSum(GROUPS, num_classes, tuples=tuples)

    def loss(model: nn.Module, draw: Draw, progress: float) -> Tensor:
        at = min(1.0, progress / CASCADE)
        images, labels, kinds = draw(BATCH * mixer.active(at))
        mixed = mixer(images, labels, at, kinds=kinds)
        return mixed_loss(model(mixed.inputs), mixed.targets).mean()

    return loss


@dataclass(frozen=True, slots=True)
class Method:
    loss_of: Loss
    clusters: bool = False
    """whether kinds are a sampler's clusters; otherwise they are the labels"""


def methods(num_classes: int) -> dict[str, Method]:
    return {
        "no mixing": Method(plain),
        "no mixing, binary": Method(plain_binary),
        "mixup": Method(mixup),
        "cascade": Method(cascade(num_classes)),
        "cascade, different": Method(cascade(num_classes, "different")),
        "cascade, same": Method(cascade(num_classes, "same")),
        "cascade, different clusters": Method(cascade(num_classes, "different"), clusters=True),
        "cascade, same cluster": Method(cascade(num_classes, "same"), clusters=True),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """On one training."""

    rows: int
    """through the model, forward and backward"""
    sketched: int
    """of them for sketches and not for steps"""
    images: int
    """drawn to make those of steps"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Spent):
    method: str
    seed: int
    rate: float
    error: float
    """share of the test images"""
    attacked: list[float]
    """share of `ATTACKED` of them, at each of `RADII`"""
    seconds: float
    """of training"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    name: str
    scale: Pixels
    num_classes: int
    pixels: Tensor
    labels: Tensor
    test_pixels: Tensor
    test_labels: Tensor

    @classmethod
    def of(cls, data: ImageData) -> Task:
        (images, labels), (test_images, test_labels) = data.train.tensors, data.test.tensors
        scale = Pixels(images)
        return cls(
            name=str(data), scale=scale, num_classes=data.num_classes,
            pixels=scale.of(images), labels=labels, test_pixels=scale.of(test_images), test_labels=test_labels,
        )  # fmt: skip

    def for_tuning(self, fold: int) -> Task:
        """A fifth of the training images are the test, others for each fold 0 … 4."""
        held_out = torch.arange(len(self.labels)) % 5 == fold
        return replace(
            self, pixels=self.pixels[~held_out], labels=self.labels[~held_out],
            test_pixels=self.pixels[held_out], test_labels=self.labels[held_out],
        )  # fmt: skip


# --- where images come from ---


class Shuffled:
    """All images in a random order, in another one each time; their kinds are their labels."""

    batches = 0
    rows = 0

    def __init__(self, task: Task) -> None:
        self._labels = task.labels
        self._places = _places(len(task.labels))

    def prepare(self, progress: float) -> None:
        """Nothing to do: labels are there."""

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Places and kinds, each (count,)."""
        at = torch.tensor(list(islice(self._places, count)))
        return at, self._labels[at]

    def close(self) -> None:
        """Nothing is open."""


class Clustered:
    """Images as a sampler in this process deals them, all as often; their kinds are its clusters.

    Args:
        model: whose gradients are clustered, of single images, which nothing is mixed with.
        steps: what the training may cost. `SKETCHED` of it goes to sketches, in passes of as many rows as there are
            images, at least one of them. Images that no sketch has come of yet are of no kind.
    """

    def __init__(self, task: Task, model: nn.Module, steps: int, seed: int) -> None:
        self._task, self._model = task, model
        self._of_pass = math.ceil(len(task.labels) / BATCH)
        self._passes = max(1, round(SKETCHED * steps / self._of_pass))
        self._begun = 0
        self.batches = self._passes * self._of_pass
        """that go to sketches"""
        self.rows = 0
        """of them so far"""
        self._service = LocalService()
        loader = self._service.attach(
            DataLoader(TensorDataset(torch.arange(len(task.labels))), BATCH, shuffle=True),
            run="cascade",
            policy="gradient_clustering",
            policy_options={"alpha": 1.0},  # all as often: clusters are for tuples alone
            num_clusters=CLUSTERS,
            sketch_dim=SKETCH_DIM,
            seed=seed,
        )
        self._batches = endless(loader)
        self._waiting = torch.empty(2, 0, dtype=torch.long)

    def prepare(self, progress: float) -> None:
        """Sketch as many images as there are when it is time, which is evenly over the cascade."""
        if self._begun == self._passes or progress < CASCADE * self._begun / self._passes:
            return
        self._begun += 1
        with GradientSketcher(self._model, SKETCH_DIM) as sketcher:
            for (at,), batch in islice(self._batches, self._of_pass):
                logits, labels = self._model(self._task.pixels[at]), self._task.labels[at]
                losses = mixed_loss(logits, F.one_hot(labels, logits.shape[1]))  # of the images as they are
                losses.mean().backward()
                batch.report(losses, sketcher)
                self.rows += len(at)
        self._model.zero_grad()

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Places and kinds, each (count,)."""
        while self._waiting.shape[1] < count:
            (at,), batch = next(self._batches)
            self._waiting = torch.cat([self._waiting, torch.stack([at, torch.tensor(batch.cluster_ids.copy())])], 1)
        drawn, self._waiting = self._waiting.split([count, self._waiting.shape[1] - count], 1)
        return drawn[0], drawn[1]

    def close(self) -> None:
        self._service.close()


# --- training ---


def train(method: Method, task: Task, *, rate: float, steps: int, seed: int) -> tuple[nn.Module, Spent]:
    """A model of pixels, for at most `BATCH` rows for each step."""
    torch.manual_seed(seed)
    network = cnn(task.pixels.shape[1], task.num_classes, width=WIDTH)
    # Sigmoids that start at 1 / c spare the binary losses a first while; softmax does not mind.
    nn.init.constant_(network.get_parameter(f"{len(network) - 1}.bias"), -math.log(task.num_classes - 1))
    model = nn.Sequential(task.scale, network)
    source = Clustered(task, model, steps, seed) if method.clusters else Shuffled(task)
    steps -= source.batches
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, cycle_momentum=False)
    drawn = 0

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal drawn
        drawn += count
        at, kinds = source.draw(count)
        return shifted(task.pixels[at]), task.labels[at], kinds

    for step in range(steps):
        source.prepare(step / steps)
        optimizer.zero_grad()
        method.loss_of(model, draw, step / steps).backward()
        optimizer.step()
        schedule.step()
    source.close()
    return model.eval(), Spent(rows=steps * BATCH + source.rows, sketched=source.rows, images=drawn)


def error(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    return 1 - accuracy(model, TensorDataset(pixels, labels))


def best_rate(method: Method, task: Task, steps: int) -> float:
    """Of `RATES`, where models err least on training images that they did not see."""

    def held_out(rate: float) -> float:
        errors = []
        for fold in range(FOLDS):
            part = task.for_tuning(fold)
            model, _ = train(method, part, rate=rate, steps=steps, seed=TUNING_SEED)
            errors.append(error(model, part.test_pixels, part.test_labels))
        return statistics.fmean(errors)

    return min(RATES, key=held_out)


def run_of(name: str, method: Method, task: Task, *, rate: float, steps: int, seed: int) -> Run:
    began = time.perf_counter()
    model, spent = train(method, task, rate=rate, steps=steps, seed=seed)
    seconds = time.perf_counter() - began
    some, of_some = task.test_pixels[:ATTACKED], task.test_labels[:ATTACKED]
    limits = {"steps": ATTACK_STEPS, "bounds": (0.0, 1.0)}
    attacked = [error(model, attack(model, some, of_some, "linf", radius, **limits), of_some) for radius in RADII]
    clean = error(model, task.test_pixels, task.test_labels)
    return Run(
        **asdict(spent), method=name, seed=seed, rate=rate,
        error=clean, attacked=attacked, seconds=seconds,
    )  # fmt: skip


def main(
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    per_class: Annotated[int, typer.Option(help="training images of each class")] = 500,
    epochs: Annotated[int, typer.Option(min=3, help="rows of a run, in sizes of the training set")] = 20,
    seeds: Annotated[int, typer.Option(help="runs of each method")] = 3,
    chosen: Annotated[list[str] | None, typer.Option("--method", help="one of several; none: all")] = None,
    json: Annotated[Path | None, typer.Option(help="where the figures go")] = None,
) -> list[Run]:
    """Compare the methods."""
    torch.set_num_threads(1)
    task = Task.of(load(data, per_class=per_class))
    console.print(task.name, highlight=False)
    steps = epochs * len(task.pixels) // BATCH
    runs: list[Run] = []
    for name in chosen_of(chosen, methods(task.num_classes)):
        method = methods(task.num_classes)[name]
        # Half of the steps are enough to tell rates apart that differ by a factor of three.
        rate = best_rate(method, task, steps // 2)
        for seed in range(seeds):
            runs.append(run_of(name, method, task, rate=rate, steps=steps, seed=seed))
            console.print(f"{name}, rate {rate:g}, seed {seed}: error {runs[-1].error:.1%}", highlight=False)
    console.print(_table(task.name, runs))
    if json is not None:
        _write(json, task.name, runs)
    return runs


def _places(count: int) -> Iterator[int]:
    """Of all images in a random order, in another one each time."""
    while True:
        yield from torch.randperm(count).tolist()


def _by_method(runs: list[Run]) -> dict[str, list[Run]]:
    return {method: [run for run in runs if run.method == method] for method in dict.fromkeys(r.method for r in runs)}


def _table(name: str, runs: list[Run]) -> Table:
    title = f"{name}\n{runs[0].rows:,} rows for each method; errors in %, mean ± deviation over seeds"
    attacks = [f"at {255 * radius:.0f}/255" for radius in RADII]
    table = new_table(title, "method", "rate", "sketched", "drawn", "error", *attacks, "seconds")
    for method, own in _by_method(runs).items():
        errors = [[run.error for run in own], *zip(*(run.attacked for run in own), strict=True)]
        cells = [f"{100 * mean:.1f} ± {100 * deviation:.1f}" for mean, deviation in map(spread, errors)]
        seconds = f"{statistics.mean(run.seconds for run in own):.0f}"
        table.add_row(method, f"{own[0].rate:g}", f"{own[0].sketched:,}", f"{own[0].images:,}", *cells, seconds)
    return table


def _write(path: Path, name: str, runs: list[Run]) -> None:
    headline: dict[str, float | None] = {}
    for method, own in _by_method(runs).items():
        headline[f"error, {method}"], headline[f"deviation, {method}"] = spread([run.error for run in own])
        headline[f"error attacked at 2/255, {method}"] = statistics.mean(run.attacked[-1] for run in own)
    rows: list[dict[str, Any]] = [asdict(run) for run in runs]
    notes = [
        f"{name}; a CNN of width {WIDTH}.",
        f"Equal budgets are equal rows forward and backward: {runs[0].rows:,} of them in steps of {BATCH}, mixed of "
        "`images` drawn; where kinds are clusters, `sketched` of them are for sketches and not for steps.",
        f"attacked: error on at most {ATTACKED} test images at l_inf radii of {[round(255 * r) for r in RADII]}/255.",
        f"Learning rates are of {RATES}, by {FOLDS} fifths of the training set, each held out in its turn.",
    ]
    write_result(path, name="cascading_sum", rows=rows, headline=headline, notes=notes)


if __name__ == "__main__":
    typer.run(main)
