"""Data sets that are Python objects: any map-style one, item by item, and those of Hugging Face, as Arrow."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from sampler_service.errors import ConfigError
from sampler_service.records.checksums import HashedFile
from sampler_service.records.fragments import SHARD_BYTES, Bad
from sampler_service.records.manifest import Identity
from sampler_service.records.schemas import IMAGE, is_encoded, with_classes

LOOK = 16
"""items that say which types there are, and rows that say how large they are"""

TOLD = 64
"""items of a part, by which it is known again"""

ITEMS_BYTES = 1 << 23
"""of items that make a batch, about"""

PLACE = "sampler.place"
"""last column of each batch that is read: the number of its rows, of which some are left out"""


class MapStyle(Protocol):
    """What `torch.utils.data.Dataset` is, where its items have numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class OfObject:
    """What fragments of an object have in common: it, which is the same in all of them, and which part each one is."""

    data: Any
    start: int
    stop: int


@dataclass(frozen=True)
class ItemsFragment(OfObject):
    """Items start … stop - 1 of a map-style dataset, which are tuples, dicts or single values."""

    identity: Identity

    def schema(self) -> pa.Schema:
        first = _first(self.data, self.start, self.stop)
        return pa.schema([_field(name, [item[name] for item in first]) for name in first[0]])

    def batches(self, schema: pa.Schema, bad: Bad) -> Iterator[pa.RecordBatch]:
        fields = [field for field in self.schema() if field.name in schema.names]
        count = max(1, ITEMS_BYTES // _size(_first(self.data, self.start, self.stop)))
        for start in range(self.start, self.stop, count):
            items, places = [], []
            for index in range(start, min(start + count, self.stop)):
                try:
                    item = item_of(self.data, index)
                    items.append([_checked(item, field) for field in fields])
                    places.append(index)
                except Exception as error:  # whatever a person's dataset raises
                    bad.found(f"item {index}", type(self.data).__name__, f"{type(error).__name__}: {error}")
            columns = zip(*items, strict=True) if items else ([] for _ in fields)
            arrays = [_array(values, field) for values, field in zip(columns, fields, strict=True)]
            yield _placed(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), places)

    def name_of(self, batch: pa.RecordBatch, row: int, before: int) -> str:  # noqa: ARG002
        return f"item {_place(batch, row)}"


def item_of(items: MapStyle, index: int) -> dict[str, Any]:
    """An item as numpy and plain Python have it, by name; raises whatever the dataset raises, or TypeError."""
    return {name: encoded(value) for name, value in named(items[index]).items()}


def _first(items: MapStyle, start: int, stop: int) -> list[dict[str, Any]]:
    """The first items of start … stop - 1 that can be used.

    Raises:
        Damaged: none of them can.
    """
    found: list[dict[str, Any]] = []
    failed: dict[int, Exception] = {}
    for index in range(start, min(start + LOOK, stop)):
        try:
            item = item_of(items, index)
        except Exception as error:  # whatever a person's dataset raises
            failed[index] = error
            continue
        if not found or item.keys() == found[0].keys():
            found.append(item)
    if not found:
        index, why = next(iter(failed.items()))
        Bad("fail").found(f"item {index}", type(items).__name__, f"{type(why).__name__}: {why}")
    return found


def _identity(items: MapStyle, start: int, stop: int) -> Identity:
    """Whether an object is the one of last time is told by its class, its length, and TOLD items of each part."""
    hashed = HashedFile()
    for index in spread(start, stop, TOLD):
        try:
            for name, value in item_of(items, index).items():
                hashed.write(name.encode() + _bytes_of(value))
        except Exception as error:  # it is said when it is written
            hashed.write(type(error).__name__.encode())
    part = f"items {start} to {stop - 1} of {len(items)}"
    return Identity("memory", f"memory:{type(items).__module__}.{type(items).__qualname__}", part, 0, hashed.checksum)


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}".encode() + value.tobytes()
    return value if isinstance(value, bytes) else repr(value).encode()


def spread(start: int, stop: int, count: int) -> list[int]:
    """So many of the numbers start … stop - 1, evenly, with the first and the last; all, where there are fewer."""
    return sorted({round(place) for place in np.linspace(start, stop - 1, count)})


def named(item: Any) -> dict[str, Any]:
    """The values of an item by name: of a tuple "0", "1" …, of a single value "0"."""
    if isinstance(item, Mapping):
        return {str(name): value for name, value in item.items()}
    if hasattr(item, "_asdict"):
        return item._asdict()
    if isinstance(item, tuple):
        return {str(number): value for number, value in enumerate(item)}
    return {"0": item}


def encoded(value: Any) -> Any:
    """A value as numpy or plain Python has it: tensors as arrays, images as PNG.

    Raises:
        TypeError: Arrow has no type for it.
    """
    if isinstance(value, Image.Image):
        written = io.BytesIO()
        value.save(written, format="PNG")
        return _Png(written.getvalue())
    if hasattr(value, "detach"):  # a tensor; torch is not imported for this
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.ndim == 0:
            return value[()]
        # Arrow packs bools into bits, which no tensor could be laid over.
        return value.astype(np.uint8) if value.dtype == np.bool_ else value
    if isinstance(value, bool | int | float | str | bytes | np.generic | list | dict):
        return value
    raise TypeError(f"a {type(value).__name__}; tensors, arrays, numbers, bytes, texts and PIL images can be kept")


class _Png(bytes):
    """An encoded image, told from other bytes."""


def _field(name: str, values: Sequence[Any]) -> pa.Field:
    first = values[0]
    if isinstance(first, np.ndarray):
        return pa.field(name, pa.fixed_shape_tensor(pa.from_numpy_dtype(first.dtype), first.shape))
    kind = pa.from_numpy_dtype(first.dtype) if isinstance(first, np.generic) else pa.infer_type(values)
    return pa.field(name, kind, metadata=IMAGE if isinstance(first, _Png) else None)


def _checked(item: Mapping[str, Any], field: pa.Field) -> Any:
    """A value of an item, if it is what a column takes.

    Raises:
        TypeError, KeyError, pyarrow.ArrowException: it is not, or is missing.
    """
    value = item[field.name]
    if not isinstance(field.type, pa.FixedShapeTensorType):
        pa.scalar(value, field.type)
    elif not isinstance(value, np.ndarray) or field.type != _field(field.name, [value]).type:
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(
            f"{field.name!r} is {found}, and of the first item {field.type.value_type} {tuple(field.type.shape)}"
        )
    return value


def _array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    if not isinstance(field.type, pa.FixedShapeTensorType):
        return pa.array(values, field.type)
    size = int(np.prod(field.type.shape))
    flat = np.stack(values).reshape(-1) if len(values) else np.empty(0)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(flat, field.type.value_type), size)
    return pa.ExtensionArray.from_storage(field.type, storage)


def _size(items: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of an item, about."""
    sizes = [value.nbytes if isinstance(value, np.ndarray) else len(value) if isinstance(value, bytes | str) else 8
             for item in items for value in item.values()]  # fmt: skip
    return max(1, sum(sizes) // len(items))


def items_fragments(items: Any) -> list[ItemsFragment]:
    """A map-style dataset, divided where it is large by the size of its first items.

    Raises:
        ConfigError: it has no length or no items by number.
        Damaged: none of its first items can be used.
    """
    if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
        raise ConfigError(
            f"a {type(items).__name__} can't be registered: it needs __len__ and __getitem__, as map-style datasets "
            "have; write what an iterable one gives to files first"
        )
    if not len(items):
        return []
    rows = max(1, SHARD_BYTES // _size(_first(items, 0, len(items))))
    ranges = [(start, min(start + rows, len(items))) for start in range(0, len(items), rows)]
    return [ItemsFragment(items, start, stop, _identity(items, start, stop)) for start, stop in ranges]


@dataclass(frozen=True)
class HuggingFaceFragment(OfObject):
    """Rows of a `datasets.Dataset` with_format("arrow")."""

    @property
    def identity(self) -> Identity:
        return Identity("memory", "memory:datasets", f"rows {self.start} to {self.stop - 1}", 0, self.data._fingerprint)

    def schema(self) -> pa.Schema:
        schema = self.data[:1].schema
        for number, field in enumerate(schema):
            feature = self.data.features[field.name]
            if type(feature).__name__ == "ClassLabel":
                schema = schema.set(number, with_classes(field, feature.names))
            elif type(feature).__name__ == "Image":
                schema = schema.set(number, field.with_metadata(IMAGE))
        return schema

    def batches(self, schema: pa.Schema, bad: Bad) -> Iterator[pa.RecordBatch]:
        count = max(1, ITEMS_BYTES // _row_bytes(self.data, self.start, self.stop, schema.names))
        for start in range(self.start, self.stop, count):
            table = self.data[start : min(start + count, self.stop)].select(schema.names)
            place = start
            for batch in table.to_batches():
                yield self._with_bytes(_placed(batch, range(place, place + batch.num_rows)), bad)
                place += batch.num_rows

    def name_of(self, batch: pa.RecordBatch, row: int, before: int) -> str:  # noqa: ARG002
        return f"row {_place(batch, row)}"

    def _with_bytes(self, batch: pa.RecordBatch, bad: Bad) -> pa.RecordBatch:
        """Images and sounds that are known by their paths alone are read; rows whose files can't be are bad."""
        why: dict[int, str] = {}
        for number, field in enumerate(batch.schema):
            if is_encoded(field.type):
                values: list[bytes | None] = []
                for row, value in enumerate(batch.column(number).to_pylist()):
                    try:
                        values.append(_read(value))
                    except OSError as error:
                        values.append(None)
                        why.setdefault(row, f"column {field.name!r}: {error}")
                batch = batch.set_column(number, field.with_type(pa.binary()), pa.array(values, pa.binary()))
        for row, reason in why.items():
            bad.found(f"row {_place(batch, row)}", self.identity, reason)
        return batch.filter(pa.array([row not in why for row in range(batch.num_rows)])) if why else batch


def _placed(batch: pa.RecordBatch, places: Sequence[int]) -> pa.RecordBatch:
    """A batch with the column PLACE."""
    return batch.append_column(pa.field(PLACE, pa.int64()), pa.array(places, pa.int64()))


def _place(batch: pa.RecordBatch, row: int) -> int:
    return batch.column(batch.num_columns - 1)[row].as_py()


def _read(value: Mapping[str, Any] | None) -> bytes | None:
    if value is None:
        return None
    if value["bytes"] is not None or value["path"] is None:
        return value["bytes"]
    with open(value["path"], "rb") as file:
        return file.read()


def _row_bytes(data: Any, start: int, stop: int, names: Sequence[str]) -> int:
    """Bytes of a row, about: the mean of some of start … stop - 1, with the files of which only the paths are known."""
    rows = spread(start, stop, LOOK)
    columns = data[rows].select(names).columns
    sizes = [sum(map(_file_bytes, each.to_pylist())) if is_encoded(each.type) else each.nbytes for each in columns]
    return max(1, sum(sizes) // len(rows))


def _file_bytes(value: Mapping[str, Any] | None) -> int:
    if value is None or (value["bytes"] is None and value["path"] is None):
        return 0
    if value["bytes"] is not None:
        return len(value["bytes"])
    try:
        return os.path.getsize(value["path"])
    except OSError:  # it is said when the file is read
        return 0


def hugging_face_fragments(data: Any) -> list[HuggingFaceFragment]:
    """A `datasets.Dataset`, divided where it is large."""
    data = data.with_format("arrow")
    if not len(data):
        return []
    rows = max(1, SHARD_BYTES // _row_bytes(data, 0, len(data), data.column_names))
    return [HuggingFaceFragment(data, start, min(start + rows, len(data))) for start in range(0, len(data), rows)]
