"""Reading records by id out of many mapped batches, a column at a time.

Arrow takes rows of one array fast; of a chunked one it first joins all chunks, which here are the whole data set. So
values of several batches are read where they lie, by their addresses, whatever the number of batches: numbers and small
tensors by one call of numpy, some 0.03 µs a value, bytes and texts by a slice each, 0.2 µs.

Shapes: n values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sampler_service.errors import ConfigError
from sampler_service.types import Int64

NARROW = 4096
"""bytes of a value up to which numpy gathers; the slice of a wider one costs less than its copy"""


class Column(Protocol):
    """One column of all batches."""

    def take(self, batches: Int64, rows: Int64) -> pa.Array:
        """Values in the order asked for: by number of a batch (n,), and row in it (n,)."""
        ...


def column_of(arrays: Sequence[pa.Array], kind: pa.DataType) -> Column:
    """The fastest reader for a column.

    Args:
        arrays: the column's part in each batch.
        kind: its type.
    """
    if len(arrays) == 1:
        return _One(arrays[0])
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


class _Memory:
    """The memory that some buffers lie in, as one: an array whose items are at any address.

    What is between the buffers is nobody's here, and never read.

    Args:
        buffers: None for one that has no bytes.
    """

    def __init__(self, buffers: Sequence[pa.Buffer | None]) -> None:
        there = [each for each in buffers if each is not None and each.size]
        first = min((each.address for each in there), default=0)
        size = max((each.address + each.size for each in there), default=0) - first
        self._all = pa.foreign_buffer(first, size, base=there) if there else pa.py_buffer(b"")
        self._bytes = memoryview(self._all)
        self._starts = np.array([each.address - first if each is not None and each.size else 0 for each in buffers])

    def places(self, batches: Int64, offsets: Int64) -> Int64:
        """Where the bytes (n,) are that begin so far behind the beginnings of these buffers."""
        return self._starts[batches] + offsets

    def items(self, places: Int64, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Items (n,) of this type at these places, copied."""
        if not places.size:
            return np.empty(0, dtype)
        return np.ndarray((self._all.size - dtype.itemsize + 1,), f"V{dtype.itemsize}", self._all, strides=(1,))[
            places
        ].view(dtype)

    def joined(self, places: Int64, ends: Int64) -> bytes:
        """All bytes from each of the places (n,) up to the end (n,) that goes with it."""
        memory = self._bytes
        return b"".join([memory[start:end] for start, end in zip(places.tolist(), ends.tolist(), strict=True)])


class _One:
    """A column whose values are all in one batch."""

    def __init__(self, array: pa.Array) -> None:
        self._array = array

    def take(self, batches: Int64, rows: Int64) -> pa.Array:  # noqa: ARG002 - there is one
        return pc.take(self._array, pa.array(rows))


class _Fixed:
    """Values of one width: numbers, times, tensors."""

    def __init__(self, arrays: Sequence[pa.Array], kind: pa.DataType, storage: pa.DataType) -> None:
        self._kind, self._storage, self._width = kind, storage, _width(storage)
        self._data = _Memory([_innermost(each).buffers()[1] for each in arrays])

    def take(self, batches: Int64, rows: Int64) -> pa.Array:
        width = self._width
        places = self._data.places(batches, rows * width)
        if width <= NARROW:
            data = self._data.items(places, np.dtype(f"V{width}"))
        else:
            data = self._data.joined(places, places + width)
        array = _from_bytes(self._storage, len(rows), pa.py_buffer(data))
        return array if self._kind is self._storage else pa.ExtensionArray.from_storage(self._kind, array)


class _Variable:
    """Bytes and texts."""

    def __init__(self, arrays: Sequence[pa.Array], kind: pa.DataType, storage: pa.DataType) -> None:
        self._kind, self._storage, self._offset = kind, storage, _OFFSETS[storage]
        buffers = [each.buffers() for each in arrays]
        self._offsets = _Memory([each[1] for each in buffers])
        self._data = _Memory([each[2] for each in buffers])

    def take(self, batches: Int64, rows: Int64) -> pa.Array:
        pair = np.dtype((self._offset, 2))  # where a value begins, and where the next one does
        of = self._offsets.places(batches, rows * self._offset.itemsize)
        begins = self._offsets.items(of, pair).astype(np.int64)
        lengths = begins[:, 1] - begins[:, 0]
        ends = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        if ends[-1] > np.iinfo(self._offset).max:
            raise ConfigError(f"{len(rows)} records have {ends[-1]} bytes in one column: ask for fewer at a time")
        places = self._data.places(batches, begins[:, 0])
        data = self._data.joined(places, places + lengths)
        buffers = [None, pa.py_buffer(ends.astype(self._offset)), pa.py_buffer(data)]
        array = pa.Array.from_buffers(self._storage, len(rows), buffers)
        return array if self._kind is self._storage else pa.ExtensionArray.from_storage(self._kind, array)


class _Other:
    """All else, and whatever has nulls: slower, and right for every type that Arrow has."""

    def __init__(self, arrays: Sequence[pa.Array]) -> None:
        self._arrays = arrays

    def take(self, batches: Int64, rows: Int64) -> pa.Array:
        arrays = self._arrays
        if not len(rows):
            return arrays[0].slice(0, 0)
        parts = zip(batches.tolist(), rows.tolist(), strict=True)
        return pa.concat_arrays([arrays[b].slice(r, 1) for b, r in parts])


def _innermost(array: pa.Array) -> pa.Array:
    while pa.types.is_fixed_size_list(array.type):
        array = array.values
    return array


def _from_bytes(kind: pa.DataType, count: int, data: pa.Buffer) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.Array.from_buffers(kind, count, [None, data])
    child = _from_bytes(kind.value_type, count * kind.list_size, data)
    return pa.Array.from_buffers(kind, count, [None], children=[child])
