"""Records of a data set by id, out of memory-mapped shards."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from sampler_service.errors import ConfigError, Conflict, Damaged, NotFound
from sampler_service.records.gather import Column, column_of
from sampler_service.records.keys import Keys
from sampler_service.records.manifest import Manifest, ShardInfo, read_deleted, read_manifest
from sampler_service.types import Version

SHOWN = 5
"""ids in a message"""


class RecordStore:
    """A registered data set. Any number of threads may read; each call sees one generation.

    Example:
        store = RecordStore.open("datasets/mnist")
        batch = store.take(np.array([59_999, 0, 17]), ["image", "label"])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._opened = _newest(path, {})

    @classmethod
    def open(cls, path: str | Path) -> RecordStore:
        """Map a data set's shards.

        Args:
            path: DATA_DIR/dataset.

        Raises:
            NotFound: nothing is registered there.
            Damaged: a shard is missing or cut off. Whether its bytes are right, `verify` says.
        """
        return cls(Path(path))

    @property
    def manifest(self) -> Manifest:
        return self._opened.manifest

    @property
    def schema(self) -> pa.Schema:
        return self.manifest.schema

    @property
    def num_examples(self) -> int:
        """Ids are 0 … num_examples - 1, deleted ones included."""
        return self.manifest.num_examples

    @property
    def generation(self) -> int:
        """Rises with each change."""
        return self.manifest.generation

    @property
    def version(self) -> Version:
        """What it is, and as of which change."""
        return self._opened.version

    @property
    def deleted(self) -> np.ndarray:
        """Deleted example_ids, int64, ascending; not to be written to."""
        return self._opened.deleted

    def take(
        self, example_ids: np.ndarray, columns: Sequence[str] | None = None, *, also_deleted: bool = False
    ) -> pa.RecordBatch:
        """Records in the order asked for; an id may come more than once.

        Args:
            example_ids: (n,) integers.
            columns: which, in which order; None: all.
            also_deleted: read deleted ones too, instead of refusing them: of a batch that was on its way.

        Returns:
            n records, copied out of the map.

        Raises:
            NotFound: an id is deleted, or there is none such.
            ConfigError: a column that there is not, or ids that are no integers.
        """
        return self._opened.take(example_ids, columns, also_deleted=also_deleted)

    def ids_of(self, keys: Sequence[int] | Sequence[str] | np.ndarray) -> np.ndarray:
        """The example_id of each key, int64; deleted examples keep theirs.

        Raises:
            ConfigError: the data set has no id column, or its keys are of another type.
            NotFound: no example has such a key.
        """
        opened = self._opened
        if opened.keys is None:
            raise ConfigError(
                f"data set {opened.manifest.name!r} was registered without an id column: give example ids, not keys"
            )
        return opened.keys.ids_of(keys)

    def refresh(self) -> bool:
        """Look for a newer generation on disk; whether there was one. Shards that are mapped stay so.

        Raises:
            Conflict: other data is registered under the name by now; this store goes on reading what it was opened for.
            NotFound, Damaged: see `open`.
        """
        with self._lock:
            manifest = self.manifest
            if read_manifest(self.path) == manifest:
                return False
            opened = _newest(self.path, self._opened.batches)
            if opened.manifest.uid != manifest.uid:
                raise Conflict(
                    f"data set {manifest.name!r} was removed, and other data is registered in {self.path} since: open "
                    "it anew"
                )
            self._opened = opened
            return True


class _Opened:
    """One generation of a data set: nothing of it changes."""

    def __init__(self, path: Path, manifest: Manifest, known: dict[ShardInfo, list[pa.RecordBatch]]) -> None:
        self.manifest = manifest
        self.version = manifest.version
        self.deleted = read_deleted(path, manifest.deleted)
        self.deleted.flags.writeable = False
        self.keys = manifest.keys and Keys(path / manifest.keys.file, manifest.id_column or "")
        self.batches = {shard: known.get(shard) or map_shard(path, shard) for shard in manifest.shards}
        self._flat = [batch for shard in manifest.shards for batch in self.batches[shard]]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._flat)], dtype=np.int64)
        self._columns: dict[str, Column] = {}
        self._schemas: dict[tuple[str, ...], pa.Schema] = {}

    def take(self, example_ids: np.ndarray, columns: Sequence[str] | None, *, also_deleted: bool) -> pa.RecordBatch:
        ids = self._checked(example_ids, also_deleted=also_deleted)
        batch_of = np.searchsorted(self._starts, ids, side="right") - 1
        rows = ids - self._starts[batch_of]
        schema = self.manifest.schema if columns is None else self._selected(columns)
        arrays = [self._column(name).take(batch_of, rows) for name in schema.names]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _checked(self, example_ids: np.ndarray, *, also_deleted: bool) -> np.ndarray:
        ids = np.asarray(example_ids)
        if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
            raise ConfigError(f"example ids must be integers (n,), got {ids.dtype} {ids.shape}")
        ids = ids.astype(np.int64, copy=False)
        name, count = self.manifest.name, self.manifest.num_examples
        if ids.size and (ids.min() < 0 or ids.max() >= count):
            beyond = ids[(ids < 0) | (ids >= count)]
            raise NotFound(f"data set {name!r} has ids 0 to {count - 1}, and none {_shown(beyond)}")
        if self.deleted.size and not also_deleted:
            places = np.minimum(np.searchsorted(self.deleted, ids), self.deleted.size - 1)
            gone = ids[self.deleted[places] == ids]
            if gone.size:
                raise NotFound(f"deleted from data set {name!r}: example {_shown(gone)}; draw no deleted ids")
        return ids

    def _selected(self, columns: Sequence[str]) -> pa.Schema:
        if (chosen := tuple(columns)) in self._schemas:
            return self._schemas[chosen]
        schema = self.manifest.schema
        missing = [name for name in columns if name not in schema.names]
        if missing:
            raise ConfigError(
                f"data set {self.manifest.name!r} has no column {missing[0]!r}: it has {', '.join(schema.names)}"
            )
        self._schemas[chosen] = pa.schema([schema.field(name) for name in columns])
        return self._schemas[chosen]

    def _column(self, name: str) -> Column:
        # Two threads may make it at once, and make the same.
        if name not in self._columns:
            arrays = [batch.column(name) for batch in self._flat]
            self._columns[name] = column_of(arrays, self.manifest.schema.field(name).type)
        return self._columns[name]


def _newest(path: Path, known: dict[ShardInfo, list[pa.RecordBatch]]) -> _Opened:
    while True:
        manifest = read_manifest(path)
        try:
            return _Opened(path, manifest, known)
        except Damaged:
            # A file of an older generation goes when the next is there.
            if read_manifest(path).generation == manifest.generation:
                raise


def map_shard(folder: Path, shard: ShardInfo) -> list[pa.RecordBatch]:
    """The batches of a shard, mapped.

    Raises:
        Damaged: it is missing, or not of the size that was registered.
    """
    path = folder / shard.file
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            raise Damaged(f"{path} has {size} bytes, registered are {shard.bytes}: restore it, or ingest anew")
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except FileNotFoundError as error:
        raise Damaged(f"{path}, a shard, is missing: restore it, or ingest anew") from error
    except pa.ArrowInvalid as error:
        raise Damaged(f"{path} is no Arrow file any more ({error}): restore it, or ingest anew") from error


def _shown(ids: np.ndarray) -> str:
    return ", ".join(map(str, ids[:SHOWN])) + (f" and {ids.size - SHOWN} more" if ids.size > SHOWN else "")
