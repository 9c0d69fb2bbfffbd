"""Texts for the examples: lines of a file, a column of Parquet files, or scikit-learn's descriptions of its data sets.

A set is a text file, of which each line is a text, or a folder with `train.parquet` and `test.parquet` that have a text
column. A text is its UTF-8 bytes, one token each, cut to a fixed length; the rest is padding.

Shapes: n texts, t tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainer_examples.data import HELD_OUT, DataError

VOCABULARY = 257
"""byte b is token b + 1; 0 begins a text, and fills it up"""
LENGTH = 64
"""bytes of a text that are kept"""
SHORTEST = 20
"""bytes that a line of a file must have to be a text"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextData:
    """Texts to model, (n, t) int64 with t = LENGTH + 1: the beginning, the bytes, padding."""

    name: str
    train: Tensor
    test: Tensor

    def __str__(self) -> str:
        return f"{self.name}: {len(self.train):,} training and {len(self.test):,} test texts of up to {LENGTH} bytes"


def load_texts(
    path: str | Path | None = None, column: str = "en", *, limit: int | None = None, seed: int = 0
) -> TextData:
    """The descriptions (no path), the lines of a file, or the column of the Parquet files in a folder.

    Args:
        limit: keep a random subset of so many training texts.
        seed: of the subset, and of the test part where there is none.

    Raises:
        DataError: nothing is there, or it is not what this module's first lines describe.
    """
    rng = np.random.default_rng(seed)
    if path is not None and not Path(path).exists():
        raise DataError(f"{path}: no such file or folder; give a text file, or a folder with train.parquet")
    if path is not None and Path(path).is_dir():
        name, (train, test) = (
            Path(path).name,
            [_column(Path(path, f"{part}.parquet"), column) for part in ("train", "test")],
        )
    else:
        name, lines = ("descriptions", _descriptions()) if path is None else (Path(path).stem, _lines(Path(path)))
        order = rng.permutation(len(lines))
        held_out = max(1, round(HELD_OUT * len(lines)))
        test, train = ([lines[i] for i in part] for part in np.split(order, [held_out]))
    if limit is not None:
        train = [train[i] for i in rng.permutation(len(train))[:limit]]
    if not train:
        raise DataError(f"{path}: too few texts to train on; lines under {SHORTEST} bytes are left out")
    return TextData(name=name, train=tokens(train), test=tokens(test))


def tokens(texts: Iterable[str]) -> Tensor:
    """(n, LENGTH + 1) int64."""
    rows = [list(text.encode())[:LENGTH] for text in texts]
    found = torch.zeros(len(rows), LENGTH + 1, dtype=torch.int64)
    for row, text in zip(found, rows, strict=True):
        row[1 : len(text) + 1] = torch.tensor(text, dtype=torch.int64) + 1
    return found


def sequence_losses(logits: Tensor, text: Tensor) -> Tensor:
    """Each text's mean loss over its bytes, in nats.

    Args:
        logits: (n, t - 1, VOCABULARY) for what follows on each token but the last.
        text: (n, t) tokens.

    Returns:
        (n,).
    """
    following = text[:, 1:]
    losses = functional.cross_entropy(logits.transpose(1, 2), following, reduction="none")
    there = following > 0
    return (losses * there).sum(1) / there.sum(1).clamp(min=1)


def _descriptions() -> list[str]:
    """Lines of the descriptions that come with scikit-learn's data sets."""
    folder = resources.files("sklearn.datasets.descr")
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".rst"))
    return [line for name in names for line in _long_enough((folder / name).read_text(encoding="utf-8"))]


def _lines(file: Path) -> list[str]:
    try:
        return _long_enough(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not a text file in UTF-8 ({error})") from error


def _long_enough(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if len(line.strip()) >= SHORTEST]


def _column(file: Path, column: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.exists():
        raise DataError(f"{file}: no such file; a folder of texts has train.parquet and test.parquet")
    schema = pq.read_schema(file)
    if column not in schema.names or not pa.types.is_string(schema.field(column).type):
        raise DataError(f"{file}: no text column {column!r}; its columns are {schema.names}")
    found = pq.read_table(file, columns=[column])[column]
    if found.null_count:
        raise DataError(f"{file}: column {column} has {found.null_count} nulls among {len(found)} rows")
    return found.to_pylist()
