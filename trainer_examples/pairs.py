"""Pairs for retrieval: captions in two languages, images and their captions, or halves of scikit-learn's digits.

A set is a folder with `train.parquet`, `val.parquet` and `test.parquet`. Each side of the pairs is one of their text
columns, or a .npy file of features (n, d) whose rows are those of the training, validation and test part in this order.
Two .npy files need no folder: a tenth each is held out for validation and for the test. What is in one part is in no
other, so that an image of several captions is not tested on after it was trained on.

Shapes: n pairs, d numbers of a feature row, t subwords of a caption.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer_examples.data import DataError

PARTS = ("train", "val", "test")
HELD_OUT = 1 / 10
"""share of a set without parts of its own that becomes the validation part, and as much the test part"""
LARGEST_VOCABULARY = 10_000
"""subwords of one side that are kept, the most frequent ones"""

Side = list[str] | NDArray[np.float32]
"""captions, or feature rows (n, d)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """n pairs; a side is (n, t) numbers of subwords, 0 where a caption has no more, or (n, d) features."""

    left: Tensor
    right: Tensor
    group: Tensor
    """(n,) pairs that share a left or a right side have the same number: they are equivalent"""
    items: tuple[Tensor, Tensor]
    """(n,) and (n,) numbers of the left and the right items: an image with several captions is one"""

    def __len__(self) -> int:
        return len(self.group)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairData:
    """A retrieval task; vocabularies and means are those of the training part."""

    name: str
    train: Pairs
    val: Pairs
    test: Pairs

    def __str__(self) -> str:
        return f"{self.name}: {len(self.train):,} training, {len(self.val):,} validation, {len(self.test):,} test pairs"


def load_pairs(
    path: str | Path | None = None, left: str = "en", right: str = "de", *, limit: int | None = None, seed: int = 0
) -> PairData:
    """The digits' halves (no path, no files), or the set at `path`.

    Args:
        left, right: text columns of the set, or .npy files.
        limit: keep a random subset of so many training pairs.
        seed: of the subset, and of the parts of a set that has none of its own.

    Raises:
        DataError: nothing is there, or it is not what this module's first lines describe.
    """
    rng = np.random.default_rng(seed)
    files = [side.endswith(".npy") for side in (left, right)]
    if path is not None:
        path = Path(path)
        sides, sizes = _of_folder(path, left, right)
        name = f"{path.name}, {Path(left).stem} and {Path(right).stem}"
        parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    elif any(files):
        if not all(files):
            raise DataError(f"{left} and {right}: without a folder of captions both must be .npy files")
        sides, name = (_features(Path(left)), _features(Path(right))), f"{Path(left).stem} and {Path(right).stem}"
        parts = _parts(sides, rng)
    else:
        sides, name = _halves_of_digits(), "halves of digits"
        parts = _parts(sides, rng)
    if limit is not None:
        parts[0] = rng.permutation(parts[0])[:limit]
    return _ready(name, sides, parts)


def groups_of(left: Iterable[Hashable], right: Iterable[Hashable]) -> NDArray[np.int64]:
    """(n,) numbers of the pairs' groups: pairs with an equal left or an equal right side are of one group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    lefts, rights = _numbered(left), _numbered(right)
    # A graph of the distinct sides, in which each pair joins its two.
    nodes = int(lefts.max() + rights.max() + 2)
    joined = coo_array((np.ones(len(lefts)), (lefts, lefts.max() + 1 + rights)), shape=(nodes, nodes))
    return connected_components(joined, directed=False)[1][lefts].astype(np.int64)


def subwords(caption: str) -> Iterator[str]:
    """Words in lower case, and the runs of four letters of each, ends marked: compounds share what they are made of."""
    for word in re.findall(r"\w+", caption.lower()):
        marked = f"<{word}>"
        yield marked
        if len(marked) > 4:
            yield from (marked[i : i + 4] for i in range(len(marked) - 3))


def vocabulary(captions: Iterable[str], size: int = LARGEST_VOCABULARY) -> dict[str, int]:
    """Numbers 1 … of the most frequent subwords, of those that occur more than once."""
    counts = Counter(subword for caption in captions for subword in subwords(caption))
    frequent = (subword for subword, count in counts.most_common(size) if count > 1)
    return {subword: number for number, subword in enumerate(frequent, start=1)}


def encoded(captions: Sequence[str], known: dict[str, int]) -> NDArray[np.int64]:
    """(n, t) numbers of the captions' known subwords, as many columns as the longest one needs, the rest 0."""
    rows = [[known[subword] for subword in subwords(caption) if subword in known] for caption in captions]
    numbers = np.zeros((len(rows), max(1, *map(len, rows))), np.int64)
    for row, found in zip(numbers, rows, strict=True):
        row[: len(found)] = found
    return numbers


def _of_folder(folder: Path, left: str, right: str) -> tuple[tuple[Side, Side], list[int]]:
    """Both sides of all parts, one part after another, and the parts' sizes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [side for side in (left, right) if not side.endswith(".npy")]
    texts: dict[str, list[str]] = {column: [] for column in columns}
    sizes: list[int] = []
    for part in PARTS:
        file = folder / f"{part}.parquet"
        if not file.exists():
            raise DataError(f"{file}: no such file; a set is a folder with {', '.join(PARTS)}, each .parquet")
        schema = pq.read_schema(file)
        for column in columns:
            if column not in schema.names or not pa.types.is_string(schema.field(column).type):
                raise DataError(f"{file}: no text column {column!r}; its columns are {schema.names}")
        table = pq.read_table(file, columns=columns)
        sizes.append(pq.read_metadata(file).num_rows)
        for column in columns:
            if table[column].null_count:
                raise DataError(f"{file}: column {column} has {table[column].null_count} nulls among {sizes[-1]} rows")
            texts[column] += table[column].to_pylist()
    one, other = (texts[side] if side in texts else _features(Path(side)) for side in (left, right))
    for name, side in ((left, one), (right, other)):
        if len(side) != sum(sizes):
            raise DataError(f"{name}: {len(side):,} rows, but the parts of {folder} have {sizes}, one after another")
    return (one, other), sizes


def _features(file: Path) -> NDArray[np.float32]:
    if not file.exists():
        raise DataError(f"{file}: no such file; give a .npy file of features, (pairs, numbers)")
    rows = np.load(file)
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.floating):
        raise DataError(f"{file}: features must be floats of shape (pairs, numbers), got {rows.dtype} {rows.shape}")
    if not np.isfinite(rows).all():
        raise DataError(f"{file}: row {int(np.argmin(np.isfinite(rows).all(1)))} has NaN or infinite numbers")
    return rows.astype(np.float32)


def _halves_of_digits() -> tuple[Side, Side]:
    """Upper and lower halves of scikit-learn's 1,797 digits, 32 pixels each."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = digits.images.astype(np.float32).reshape(len(digits.images), 64)
    return pixels[:, :32], pixels[:, 32:]


def _parts(sides: tuple[Side, Side], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Rows of the training, validation and test part, at random; equivalent pairs are in the same one."""
    left, right = sides
    if len(left) != len(right):
        raise DataError(f"left has {len(left):,} rows, right {len(right):,}; row i of both must be pair i")
    held_out = max(1, round(HELD_OUT * len(left)))
    group_n = groups_of(_keys(left), _keys(right))
    order = np.argsort(rng.permutation(group_n.max() + 1)[group_n], kind="stable")
    ends = np.append(np.flatnonzero(np.diff(group_n[order])) + 1, len(order))  # of the groups
    val_end = ends[np.searchsorted(ends, held_out)]
    test_end = ends[np.searchsorted(ends, min(val_end + held_out, len(order)))]
    val, test, train = np.split(order, [val_end, test_end])
    return [train, val, test]


def _ready(name: str, sides: tuple[Side, Side], parts: Sequence[NDArray[np.int64]]) -> PairData:
    for part, rows in zip(PARTS, parts, strict=True):
        if not len(rows):
            raise DataError(f"{name}: the {part} part has no pairs")
    numbers = [_numbers(side, parts[0]) for side in sides]
    keys = [_keys(side) for side in sides]
    made: dict[str, Pairs] = {}
    for part, rows in zip(PARTS, parts, strict=True):
        left, right = (torch.from_numpy(number[rows]) for number in numbers)
        of_part = [[key[row] for row in rows] for key in keys]
        one, other = (torch.from_numpy(_numbered(key)) for key in of_part)
        made[part] = Pairs(left=left, right=right, group=torch.from_numpy(groups_of(*of_part)), items=(one, other))
    return PairData(name=name, **made)


def _keys(side: Side) -> Sequence[Hashable]:
    """Of rows that are equal, the same."""
    return side if isinstance(side, list) else [row.tobytes() for row in side]


def _numbers(side: Side, train: NDArray[np.int64]) -> NDArray[Any]:
    """What a model takes in: subwords' numbers, or features with mean 0 and deviation 1 over the training part."""
    if isinstance(side, list):
        return encoded(side, vocabulary(side[row] for row in train))
    mean, deviation = side[train].mean(0), side[train].std(0)
    return (side - mean) / deviation.clip(min=1e-6)


def _numbered(values: Iterable[Hashable]) -> NDArray[np.int64]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values])
