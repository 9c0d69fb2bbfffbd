"""What a record looks like to a person: its image, or its text. The page's previews of data sets that are held here.

Shapes: h x w pixels, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sampler_service.records.reading import Store, first_of
from sampler_service.records.schemas import is_image

_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
"""how image files begin; WebP has a length between its two words"""

NO_IMAGE = "no image"
"""shown of an example whose image is null"""


def look_of(store: Store) -> Callable[[int], str | bytes | NDArray[np.uint8]]:
    """A function from an example's id to what is shown of it.

    The first column with images, as files, as tensors (h, w) or (h, w, c) of uint8, or as lists of so many uint8 as a
    square has pixels (or three times as many), those first that are marked as images; or else all columns that can be
    read, line by line.
    """
    first = store.take(first_of(store))
    for field in sorted(first.schema, key=lambda field: not is_image(field)):
        show = _image_of(first.column(field.name), field)
        if show is not None:
            return partial(_shown, store, field.name, show)
    return lambda example_id: _text(_value(store, example_id, None))


def _shown(store: Store, name: str, show: Callable[[pa.Array], Any], example_id: int) -> Any:
    column = _value(store, example_id, [name]).column(0)
    return show(column) if column[0].is_valid else NO_IMAGE


def _value(store: Store, example_id: int, columns: list[str] | None) -> pa.RecordBatch:
    return store.take(np.array([example_id], dtype=np.int64), columns)


def _image_of(array: pa.Array, field: pa.Field) -> Callable[[pa.Array], Any] | None:
    """What makes an image of one value of a column like this; None: it has none."""
    type_ = field.type
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        held = is_image(field) or _begins_as_image(array[0].as_py() or b"")
        return (lambda column: column[0].as_py()) if held else None
    if isinstance(type_, pa.FixedShapeTensorType) and type_.value_type == pa.uint8():
        shape = tuple(type_.shape)
        seen = len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3, 4))
        return (lambda column: _pixels(column.storage.flatten(), shape)) if seen else None
    is_list = pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_)
    if is_list and type_.value_type == pa.uint8():
        square = _square(len(array.flatten()))
        return None if square is None else lambda column: _pixels(column.flatten(), square)
    return None


def _begins_as_image(data: bytes) -> bool:
    return data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _square(size: int) -> tuple[int, ...] | None:
    for shape in ((math.isqrt(size),) * 2, (math.isqrt(size // 3),) * 2 + (3,)):
        if size and math.prod(shape) == size:
            return shape
    return None


def _pixels(values: pa.Array, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    pixels = values.to_numpy(zero_copy_only=False).reshape(shape)
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels


def _text(record: pa.RecordBatch) -> str:
    texts = [(name, value) for name, value in record.to_pylist()[0].items() if isinstance(value, str)]
    if len(texts) == 1:
        return texts[0][1]
    lines = [
        f"{name}: {value}"
        for name, value in record.to_pylist()[0].items()
        if isinstance(value, str | int | float | bool)
    ]
    return "\n".join(lines) or f"columns {', '.join(record.schema.names)}"
