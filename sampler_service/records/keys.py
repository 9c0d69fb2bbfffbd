"""Keys: the values of a data set's id column, each of them once, and the way from a key to its example_id.

The file has two columns, `key` in ascending order and `example_id`; looking up is a binary search in mapped memory.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sampler_service.errors import ConfigError, Damaged, NotFound
from sampler_service.records.checksums import HashedFile
from sampler_service.records.manifest import PART, FileInfo

SHOWN = 3
"""keys in a message"""


def key_type(field: pa.Field, where: str) -> pa.DataType:
    """What keys of a column are kept as: int64 or string.

    Raises:
        ConfigError: its values can't be keys.
    """
    if pa.types.is_integer(field.type):
        return pa.int64()
    if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
        return pa.string()
    raise ConfigError(
        f"the id column {field.name!r} of {where} is {field.type}: keys are int64 or string; choose another"
    )


def write_keys(path: Path, keys: pa.ChunkedArray, column: str, shard_of: Sequence[tuple[int, str]]) -> FileInfo:
    """Write the file of keys.

    Args:
        path: of the file, which appears whole.
        keys: of all examples, by example_id.
        column: their column, for messages.
        shard_of: (first id, source) of each shard, ascending, for messages.

    Raises:
        ConfigError: a key is there twice, or missing.
    """
    if keys.null_count:
        example_id = keys.is_null().index(True).as_py()
        raise ConfigError(f"column {column!r} has no key {_place(example_id, shard_of)}: choose another id column")
    # Texts of all examples together may be more than 32 bits count.
    keys = keys.cast(pa.large_string()) if keys.type == pa.string() else keys
    table = pa.table({"key": keys, "example_id": np.arange(len(keys))}).sort_by("key")
    (batch,) = table.combine_chunks().to_batches()
    ordered, ids = batch.columns
    same = pc.call_function("equal", [ordered[1:], ordered[:-1]])
    if same.true_count:
        at = same.index(True).as_py()
        first, second = sorted(ids[place].as_py() for place in (at, at + 1))
        raise ConfigError(
            f"key {ordered[at].as_py()!r} of column {column!r} is there twice, {_place(first, shard_of)} and "
            f"{_place(second, shard_of)} ({same.true_count} keys too many in all): keys must be unique"
        )
    part = path.with_name(f"{path.name}{PART}{os.getpid()}")
    with part.open("wb") as file:
        hashed = HashedFile(file)
        with pa.ipc.new_file(pa.PythonFile(hashed, mode="w"), batch.schema) as writer:
            writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return FileInfo(path.name, hashed.bytes, hashed.checksum)


def _place(example_id: int, shard_of: Sequence[tuple[int, str]]) -> str:
    first, source = shard_of[bisect_left([first for first, _ in shard_of], example_id + 1) - 1]
    return f"in record {example_id - first} of {source}"


class Keys:
    """The keys of a data set, mapped.

    Args:
        path: of the file.
        column: where keys come from, for messages.
    """

    def __init__(self, path: Path, column: str) -> None:
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (OSError, pa.ArrowInvalid) as error:
            raise Damaged(f"{path}, the keys, can't be read ({error}): restore it from another node") from error
        self._column, self._key, self._ids = column, batch.column("key"), batch.column("example_id").to_numpy()

    def ids_of(self, keys: Sequence[int] | Sequence[str] | np.ndarray) -> np.ndarray:
        """The example_id of each key, int64.

        Raises:
            ConfigError: keys of the other type.
            NotFound: no example has such a key.
        """
        numbers = pa.types.is_integer(self._key.type)
        values: list[Any] = keys.tolist() if isinstance(keys, np.ndarray) else list(keys)
        wrong = [key for key in values if not (_is_int64(key) if numbers else isinstance(key, str))]
        if wrong:
            raise ConfigError(
                f"keys of column {self._column!r} are {'int64' if numbers else 'strings'}, got {wrong[0]!r}"
            )
        places = self._search(values, numbers)
        missing = [key for key, place in zip(values, places, strict=True) if place < 0]
        if missing:
            shown = ", ".join(map(repr, missing[:SHOWN])) + (" …" if len(missing) > SHOWN else "")
            raise NotFound(f"no example has the key {shown} in column {self._column!r}: look at the spelling")
        return self._ids[places]

    def _search(self, values: list[Any], numbers: bool) -> np.ndarray:
        """Places of keys in the order of all, -1 for those that are not there."""
        if numbers:
            key = self._key.to_numpy()
            wanted = np.array(values, np.int64)
            places = np.searchsorted(key, wanted)
            found = key[np.minimum(places, len(key) - 1)] == wanted
        else:
            # Arrow orders texts by their bytes in UTF-8, which is Python's order of code points.
            each = [bisect_left(self._key, value, key=lambda scalar: scalar.as_py()) for value in values]
            places = np.array(each, np.int64)
            there = [p < len(self._key) and self._key[p].as_py() == v for p, v in zip(each, values, strict=True)]
            found = np.array(there, bool)
        return np.where(found, places, -1)


def _is_int64(key: object) -> bool:
    return isinstance(key, int) and not isinstance(key, bool) and -(2**63) <= key < 2**63
