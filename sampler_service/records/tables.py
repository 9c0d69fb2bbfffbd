"""Fragments that are tables already: Parquet, Arrow, CSV and JSON lines, and tables in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from sampler_service.errors import Damaged
from sampler_service.records.addresses import Found, reaching
from sampler_service.records.checksums import HashedFile
from sampler_service.records.fragments import SHARD_BYTES, Bad, RowsByNumber, divide
from sampler_service.records.images import extension
from sampler_service.records.manifest import Identity

TableFormat = Literal["parquet", "arrow", "csv", "jsonl"]

BATCH_BYTES, MOST_ROWS = 1 << 23, 1 << 16
"""of what is read from Parquet, or cut from a table, at a time, about"""

_COMPRESSIONS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4"}
"""by what a file's name ends with, which the path of one on a web server may not"""

CSV_BLOCK = 1 << 22
"""bytes, by the first of which types are inferred"""

END_MARK_BYTES = 8
"""of an Arrow stream: a length of 0, which is in four bytes where old versions wrote it"""

JSON_BLOCK = 1 << 24
"""bytes, which a line may have at most; types are inferred by the first"""


@contextmanager
def parsing(what: object) -> Iterator[None]:
    """Say of which file it is that it can't be read."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, EOFError, OSError) as error:
        raise Damaged(
            f"{what} can't be read: {error}; is it whole, and of this format? Types are given by schema=, --type"
        ) from error


@dataclass(frozen=True)
class ParquetFragment(RowsByNumber):
    """Row groups of a Parquet file; None: all of them."""

    fs: pafs.FileSystem
    found: Found
    row_groups: tuple[int, int] | None = None

    @property
    def identity(self) -> Identity:
        part = "" if self.row_groups is None else f"row groups {self.row_groups[0]} to {self.row_groups[1] - 1}"
        return Identity("file", self.found.uri, part, self.found.bytes, self.found.version)

    def schema(self) -> pa.Schema:
        with self._open() as file:
            return file.schema_arrow

    def batches(self, schema: pa.Schema, bad: Bad) -> Iterator[pa.RecordBatch]:  # noqa: ARG002 - a row is never bad
        with self._open() as file:
            row_groups = list(range(*(self.row_groups or (0, file.num_row_groups))))
            columns = [name for name in schema.names if name in file.schema_arrow.names]
            size = sum(file.metadata.row_group(group).total_byte_size for group in row_groups)
            rows = rows_of(size, sum(file.metadata.row_group(group).num_rows for group in row_groups))
            yield from file.iter_batches(batch_size=rows, row_groups=row_groups, columns=columns)

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        with reaching(self.found.uri):
            opened = self.fs.open_input_file(self.found.path)
        with opened, parsing(self.identity), closing(pq.ParquetFile(opened, pre_buffer=True)) as file:
            yield file


def parquet_fragments(fs: pafs.FileSystem, found: Found) -> list[ParquetFragment]:
    """A file whole, or divided between its row groups where it is large."""
    whole = ParquetFragment(fs, found)
    if found.bytes <= SHARD_BYTES:
        return [whole]
    with whole._open() as file:
        metadata = file.metadata
        sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
    return [ParquetFragment(fs, found, row_groups) for row_groups in divide(sizes, SHARD_BYTES)]


@dataclass(frozen=True)
class StreamedFragment(RowsByNumber):
    """A file that is read from its beginning: Arrow IPC (file or stream, which Feather is too), CSV, JSON lines."""

    fs: pafs.FileSystem
    found: Found
    format: Literal["arrow", "csv", "jsonl"]

    @property
    def identity(self) -> Identity:
        return self.found.identity

    def schema(self) -> pa.Schema:
        with self._reader(None) as reader:
            return reader.schema

    def batches(self, schema: pa.Schema, bad: Bad) -> Iterator[pa.RecordBatch]:  # noqa: ARG002 - a row is never bad
        with self._reader(schema) as reader:
            if isinstance(reader, pa.ipc.RecordBatchFileReader):
                yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                yield from reader

    @contextmanager
    def _reader(self, schema: pa.Schema | None) -> Iterator[Any]:
        """Something with a schema, that gives batches; without a schema, the types are those of the first block."""
        path = self.found.path
        with reaching(self.found.uri):
            if self.format != "arrow":
                opened = self.fs.open_input_stream(path, compression=_COMPRESSIONS.get(extension(self.found.name)))
            elif isinstance(
                self.fs, pafs.LocalFileSystem
            ):  # a batch may be larger than what should be read of it at once
                opened = pa.memory_map(path)
            else:
                opened = self.fs.open_input_file(path)
        with opened, parsing(self.found.uri):
            if self.format == "arrow":
                yield _open_arrow(opened)
            elif self.format == "csv":
                yield _open_csv(opened, self.found.name, schema)
            else:
                yield _open_json(opened, schema, self._ignores(schema))

    def _ignores(self, schema: pa.Schema | None) -> bool:
        """Whether fields that are not in the schema may come: where not all are wanted, and else by mistake."""
        return schema is not None and not set(self.schema().names) <= set(schema.names)


class _Stream:
    """Batches of an Arrow stream that has its end mark: without one it was cut off between two of them, or its writer
    died."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file = file
        self._reader = pa.ipc.open_stream(file)
        self.schema = self._reader.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        end = self._file.tell()
        for batch in self._reader:
            yield batch
            end = self._file.tell()
        if not 0 < self._file.tell() - end <= END_MARK_BYTES:
            raise pa.ArrowInvalid("it has no end mark, as its writer leaves when it is closed")


def _open_arrow(file: pa.NativeFile) -> Any:
    magic = file.read(6)
    file.seek(0)
    return pa.ipc.open_file(file) if magic == b"ARROW1" else _Stream(file)


def _open_csv(stream: pa.NativeFile, name: str, schema: pa.Schema | None) -> Any:
    delimiter = "\t" if ".tsv" in name.rpartition("/")[2] else ","
    return pyarrow.csv.open_csv(
        stream,
        pyarrow.csv.ReadOptions(block_size=CSV_BLOCK),
        pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        pyarrow.csv.ConvertOptions(column_types=schema, include_columns=schema and schema.names),
    )


def _open_json(stream: pa.NativeFile, schema: pa.Schema | None, ignore: bool) -> Any:
    unexpected = "infer" if schema is None else "ignore" if ignore else "error"
    return pyarrow.json.open_json(
        stream,
        pyarrow.json.ReadOptions(block_size=JSON_BLOCK),
        pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected),
    )


@dataclass(frozen=True)
class TableFragment(RowsByNumber):
    """Rows of a table in memory."""

    table: pa.Table
    identity: Identity

    def __reduce__(self) -> tuple[Any, ...]:
        # A slice would be pickled with all of the table that it is cut from.
        sink = pa.BufferOutputStream()
        _write(self.table, sink)
        return _from_stream, (sink.getvalue(), self.identity)

    def schema(self) -> pa.Schema:
        return self.table.schema

    def batches(self, schema: pa.Schema, bad: Bad) -> Iterator[pa.RecordBatch]:  # noqa: ARG002 - a row is never bad
        rows = rows_of(self.table.nbytes, self.table.num_rows)
        yield from self.table.select(schema.names).to_batches(max_chunksize=rows)


def _write(table: pa.Table, sink: pa.NativeFile) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _from_stream(stream: pa.Buffer, identity: Identity) -> TableFragment:
    return TableFragment(pa.ipc.open_stream(stream).read_all(), identity)


def table_fragments(table: pa.Table) -> Sequence[TableFragment]:
    """A table, divided where it is large, and known again by a hash of all that is in it."""
    rows = max(1, int(table.num_rows * SHARD_BYTES / max(table.nbytes, 1)))
    fragments = []
    for start in range(0, table.num_rows, rows):
        part, hashed = table.slice(start, rows), HashedFile()
        _write(part, pa.PythonFile(hashed, mode="w"))
        named = f"rows {start} to {start + part.num_rows - 1}"
        fragments.append(TableFragment(part, Identity("memory", "memory:table", named, part.nbytes, hashed.checksum)))
    return fragments


def rows_of(size: int, rows: int) -> int:
    """How many rows make a batch, where so many have so many bytes."""
    return max(1, min(MOST_ROWS, BATCH_BYTES * rows // max(size, 1)))
