"""Small data of every kind."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from sampler_service.records import RecordStore

Ingest = Callable[..., RecordStore]
"""`ingest` into the data directory of a test"""


def image(value: int, form: str = "PNG", side: int = 8) -> bytes:
    """An encoded image of one colour with a corner of another."""
    pixels = np.full((side, side, 3), value, np.uint8)
    pixels[0, 0] = 255 - value
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, form)
    return written.getvalue()


def table_of(count: int) -> pa.Table:
    """Texts as keys, numbers, vectors, texts of all lengths."""
    return pa.table(
        {
            "key": [f"k{number:04d}" for number in range(count)],
            "number": np.arange(count) * 10,
            "vector": pa.array(np.arange(2.0 * count).reshape(count, 2).tolist(), pa.list_(pa.float32(), 2)),
            "text": ["ä" * (number % 5) for number in range(count)],
        }
    )


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def all_of(store: RecordStore) -> list[dict[str, Any]]:
    return store.take(np.arange(store.num_examples)).to_pylist()
