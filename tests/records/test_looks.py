"""What the page shows of a record."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from sampler_service.records.looks import look_of
from tests.memory_records import TableStore, png


def shown(table: pa.Table, example_id: int = 1):
    return look_of(TableStore(table))(example_id)


def test_image_files_are_shown_as_they_are() -> None:
    table = pa.table({"label": [0, 1], "file": pa.array([png(3), png(9)], pa.binary())})
    assert shown(table) == png(9)


@pytest.mark.parametrize("channels", [1, 3])
def test_lists_of_pixels_are_shown_as_a_square(channels: int) -> None:
    pixels = np.arange(2 * 5 * 5 * channels, dtype=np.uint8).reshape(2, -1)
    table = pa.table({"image": pa.array(list(pixels), pa.list_(pa.uint8()))})
    expected = pixels[1].reshape((5, 5) if channels == 1 else (5, 5, 3))
    assert np.array_equal(shown(table), expected)


@pytest.mark.parametrize(("shape", "seen"), [((4, 6), (4, 6)), ((4, 6, 1), (4, 6)), ((4, 6, 3), (4, 6, 3))])
def test_tensors_of_pixels_have_their_shape(shape: tuple[int, ...], seen: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    table = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)})
    assert np.array_equal(shown(table), pixels[1].reshape(seen))


def test_one_text_is_shown_alone_and_several_columns_line_by_line() -> None:
    assert shown(pa.table({"text": ["one", "two"], "label": [1, 2]})) == "two"
    assert (
        shown(pa.table({"en": ["one", "two"], "de": ["eins", "zwei"], "label": [1, 2]}))
        == "en: two\nde: zwei\nlabel: 2"
    )


def test_what_can_not_be_read_is_named() -> None:
    assert shown(pa.table({"vector": [[0.5], [1.5]]})) == "columns vector"
