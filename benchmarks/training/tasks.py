"""What is trained: data sets with the faults that real ones have, models, and a schedule that all methods share.

Shapes: n examples, c channels, h x w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.sketching_models import group_norm, resnet
from trainer_examples.data import DataError, load, read_parquet
from trainer_examples.models import cnn, mlp

VALIDATION = 5000
"""examples behind the training set's on which learning rates are compared; at most a sixth of the source's"""

NOISE_RATES = (0.02, 0.05, 0.1)
"""learning rates with wrong labels, where lower ones give better accuracy, but for rho_loss"""

CONDITIONS = ("clean", "dup50", "dup90", "longtail", "noise20", "noise40")


class Examples(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels in memory, fetched a batch at a time: the DataLoader's own fast way, for every method alike."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(index)
        return self.images[rows], self.labels[rows]


def as_fetched(batch: Any) -> Any:
    """The collate_fn of `Examples`: a batch comes collated."""
    return batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A task before its data is read."""

    name: str
    data: str
    """folder of a Parquet set below the data path; "" for scikit-learn's digits"""
    model: str
    limit: int | None
    steps: int
    batch_size: int = 64
    condition: str = "clean"
    threads: int = 1
    """of torch, in each run of this task: what is fastest for the baseline"""
    learning_rates: tuple[float, ...] = (0.05, 0.1, 0.2)
    evaluations: int = 12
    """at even distances, and one at the end"""

    @property
    def key(self) -> str:
        return f"{self.name}-{self.condition}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one run trains and is judged by."""

    setting: Setting
    train: Examples
    """as the trainer sees it, faults included"""
    test: Examples
    """clean, with the classes as balanced as the source has them"""
    validation: Examples
    """clean too, and neither trained nor tested on: learning rates are chosen by it"""
    image_shape: tuple[int, int, int]
    num_classes: int

    @property
    def epochs(self) -> int:
        return math.ceil(self.setting.steps * self.setting.batch_size / len(self.train))

    def make_model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = MODELS[self.setting.model](self.image_shape, self.num_classes)
        # A CPU's convolutions are twice as fast so.
        return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _mlp(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return mlp(math.prod(shape), classes, width=256)


def _cnn(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return cnn(shape[0], classes)


def _resnet(shape: tuple[int, int, int], classes: int) -> nn.Module:
    assert (shape[0], classes) == (3, 10), "the ResNet is CIFAR's"
    return resnet(group_norm)


MODELS: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {"mlp": _mlp, "cnn": _cnn, "resnet": _resnet}

SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(name="digits_mlp", data="", model="mlp", limit=None, steps=600, batch_size=32, evaluations=25),
        # The task of two stages: 20 000 images, 784-256-10, 1500 steps of 64
        Setting(
            name="mnist_mlp", data="mnist", model="mlp", limit=20_000, steps=1500, learning_rates=(0.1, 0.2, 0.4),
        ),
        Setting(name="mnist_cnn", data="mnist", model="cnn", limit=20_000, steps=1500, threads=2),
        Setting(
            name="cifar_cnn", data="cifar10", model="cnn", limit=10_000, steps=3000, threads=2,
            learning_rates=(0.05, 0.1, 0.2), evaluations=8,
        ),
        # Early on, while curvature and not noise limits, nothing is to be gained; what does it cost?
        Setting(
            name="cifar_cnn_short", data="cifar10", model="cnn", limit=20_000, steps=600, threads=2,
            learning_rates=(0.1,), evaluations=2,
        ),
        Setting(
            name="cifar_resnet", data="cifar10", model="resnet", limit=20_000, steps=4000, threads=2,
            learning_rates=(0.1, 0.2), evaluations=8,
        ),
    )
}  # fmt: skip


def check_data(settings: Iterable[Setting], data_path: Path) -> None:
    """Look whether all that is to be read is there.

    Raises:
        DataError: it is not; the message says what belongs where.
    """
    needed = {setting.data: setting.name for setting in settings if setting.data}
    for folder, name in needed.items():
        for part in ("train.parquet", "test.parquet"):
            path = data_path / folder / part
            if not path.exists():
                raise DataError(
                    f"{path.absolute()}: no such file; {name} reads {folder}/train.parquet and {folder}/test.parquet "
                    f"below --data, with columns image and label. --tasks digits_mlp needs no files"
                )


def make_task(setting: Setting, data_path: Path) -> Task:
    """Read the data and give it the setting's fault. The fault is the same for every method and seed."""
    train, test = _digits() if not setting.data else _parquet(data_path / setting.data)
    used = min(setting.limit or len(train[1]), len(train[1]) - min(VALIDATION, len(train[1]) // 6))
    images, labels = train[0][:used], train[1][:used]
    validation = train[0][used : used + VALIDATION], train[1][used : used + VALIDATION]
    classes = int(test[1].max()) + 1
    rows, labels = faulty(labels.numpy(), setting.condition, classes, stream("faults", 0))
    _, *shape = images.shape
    return Task(
        setting=setting,
        train=Examples(images[torch.from_numpy(rows)], torch.from_numpy(labels)),
        test=Examples(*test),
        validation=Examples(*validation),
        image_shape=(shape[0], shape[1], shape[2]),
        num_classes=classes,
    )


def stream(purpose: str, seed: int) -> np.random.Generator:
    """Random numbers of their own for each purpose: an order must not repeat the permutation that chose the faults."""
    return np.random.default_rng([*purpose.encode(), seed])


def faulty(
    labels: NDArray[np.int64], condition: str, classes: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Rows of the clean set that make the faulty one, and their labels.

    Args:
        condition: "clean"; "dup50" and "dup90", where that share are copies of a few originals;
            "longtail", where the rarest class has a hundredth of the commonest's examples, falling geometrically;
            "noise20" and "noise40", where that share got one of the other labels, evenly.
    """
    rows = np.arange(len(labels))
    if condition == "clean":
        return rows, labels
    if condition.startswith("dup"):
        copies = round(int(condition[3:]) / 100 * len(rows))
        originals = max(20, len(rows) // 100)
        rows = rng.permutation(rows)
        rows[len(rows) - copies :] = rows[rng.integers(0, originals, copies)]
        return rows, labels[rows]
    if condition.startswith("noise"):
        wrong = rng.permutation(rows)[: round(int(condition[5:]) / 100 * len(rows))]
        noisy = labels.copy()
        noisy[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
        return rows, noisy
    if condition == "longtail":
        most = np.bincount(labels, minlength=classes).min()
        kept = [
            rng.permutation(np.flatnonzero(labels == k))[: max(1, round(most * 100 ** (-k / (classes - 1))))]
            for k in range(classes)
        ]
        rows = rng.permutation(np.concatenate(kept))
        return rows, labels[rows]
    raise ValueError(f"unknown condition {condition!r}; there are {CONDITIONS}")


def with_condition(setting: Setting, condition: str) -> Setting:
    """The setting under a condition, with the learning rates of that."""
    if condition.startswith("noise"):
        return replace(setting, condition=condition, learning_rates=NOISE_RATES)
    return replace(setting, condition=condition)


Part = tuple[Tensor, Tensor]


def _digits() -> tuple[Part, Part]:
    data = load()
    return data.train.tensors, data.test.tensors  # pyright: ignore[reportReturnType]


def _parquet(folder: Path) -> tuple[Part, Part]:
    """Grey values 0 … 1; colours with mean 0 and deviation 1 in each channel."""
    parts = []
    for name in ("train", "test"):
        images, labels = read_parquet(folder / f"{name}.parquet")
        parts.append((torch.from_numpy(images.astype(np.float32) / 255), torch.from_numpy(labels)))
    train, test = parts
    if train[0].shape[1] == 1:
        return train, test
    mean, deviation = train[0].mean((0, 2, 3), keepdim=True), train[0].std((0, 2, 3), keepdim=True)
    return ((train[0] - mean) / deviation, train[1]), ((test[0] - mean) / deviation, test[1])
