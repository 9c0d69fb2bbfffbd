"""What is read: small arrays, image files, texts; of real data in Parquet, or of the same shape and random.

Shapes: n examples.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CAPTIONS = ("en", "de")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of records, and what a loader has to make of them."""

    name: str
    folder: str
    """of train.parquet, below --data"""
    columns: tuple[str, ...]
    make: Callable[[np.random.Generator], pa.Table]
    """stands in where there is no --data"""

    def table(self, data: Path | None) -> pa.Table:
        """The columns that are read, of real data where they are."""
        if data is None:
            return self.make(np.random.default_rng(0))
        path = data / self.folder / "train.parquet"
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; --data is a folder with {self.folder}/train.parquet in it")
        return pq.read_table(path, columns=list(self.columns))


def _digits(rng: np.random.Generator) -> pa.Table:
    pixels = rng.integers(0, 256, (60_000, 784), dtype=np.uint8)
    image = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 784)
    return pa.table({"image": image, "label": rng.integers(0, 10, len(pixels)).astype(np.int8)})


def _photos(rng: np.random.Generator) -> pa.Table:
    files = []
    for _ in range(20_000):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((32, 32), Image.Resampling.BILINEAR).save(file, "JPEG")
        files.append(file.getvalue())
    return pa.table({"image": pa.array(files, pa.binary()), "label": rng.integers(0, 10, len(files)).astype(np.int8)})


def _captions(rng: np.random.Generator) -> pa.Table:
    words = np.array(["two", "dogs", "run", "over", "a", "green", "field", "while", "people", "watch"])
    texts = [" ".join(rng.choice(words, 12)) for _ in range(29_000)]
    return pa.table({"en": texts, "de": texts[::-1]})


KINDS = (
    Kind(name="arrays", folder="mnist", columns=("image", "label"), make=_digits),
    Kind(name="images", folder="cifar10", columns=("image", "label"), make=_photos),
    Kind(name="texts", folder="multi30k", columns=CAPTIONS, make=_captions),
)


def decoded(file: bytes) -> np.ndarray:
    """Pixels (h, w, 3) uint8 of an image file."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def with_pixels(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its image file decoded."""
    return {**record, "image": decoded(record["image"])}


def in_bytes(record: dict[str, Any]) -> dict[str, Any]:
    """A record for libraries that keep bytes, numbers and texts."""
    return {key: bytes(value) if isinstance(value, list | np.ndarray) else value for key, value in record.items()}
