"""Records of one data set in memory, behind the port that a server asks; their reader is the real one."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from PIL import Image

from sampler_service.records.reading import RecordReader
from sampler_service.rpc.records import no_records
from sampler_service.types import Decoding, Int64, Recorded, Version


class TableStore:
    """A `records.reading.Store` over a table."""

    def __init__(self, table: pa.Table) -> None:
        self._batch = table.combine_chunks().to_batches()[0]
        self.schema, self.num_examples = table.schema, len(table)
        self.deleted = np.empty(0, dtype=np.int64)

    def take(
        self, example_ids: Int64, columns: Sequence[str] | None = None, *, also_deleted: bool = False
    ) -> pa.RecordBatch:
        batch = self._batch if columns is None else self._batch.select(list(columns))
        return batch.take(pa.array(example_ids))


class MemoryRecords:
    """Holds the records of one data set."""

    def __init__(self, dataset: str, table: pa.Table) -> None:
        self._dataset, self._store = dataset, TableStore(table)

    def bring(self, dataset: str) -> bool:
        self._check(dataset)
        return True

    def version(self, dataset: str) -> Version:
        self._check(dataset)
        return Version("uid", 1, "")

    def describe(self, dataset: str) -> Recorded:
        self._check(dataset)
        schema = self._store.schema.serialize().to_pybytes()
        return Recorded(uid="uid", num_examples=self._store.num_examples, deleted=self._store.deleted, schema=schema)

    def reader(self, dataset: str, columns: Sequence[str], decode: Sequence[Decoding]) -> RecordReader:
        self._check(dataset)
        return RecordReader(self._store, columns, decode)

    def _check(self, dataset: str) -> None:
        if dataset != self._dataset:
            raise no_records(dataset)


def png(shade: int, *, size: tuple[int, int] = (4, 3)) -> bytes:
    """A PNG file of one RGB shade, (width, height)."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def table_of(num_examples: int) -> pa.Table:
    """Example i has the number i, the vector (i, i + 1), a text, and an image of shade i."""
    i = np.arange(num_examples, dtype=np.int64)
    vectors = np.stack([i, i + 1], axis=1).astype(np.float32)
    return pa.table(
        {
            "number": i,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 2),
            "text": [f"example {n}" for n in i],
            "image": pa.array([png(int(n)) for n in i], pa.binary()),
        }
    )
