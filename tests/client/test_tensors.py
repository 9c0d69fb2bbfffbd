"""Arrow columns as tensors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from sampler_client.errors import RecordError
from sampler_client.pytorch.tensors import columns_of


def test_numbers_and_tensors_lie_over_arrows_memory() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    records = pa.record_batch(
        {"number": pa.array([5, 6]), "pixels": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)}
    )
    columns = columns_of(records)
    assert columns["number"].tolist() == [5, 6]
    assert columns["number"].data_ptr() == records.column("number").buffers()[1].address
    assert torch.equal(columns["pixels"], torch.from_numpy(pixels))
    assert columns["pixels"].data_ptr() == records.column("pixels").storage.flatten().buffers()[1].address


def test_a_field_may_say_the_shape_of_its_lists() -> None:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12, dtype=np.float32)), 6)
    field = pa.field("image", lists.type, metadata={"shape": "2,3"})
    columns = columns_of(pa.record_batch([lists], schema=pa.schema([field])))
    assert torch.equal(columns["image"], torch.arange(12.0).reshape(2, 2, 3))


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1, None]),
        pa.array([[1, 2], None], pa.list_(pa.int64(), 2)),
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.int64(), (2,)), pa.array([[1, 2], None], pa.list_(pa.int64(), 2))
        ),
    ],
    ids=["number", "list", "tensor"],
)
def test_nulls_are_refused_by_the_columns_name(array: pa.Array) -> None:
    with pytest.raises(RecordError, match="column 'x' has 1 nulls"):
        columns_of(pa.record_batch({"x": array}))


def test_bits_texts_and_structs() -> None:
    columns = columns_of(pa.record_batch({"bit": [True, False], "text": ["a", "b"], "both": [{"n": 1}, {"n": 2}]}))
    assert columns["bit"].tolist() == [True, False]
    assert columns["text"] == ["a", "b"]
    assert columns["both"] == [{"n": 1}, {"n": 2}]
