"""torch's own DataLoader over a Parquet file, in three ways. Shapes: b examples of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from benchmarks.records.kinds import Kind, decoded, with_pixels

Epoch = Callable[[int], Iterator[int]]
"""epoch -> numbers of examples of its batches, each when the batch is there"""


class _Table(Dataset[Any]):
    """A Parquet file in memory, decompressed."""

    def __init__(self, path: Path, kind: Kind) -> None:
        table = pq.read_table(path).combine_chunks()
        self._columns = {name: _values(table[name].chunk(0)) for name in table.column_names}
        self._images = kind.name == "images"

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, row: int) -> dict[str, Any]:
        record = {
            name: column[row] if isinstance(column, np.ndarray) else column[row].as_py()
            for name, column in self._columns.items()
        }
        return with_pixels(record) if self._images else record


class _TableOfBatches(_Table):
    """The same, read batch by batch, as numpy and Arrow do it fastest."""

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        return _batch_of(self._columns, np.array(rows), images=self._images)


class _Groups(IterableDataset[Any]):
    """A Parquet file read anew in every epoch: a worker's row groups in random order, the rows of each one too."""

    def __init__(self, path: Path, kind: Kind, batch_size: int) -> None:
        self._path, self._batch_size, self._images = path, batch_size, kind.name == "images"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info, rng = get_worker_info(), np.random.default_rng()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        file = pq.ParquetFile(self._path)
        for group in rng.permutation(np.arange(file.num_row_groups)[worker::workers]):
            table = file.read_row_group(int(group)).combine_chunks()
            order = rng.permutation(len(table))
            columns = {name: _values(table[name].chunk(0)) for name in table.column_names}
            for start in range(0, len(order), self._batch_size):
                yield _batch_of(columns, order[start : start + self._batch_size], images=self._images)


def _values(column: pa.Array) -> Any:
    """An array of its numbers, or itself."""
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy().reshape(len(column), -1)
    return column.to_numpy() if pa.types.is_integer(column.type) else column


def _batch_of(columns: Mapping[str, Any], rows: np.ndarray, *, images: bool) -> dict[str, Any]:
    batch: dict[str, Any] = {}
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            batch[name] = torch.from_numpy(column[rows])
            continue
        values = column.take(pa.array(rows)).to_pylist()
        batch[name] = torch.from_numpy(np.stack([decoded(file) for file in values])) if images else values
    return batch


def by_record(kind: Kind, path: Path, batch_size: int, workers: int) -> tuple[Epoch, Callable[[], None]]:
    """A DataLoader over the Parquet file, held in memory, record by record, collated by torch."""
    loader = DataLoader(_Table(path, kind), batch_size, shuffle=True, **on(workers))
    return partial(counted, loader, kind.columns[0]), lambda: None


def by_batch(kind: Kind, path: Path, batch_size: int, workers: int) -> tuple[Epoch, Callable[[], None]]:
    """The same, batch by batch, with nothing to collate."""
    loader = DataLoader(_TableOfBatches(path, kind), batch_size, shuffle=True, collate_fn=_as_it_is, **on(workers))
    return partial(counted, loader, kind.columns[0]), lambda: None


def from_file(kind: Kind, path: Path, batch_size: int, workers: int) -> tuple[Epoch, Callable[[], None]]:
    """A DataLoader that reads the Parquet file in every epoch, and shuffles within its row groups."""
    loader = DataLoader(_Groups(path, kind, batch_size), batch_size=None, **on(workers))
    return partial(counted, loader, kind.columns[0]), lambda: None


def _as_it_is(batch: Any) -> Any:
    return batch


def counted(loader: DataLoader[Any], column: str, epoch: int) -> Iterator[int]:
    """Numbers of examples of the batches of an epoch."""
    set_epoch = getattr(loader.dataset, "set_epoch", None)
    if set_epoch is not None:
        set_epoch(epoch)
    for batch in loader:
        yield len(batch[column])


def on(workers: int) -> dict[str, Any]:
    """What a DataLoader is told of its workers."""
    if not workers:
        return {}
    return {"num_workers": workers, "multiprocessing_context": "forkserver", "persistent_workers": True}
