"""Arrow records as torch tensors over the same memory, where that can be. Shapes: b records."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from sampler_client.errors import RecordError


def columns_of(records: pa.RecordBatch) -> dict[str, Tensor | list[Any]]:
    """Each column by its name.

    Numbers become a tensor (b,), fixed-size lists of numbers and fixed-shape tensors one of (b, *shape), of their own
    type; texts, files and the rest lists of b Python values. A tensor shares memory with the records.

    Raises:
        RecordError: numbers of which some are null.
    """
    return {
        name: _column(name, array, records.schema.field(name))
        for name, array in zip(records.schema.names, records.columns, strict=True)
    }


def _column(name: str, array: pa.Array, field: pa.Field) -> Tensor | list[Any]:
    type_ = array.type
    if isinstance(type_, pa.FixedShapeTensorType):
        _check_whole(name, array)
        return _numbers(name, array.storage.flatten(), (len(array), *type_.shape))
    if pa.types.is_fixed_size_list(type_) and _is_numeric(type_.value_type):
        _check_whole(name, array)
        return _numbers(name, array.flatten(), (len(array), *_shape(field, type_.list_size)))
    if _is_numeric(type_):
        return _numbers(name, array, (len(array),))
    return array.to_pylist()


def _shape(field: pa.Field, size: int) -> tuple[int, ...]:
    """What the field's metadata says of the shape, or the size alone."""
    said = (field.metadata or {}).get(b"shape")
    shape = tuple(int(side) for side in said.split(b",")) if said else (size,)
    return shape if math.prod(shape) == size else (size,)


def _is_numeric(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_)


def _numbers(name: str, values: pa.Array, shape: tuple[int, ...]) -> Tensor:
    _check_whole(name, values)
    if pa.types.is_boolean(values.type):  # a bit each
        return torch.from_numpy(values.to_numpy(zero_copy_only=False)).reshape(shape)
    return torch.from_dlpack(values).reshape(shape)


def _check_whole(name: str, array: pa.Array) -> None:
    if array.null_count:
        raise RecordError(
            f"column {name!r} has {array.null_count} nulls among {len(array)} values, and a tensor has none; leave the "
            "column out, or fill them when the data set is ingested"
        )
