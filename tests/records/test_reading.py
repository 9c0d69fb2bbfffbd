"""What a stream sends of records: columns, pixels, messages."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sampler_client import wire
from sampler_service.errors import ConfigError
from sampler_service.records import images, reading
from sampler_service.records.reading import RecordReader, first_of
from sampler_service.types import Decoding
from tests.memory_records import TableStore, png, table_of

IDS = np.array([7, 2, 7], dtype=np.int64)


def store_of(*files: bytes) -> TableStore:
    return TableStore(pa.table({"image": pa.array(files, pa.binary()), "label": list(range(len(files)))}))


def jpeg(width: int, height: int) -> bytes:
    """Left half black, right half white."""
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, width // 2 :] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_columns_come_in_the_order_asked_for_and_rows_in_that_of_the_ids() -> None:
    reader = RecordReader(TableStore(table_of(10)), ["text", "number"])
    records = reader.read(IDS)
    assert records.schema.names == reader.schema.names == ["text", "number"]
    assert records.to_pydict() == {"text": ["example 7", "example 2", "example 7"], "number": [7, 2, 7]}


def test_a_message_is_read_by_the_schema_alone() -> None:
    reader = RecordReader(TableStore(table_of(10)))
    schema = pa.ipc.read_schema(pa.py_buffer(reader.schema_message))
    records = pa.ipc.read_record_batch(pa.py_buffer(reader.encode(IDS)), schema)
    assert records.equals(reader.read(IDS))
    assert records.num_rows == 3


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_images_are_decoded_at_their_own_size(mode: str, channels: int) -> None:
    reader = RecordReader(TableStore(table_of(10)), ["image"], [Decoding(column="image", mode=mode)])
    pixels = reader.read(IDS).column("image").to_numpy_ndarray()
    assert pixels.shape == (3, 3, 4, channels)
    assert pixels.dtype == np.uint8
    assert pixels.reshape(3, -1).tolist() == [[shade] * 12 * channels for shade in (7, 2, 7)]


def test_images_are_scaled_where_a_size_is_asked_for() -> None:
    store = store_of(jpeg(64, 32), png(200, size=(2, 2)))
    reader = RecordReader(store, decode=[Decoding(column="image", mode="L", height=8, width=16)])
    wide, flat = reader.read(np.arange(2)).column("image").to_numpy_ndarray()[..., 0]
    assert wide.shape == (8, 16)
    assert wide[:, :7].max() < 20 and wide[:, 9:].min() > 235
    assert np.array_equal(flat, np.full((8, 16), 200))


def test_an_image_of_another_size_is_named() -> None:
    reader = RecordReader(store_of(png(1), png(2, size=(9, 9))), decode=[Decoding(column="image")])
    with pytest.raises(ConfigError, match="example 1 has 9 x 9 pixels, the first one 4 x 3; say the height and width"):
        reader.read(np.arange(2))


def strange_dds() -> bytes:
    """A file at which Pillow raises NotImplementedError."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "DDS")
    return file.getvalue()[:80] + (153).to_bytes(4, "little") + file.getvalue()[84:]


@pytest.mark.parametrize("broken", [b"no image", b"", jpeg(64, 64)[:400], strange_dds()])
def test_an_image_that_does_not_decode_is_named(broken: bytes) -> None:
    store = store_of(png(1, size=(64, 64)), broken)
    reader = RecordReader(store, decode=[Decoding(column="image", height=64, width=64)])
    with pytest.raises(ConfigError, match="the image of example 1 does not decode"):
        reader.read(np.arange(2))


def test_an_image_of_too_many_pixels_is_named_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(png(1), png(2, size=(20, 30)), jpeg(20, 30))
    reader = RecordReader(store, decode=[Decoding(column="image", height=8, width=8)])
    assert reader.read(np.arange(3)).num_rows == 3
    monkeypatch.setattr(images, "MOST_PIXELS", 599)
    for broken in (1, 2):
        with pytest.raises(ConfigError, match=f"example {broken} does not decode .it has 20 x 30 pixels, and at most"):
            reader.read(np.array([0, broken]))


def test_images_of_their_own_size_are_no_larger_than_others_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_PIXELS", 100)
    with pytest.raises(ConfigError, match=r"the image of example 0 has 20 x 30 pixels, .*say the height and width"):
        RecordReader(store_of(png(2, size=(20, 30))), decode=[Decoding(column="image")])


def test_images_that_no_message_could_carry_are_not_decoded() -> None:
    assert reading.MOST_BYTES == wire.MAX_MESSAGE_BYTES
    reader = RecordReader(store_of(png(1)), decode=[Decoding(column="image", height=4096, width=4096)])
    with pytest.raises(
        ConfigError,
        match=r"100000 images decoded to \(4096, 4096, 3\) have 5033164800000 bytes, and a batch may have 67108864: "
        "decode to a smaller height and width, or ask for a smaller batch_size",
    ):
        reader.read(np.zeros(100_000, np.int64))


@pytest.mark.parametrize(
    ("columns", "decode", "message"),
    [
        (["label", "size"], None, r"no column 'size' in these records; there are \['image', 'label'\]"),
        (["label"], Decoding(column="image"), r"'image', which is not among \['label'\]"),
        ([], Decoding(column="label"), "column of files as bytes, 'label' has int64"),
        ([], Decoding(column="image", mode="CMYK"), r"the modes \['L', 'RGB'\], got 'CMYK'"),
        ([], Decoding(column="image", height=3), "both height and width or neither"),
        ([], Decoding(column="image", height=1 << 16, width=1 << 16), "at most 16777216 pixels"),
    ],
)
def test_what_can_not_be_read_is_refused_at_once(columns: list[str], decode: Decoding | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecordReader(store_of(png(1)), columns, [decode] if decode else [])


@pytest.mark.parametrize(("deleted", "first"), [([], 0), ([0, 1, 3], 2), ([2, 3], 0)])
def test_the_first_example_is_one_that_there_is(deleted: list[int], first: int) -> None:
    store = store_of(*[png(i) for i in range(5)])
    store.deleted = np.array(deleted, dtype=np.int64)
    assert first_of(store).tolist() == [first]
