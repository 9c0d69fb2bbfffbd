"""What is trained while variances are measured, and how: the paper's problems, on subsets that one thread can take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.problems import RandomFeatures
from benchmarks.sketching_models import group_norm, resnet
from trainer_examples.data import ImageData, load, with_duplicates
from trainer_examples.models import cnn, mlp

HIDDEN = 1000
"""random features"""
OVER_PARAMETRISATION = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
"""features over examples"""
TRAJECTORY = 2.0
"""the one of them that is followed closely"""
REDUNDANCIES = (0.0, 0.1, 0.5, 0.9)
SEEDS = range(3)

IMAGES = 4096
COPIED = 2 / 3
"""share of a redundant image set that are copies of `ORIGINALS` images: the paper adds 10 x 10 000 to CIFAR's 50 000"""
ORIGINALS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One trajectory. Momenta, decays, K = B and the iterations of clustering follow the paper's, and so do rates but
    CIFAR-10's, which is five times as high in a hundredth of the steps. Of images partitions are made four times in a
    run, as often as the paper's of CIFAR-10 and less often than its 25 of MNIST."""

    name: str
    title: str
    redundancy: float = 0.0
    """share of the examples that are copies of few"""
    over_parametrisation: float | None = None
    """random features over examples"""
    seed: int = 0
    inputs: Tensor
    labels: Tensor
    make_model: Callable[[], nn.Module]
    batch: int = 128
    """B, and the number of clusters K"""
    steps: int
    refresh: int
    """steps between partitions"""
    iterations: int = 10
    """of the paper's clustering"""
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 5e-4
    points: int = 1000
    """at most so many are measured"""
    drops: tuple[float, ...] = ()
    """parts of the run after which the rate falls to a tenth"""

    @property
    def epoch_steps(self) -> int:
        return len(self.labels) // self.batch

    @property
    def epochs(self) -> int:
        return math.ceil(self.steps / self.epoch_steps)


def random_features(seeds: range = SEEDS, steps: int = 5000) -> Iterator[Task]:
    """Every number of examples and share of duplicates, `seeds` times."""
    for redundancy in REDUNDANCIES:
        for ratio in OVER_PARAMETRISATION:
            for seed in seeds:
                problem = RandomFeatures(round(HIDDEN / ratio), hidden=HIDDEN, redundancy=redundancy, seed=seed)
                yield Task(
                    name="random_features", title="random features", redundancy=redundancy,
                    over_parametrisation=ratio, seed=seed,
                    # nn.Linear has the bias that is a column of ones there.
                    inputs=torch.from_numpy(problem.feature_nf[:, :-1]).float(),
                    labels=torch.from_numpy(problem.label_n).long(),
                    make_model=_on_features, batch=10, steps=steps, refresh=1000, iterations=3,
                    learning_rate=0.01, weight_decay=1e-4, points=10 if ratio == TRAJECTORY else 5,
                )  # fmt: skip


def _on_features() -> nn.Module:
    """Binary softmax classifier, rows of norm 1."""
    layer = nn.Linear(HIDDEN, 2)
    with torch.no_grad():
        layer.weight /= layer.weight.norm(dim=1, keepdim=True)
        layer.bias.zero_()
    return layer


def digits_mlp() -> Iterator[Task]:
    """Small enough for a test, and the only images without a file."""
    for task_data, redundancy in _both(load()):
        yield _images(
            task_data, "digits_mlp", "digits, MLP", redundancy, lambda: mlp(64, 10, width=64, hidden=2),
            steps=600, refresh=150, batch=64, learning_rate=0.05, momentum=0.5,
        )  # fmt: skip


def mnist_mlp(data: Path) -> Iterator[Task]:
    for task_data, redundancy in _both(_read(data / "mnist")):
        yield _images(
            task_data, "mnist_mlp", "MNIST, MLP", redundancy, lambda: mlp(784, 10, width=1024, hidden=2),
            steps=1500, refresh=375, learning_rate=0.02, momentum=0.5,
        )  # fmt: skip


def mnist_cnn(data: Path) -> Iterator[Task]:
    for task_data, redundancy in _both(_read(data / "mnist")):
        yield _images(
            task_data, "mnist_cnn", "MNIST, CNN", redundancy, lambda: cnn(1, 10, width=16),
            steps=1500, refresh=375, learning_rate=0.02, momentum=0.5,
        )  # fmt: skip


def cifar_resnet(data: Path) -> Iterator[Task]:
    for task_data, redundancy in _both(_read(data / "cifar10")):
        yield _images(
            task_data, "cifar_resnet", "CIFAR-10, ResNet-8", redundancy, lambda: resnet(group_norm, blocks=1),
            steps=640, refresh=160, iterations=3, learning_rate=0.05, momentum=0.9, drops=(0.5, 0.75), points=8,
        )  # fmt: skip


@lru_cache(maxsize=1)
def _read(folder: Path) -> ImageData:
    return load(folder, limit=IMAGES)


def _both(data: ImageData) -> Iterator[tuple[ImageData, float]]:
    yield data, 0.0
    yield with_duplicates(data, share=COPIED, originals=ORIGINALS), COPIED


def _images(
    data: ImageData, name: str, title: str, redundancy: float, make_model: Callable[[], nn.Module], **schedule: Any
) -> Task:
    images, labels = data.train.tensors
    return Task(
        name=name, title=title, redundancy=redundancy, inputs=images, labels=labels, make_model=make_model, **schedule
    )
