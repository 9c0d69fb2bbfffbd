"""Tasks that lack data: two classes of which one is rare, and few examples of every class, with a tiny held-out set.

Source: Hu et al., "Learning Data Manipulation for Augmentation and Weighting", NeurIPS 2019, arXiv 1910.12795, with
20 : 1000 examples of two classes and 10 held-out ones of each, or 40 examples of each class and 2 held-out ones. Which
two classes differs from draw to draw here.

Shapes: n images, c channels, h x w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import TensorDataset

from trainer_examples.data import ImageData

RARE, COMMON, HELD_OUT = 20, 1000, 10
FEW, FEW_HELD_OUT = 40, 2
TEST_IMAGES = 2000
"""at most, of all classes together and as many of each"""
MOST = 0.6
"""share of a class that is trained on, where a set is too small for the numbers above; they shrink alike then"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scarce:
    """One draw of a task. Labels are 0 … num_classes-1; held-out and test set have as many images of each class."""

    name: str
    train: TensorDataset
    held_out: TensorDataset
    test: TensorDataset
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, c, h, w = self.train.tensors[0].shape
        return c, h, w


def imbalance(data: ImageData, seed: int, *, tuning: bool = False) -> Scarce:
    """Two classes that `seed` chooses, 20 examples of the first and 1000 of the second; see `_draw`."""
    pair = np.random.default_rng([seed, 0]).choice(data.num_classes, 2, replace=False)
    wanted = {int(pair[0]): RARE, int(pair[1]): COMMON}
    return _draw("imbalance", data, wanted, HELD_OUT, np.random.default_rng([seed, 1]), tuning)


def low_data(data: ImageData, seed: int, *, tuning: bool = False) -> Scarce:
    """40 examples of each class; see `_draw`."""
    wanted = dict.fromkeys(range(data.num_classes), FEW)
    return _draw("low data", data, wanted, FEW_HELD_OUT, np.random.default_rng([seed, 1]), tuning)


def _draw(
    name: str, data: ImageData, wanted: dict[int, int], held_out: int, rng: np.random.Generator, tuning: bool
) -> Scarce:
    """Random examples of each class, none of them twice.

    Args:
        wanted: {class: training examples}; the classes become 0, 1, … in this order.
        held_out: examples of each class.
        tuning: test on other training images, so that what is chosen by the accuracy has not seen the test images.
    """
    labels, test_labels = data.train.tensors[1].numpy(), data.test.tensors[1].numpy()
    row_c = [rng.permutation(np.flatnonzero(labels == label)) for label in wanted]
    shrink = min(1.0, MOST * min(map(len, row_c)) / max(wanted.values()))
    size_c = [max(2, round(shrink * size)) for size in wanted.values()]
    rest_c = [rows[size + held_out :] for rows, size in zip(row_c, size_c, strict=True)]
    test_c = rest_c if tuning else [rng.permutation(np.flatnonzero(test_labels == label)) for label in wanted]
    each = min(TEST_IMAGES // len(wanted), *map(len, test_c))
    return Scarce(
        name=name,
        train=_part(data.train, [rows[:size] for rows, size in zip(row_c, size_c, strict=True)]),
        held_out=_part(data.train, [rows[size : size + held_out] for rows, size in zip(row_c, size_c, strict=True)]),
        test=_part(data.train if tuning else data.test, [rows[:each] for rows in test_c]),
        num_classes=len(wanted),
    )


def _part(whole: TensorDataset, row_c: list[np.ndarray]) -> TensorDataset:
    """The images at `row_c`, one array of rows per class, with the class's place in it for a label."""
    images = whole.tensors[0][torch.from_numpy(np.concatenate(row_c))]
    return TensorDataset(images, torch.repeat_interleave(torch.tensor([len(rows) for rows in row_c])))
