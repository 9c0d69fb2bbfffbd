"""What the page shows of a record."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sampler_service.records.looks import look_of
from sampler_service.records.schemas import IMAGE
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


def files_of(*files: bytes | None, marked: bool = True) -> pa.Table:
    field = pa.field("file", pa.binary(), metadata=IMAGE if marked else None)
    return pa.table([pa.array(files, pa.binary())], schema=pa.schema([field]))


def test_a_column_that_is_marked_is_shown_whatever_its_files_begin_with() -> None:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PPM")
    assert shown(files_of(file.getvalue(), file.getvalue())) == file.getvalue()
    assert shown(files_of(None, png(9))) == png(9), "the first may be null"
    blob = pa.table({"blob": [b"BM is no bitmap", b"BM"]})
    assert shown(blob.append_column(files_of(b"").schema.field(0), [[png(3), png(9)]])) == png(9)


def test_sound_is_no_image() -> None:
    sound, webp = b"RIFF\0\0\0\0WAVEfmt ", b"RIFF\0\0\0\0WEBPVP8 "
    assert shown(files_of(sound, sound, marked=False)) == "columns file"
    assert shown(files_of(webp, webp, marked=False)) == webp


def test_an_example_without_an_image_says_so() -> None:
    assert shown(files_of(png(3), None)) == "no image"
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 4, 4), np.uint8))
    with_null = pa.ExtensionArray.from_storage(tensors.type, pa.array([[0] * 16, None], pa.list_(pa.uint8(), 16)))
    assert shown(pa.table({"image": with_null})) == "no image"
    assert shown(pa.table({"image": pa.array([[0] * 16, None], pa.list_(pa.uint8()))})) == "no image"
