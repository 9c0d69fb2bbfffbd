"""Labelled images for the examples: scikit-learn's digits, or Parquet files of one's own.

A Parquet set is a folder with `train.parquet` and `test.parquet`, or one file, of which a sixth is held out. Its
columns are `image` (PNG or JPEG bytes, Hugging Face's {bytes, path} of them, or lists of uint8: h*w grey or h*w*3
RGB values of a square image, row by row) and `label` (0 … classes-1).

Shapes: n images, c channels, h x w pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

HELD_OUT = 1 / 6
"""share of a set without a test part of its own that becomes one"""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class DataError(ValueError):
    """A set that can't be read; the message says what was looked for and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """A classification task: (image, label) pairs, images (c, h, w) float32 of mean 0 and deviation 1."""

    name: str
    train: TensorDataset
    test: TensorDataset
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, c, h, w = self.train.tensors[0].shape
        return c, h, w

    @property
    def slug(self) -> str:
        """The name as one of a dataset or a run, without blanks."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.name).split())

    def held_out(self) -> ImageData:
        """The training images alone: the last sixth of them in the place of the test images."""
        x, y = self.train.tensors
        kept = len(y) - len(y) // 6
        train, rest = TensorDataset(x[:kept], y[:kept]), TensorDataset(x[kept:], y[kept:])
        return ImageData(name=self.name, train=train, test=rest, num_classes=self.num_classes)

    def __str__(self) -> str:
        c, h, w = self.image_shape
        return (
            f"{self.name}: {len(self.train):,} training and {len(self.test):,} test images of {c}x{h}x{w}, "
            f"{self.num_classes} classes"
        )


def load(
    path: str | Path | None = None, *, limit: int | None = None, per_class: int | None = None, seed: int = 0
) -> ImageData:
    """The digits (no path), or the Parquet set at `path`.

    Args:
        limit: keep a random subset of so many training images, and of as many test images at most.
        per_class: keep so many random training images of each class at most, and all test images.
        seed: of the subset and of the held-out part.

    Raises:
        DataError: nothing is there, or it is not what this module's first lines describe.
    """
    rng = np.random.default_rng(seed)
    if path is None:
        return _ready("digits", *_of_each(*_split(*_digits(), rng), per_class, rng), limit, rng)
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a .parquet file or a folder with train.parquet")
    if path.is_file():
        return _ready(path.stem, *_of_each(*_split(*read_parquet(path), rng), per_class, rng), limit, rng)
    found = sorted(file.name for file in path.iterdir())
    for name in ("train.parquet", "test.parquet"):
        if name not in found:
            raise DataError(f"{path}: no {name}; the folder holds {found or 'nothing'}")
    train, test = read_parquet(path / "train.parquet"), read_parquet(path / "test.parquet")
    return _ready(path.name, *_of_each(train, test, per_class, rng), limit, rng)


def with_duplicates(data: ImageData, *, share: float = 0.9, originals: int = 20) -> ImageData:
    """The same task with a redundant training set: its last `share` are copies of its first `originals` images."""
    images, labels = data.train.tensors
    source = torch.arange(len(images))
    source[round((1 - share) * len(images)) :] %= originals
    train = TensorDataset(images[source], labels[source])
    name = f"{data.name}, {share:.0%} copies of {originals} images"
    return ImageData(name=name, train=train, test=data.test, num_classes=data.num_classes)


def shifted(images: Tensor) -> Tensor:
    """Each moved at random by up to an eighth of its side, and if coloured mirrored half of the time."""
    n, c, h, w = images.shape
    far = h // 8
    padded = functional.pad(images, (far, far, far, far))
    row = torch.arange(h) + torch.randint(2 * far + 1, (n, 1))
    column = torch.arange(w) + torch.randint(2 * far + 1, (n, 1))
    if c == 3:
        column = torch.where(torch.rand(n, 1) < 0.5, column, column.flip(1))
    moved = padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], row[:, :, None], column[:, None]]
    return moved.permute(0, 3, 1, 2)


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """What a loader gives, epoch after epoch."""
    while True:
        yield from loader


def read_parquet(path: Path) -> tuple[Images, Labels]:
    """Images (n, c, h, w) and labels (n,) of one file.

    Raises:
        DataError: a column is missing or of another type, or the images differ in size.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error})") from error
    missing = [name for name in ("image", "label") if name not in names]
    if missing:
        raise DataError(f"{path}: no column {' and '.join(missing)}; its columns are {names}")
    table = pq.read_table(path, columns=["image", "label"])
    for name in ("image", "label"):
        if table[name].null_count:
            raise DataError(f"{path}: column {name} has {table[name].null_count} nulls among {len(table)} rows")
    if not len(table):
        raise DataError(f"{path}: no rows")
    image, label = table["image"].combine_chunks(), table["label"].combine_chunks()
    if not pa.types.is_integer(label.type):
        raise DataError(f"{path}: column label must hold integers 0 … classes-1, it is {label.type}")
    labels = label.to_numpy(zero_copy_only=False).astype(np.int64)
    if labels.min() < 0:
        raise DataError(f"{path}: labels must not be negative, the least is {labels.min()}")
    return _pixels(image, path), labels


def _pixels(column: Any, path: Path) -> Images:
    """Images (n, c, h, w) of an Arrow column, whichever of the known forms it has."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = column.field("bytes")
        kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _decoded(column.to_pylist(), path)
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or kind.value_type != pa.uint8():
        raise DataError(f"{path}: column image must hold PNG or JPEG bytes or lists of uint8, it is {kind}")
    flat = column.flatten().to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    odd = np.flatnonzero(lengths != lengths[0])
    if len(odd):
        raise DataError(f"{path}: image {odd[0]} has {lengths[odd[0]]} values, image 0 has {lengths[0]}")
    length = int(lengths[0])
    channels = 1 if math.isqrt(length) ** 2 == length else 3
    side = math.isqrt(length // channels)
    if not side or side * side * channels != length:
        raise DataError(f"{path}: {length} values are no square image, neither grey (h*h) nor RGB (h*h*3)")
    return np.ascontiguousarray(flat.reshape(-1, side, side, channels).transpose(0, 3, 1, 2))


def _decoded(encoded: Sequence[bytes], path: Path) -> Images:
    """Images (n, c, h, w) from PNG or JPEG bytes: grey stays grey, everything else becomes RGB."""
    from PIL import Image, UnidentifiedImageError

    images: list[NDArray[np.uint8]] = []
    for row, content in enumerate(encoded):
        try:
            with Image.open(io.BytesIO(content)) as image:
                pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{path}: image {row} can't be decoded ({error})") from error
        images.append(np.atleast_3d(pixels))
        if images[-1].shape != images[0].shape:
            raise DataError(f"{path}: image {row} is {images[-1].shape}, image 0 is {images[0].shape} (h, w, c)")
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def _digits() -> tuple[Images, Labels]:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, values 0 … 16."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return digits.images[:, None].astype(np.uint8), digits.target.astype(np.int64)


Part = tuple[Images, Labels]


def _split(images: Images, labels: Labels, rng: np.random.Generator) -> tuple[Part, Part]:
    order = rng.permutation(len(images))
    test, train = np.split(order, [max(1, round(HELD_OUT * len(order)))])
    return (images[train], labels[train]), (images[test], labels[test])


def _of_each(train: Part, test: Part, per_class: int | None, rng: np.random.Generator) -> tuple[Part, Part]:
    if per_class is None:
        return train, test
    if per_class < 1:
        raise DataError(f"per_class must be at least 1, got {per_class}")
    order = rng.permutation(len(train[1]))
    kept = np.concatenate([order[train[1][order] == label][:per_class] for label in np.unique(train[1])])
    return (train[0][kept], train[1][kept]), test


def _ready(name: str, train: Part, test: Part, limit: int | None, rng: np.random.Generator) -> ImageData:
    """Subset and normalise: each channel of the training images gets mean 0 and deviation 1."""
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"{name}: training images are {train[0].shape[1:]}, test images {test[0].shape[1:]} (c, h, w)")
    if not len(train[0]):
        raise DataError(f"{name}: one image is not enough to train and test on")
    classes = int(max(train[1].max(), test[1].max())) + 1
    if limit is not None:
        train, test = _subset(train, limit, rng), _subset(test, limit, rng)
    # A random order, so that `with_duplicates` copies images of all classes.
    train = _subset(train, len(train[0]), rng)
    mean = train[0].mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    deviation = train[0].std(axis=(0, 2, 3), keepdims=True, dtype=np.float64).clip(min=1e-6)

    def tensors(part: Part) -> TensorDataset:
        images = ((part[0] - mean.astype(np.float32)) / deviation.astype(np.float32)).astype(np.float32)
        return TensorDataset(torch.from_numpy(images), torch.from_numpy(part[1]))

    return ImageData(name=name, train=tensors(train), test=tensors(test), num_classes=classes)


def _subset(part: Part, size: int, rng: np.random.Generator) -> Part:
    chosen = rng.permutation(len(part[0]))[:size]
    return part[0][chosen], part[1][chosen]
