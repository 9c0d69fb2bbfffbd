"""Reading records by id out of many mapped batches, a column at a time.

Arrow takes rows of one array fast; of a chunked one it first joins all chunks, which here are the whole data set. So
the bytes of each record are sliced where they lie, and joined: some 0.3 µs a value, whatever the number of batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from sampler_service.errors import ConfigError


class Column(Protocol):
    """One column of all batches."""

    def take(self, batches: Sequence[int], rows: Sequence[int]) -> pa.Array:
        """Values in the order asked for: by number of a batch, and row in it."""
        ...


def column_of(arrays: Sequence[pa.Array], kind: pa.DataType) -> Column:
    """The fastest reader for a column.

    Args:
        arrays: the column's part in each batch.
        kind: its type.
    """
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    parts = [each.storage if isinstance(each, pa.ExtensionArray) else each for each in arrays]
    if all(_dense(each) for each in parts):
        if _width(storage):
            return _Fixed(parts, kind, storage)
        if storage in _OFFSETS:
            return _Variable(parts, kind, storage)
    return _Other(arrays)


_OFFSETS = {
    pa.binary(): np.dtype(np.int32),
    pa.string(): np.dtype(np.int32),
    pa.large_binary(): np.dtype(np.int64),
    pa.large_string(): np.dtype(np.int64),
}
"""types of values that differ in length, and of the offsets at which these begin"""


def _dense(array: pa.Array) -> bool:
    """Whether all of it is there: no nulls, also inside lists, and nothing cut off at its front."""
    if array.null_count or array.offset:
        return False
    return not pa.types.is_fixed_size_list(array.type) or _dense(array.values)


def _width(kind: pa.DataType) -> int:
    """Bytes of each value; 0 where they are no whole number of bytes, or differ."""
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size * _width(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
        return 0
    try:
        return kind.bit_width // 8
    except ValueError:  # of no fixed width
        return 0


class _Fixed:
    """Values of one width: numbers, times, tensors."""

    def __init__(self, arrays: Sequence[pa.Array], kind: pa.DataType, storage: pa.DataType) -> None:
        self._kind, self._storage, self._width = kind, storage, _width(storage)
        self._data = [_bytes(_innermost(each).buffers()[1]) for each in arrays]

    def take(self, batches: Sequence[int], rows: Sequence[int]) -> pa.Array:
        data, width = self._data, self._width
        joined = b"".join([data[b][r * width : r * width + width] for b, r in zip(batches, rows, strict=True)])
        array = _from_bytes(self._storage, len(rows), pa.py_buffer(joined))
        return array if self._kind is self._storage else pa.ExtensionArray.from_storage(self._kind, array)


class _Variable:
    """Bytes and texts."""

    def __init__(self, arrays: Sequence[pa.Array], kind: pa.DataType, storage: pa.DataType) -> None:
        self._kind, self._storage, self._offset = kind, storage, _OFFSETS[storage]
        buffers = [each.buffers() for each in arrays]
        self._starts = [_bytes(each[1]).cast(self._offset.char) for each in buffers]
        self._data = [_bytes(each[2]) for each in buffers]

    def take(self, batches: Sequence[int], rows: Sequence[int]) -> pa.Array:
        starts, data = self._starts, self._data
        values = []
        for b, r in zip(batches, rows, strict=True):
            start = starts[b]
            values.append(data[b][start[r] : start[r + 1]])
        ends = np.cumsum([0, *map(len, values)])
        if ends[-1] > np.iinfo(self._offset).max:
            raise ConfigError(f"{len(rows)} records have {ends[-1]} bytes in one column: ask for fewer at a time")
        buffers = [None, pa.py_buffer(ends.astype(self._offset)), pa.py_buffer(b"".join(values))]
        array = pa.Array.from_buffers(self._storage, len(rows), buffers)
        return array if self._kind is self._storage else pa.ExtensionArray.from_storage(self._kind, array)


class _Other:
    """All else, and whatever has nulls: slower, and right for every type that Arrow has."""

    def __init__(self, arrays: Sequence[pa.Array]) -> None:
        self._arrays = arrays

    def take(self, batches: Sequence[int], rows: Sequence[int]) -> pa.Array:
        arrays = self._arrays
        if not rows:
            return arrays[0].slice(0, 0)
        return pa.concat_arrays([arrays[b].slice(r, 1) for b, r in zip(batches, rows, strict=True)])


def _bytes(buffer: pa.Buffer | None) -> memoryview:
    return memoryview(b"" if buffer is None else buffer).cast("B")


def _innermost(array: pa.Array) -> pa.Array:
    while pa.types.is_fixed_size_list(array.type):
        array = array.values
    return array


def _from_bytes(kind: pa.DataType, count: int, data: pa.Buffer) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, count, [None, data])
    child = _from_bytes(kind.value_type, count * kind.list_size, data)
    return pa.Array.from_buffers(kind, count, [None], children=[child])
