"""What is wrong with data is said with its name, and nothing is registered."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

from sampler_service.errors import ConfigError, Damaged, NotFound
from sampler_service.records import DataDirectory, images
from sampler_service.records.schemas import is_image
from tests.records.support import Ingest, image, table_of, write_tar


@pytest.fixture(autouse=True)
def nothing_is_registered(data_dir: Path):
    yield
    assert DataDirectory(data_dir).names() in ([], ["good"])


def test_an_address_at_which_there_is_nothing(register: Ingest, tmp_path):
    with pytest.raises(NotFound, match=f"there is nothing at {tmp_path}/nowhere.parquet: look at the spelling"):
        register(tmp_path / "nowhere.parquet")
    with pytest.raises(NotFound, match=r"no file fits .*\*.csv"):
        register(f"{tmp_path}/*.csv")


def test_a_scheme_that_nobody_knows(register: Ingest):
    with pytest.raises(ConfigError, match=r"address 'ftpx://host/a.csv' can't be used: Protocol not known: ftpx"):
        register("ftpx://host/a.csv")
    with pytest.raises(ConfigError, match=r"s3://b/k' with the storage options endpoint can't be used: .*'endpoint'"):
        register("s3://b/k", storage_options={"endpoint": "http://127.0.0.1:1"})


def test_a_column_that_there_is_not(register: Ingest, tmp_path):
    pq.write_table(table_of(3), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a.parquet has no column 'labl': it has key, number, vector, text"):
        register(tmp_path / "a.parquet", columns=["key", "labl"])
    with pytest.raises(ConfigError, match="no column 'labl'"):
        register(tmp_path / "a.parquet", schema=pa.schema({"labl": pa.int64()}))


def test_files_of_one_data_set_with_different_columns(register: Ingest, tmp_path):
    pq.write_table(table_of(3), tmp_path / "a.parquet")
    pq.write_table(table_of(3).drop(["text"]), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match=r"column 'text' is in .*a.parquet and not in .*b.parquet: choose columns"):
        register(tmp_path)
    assert register(tmp_path, "good", columns=["key", "number"]).num_examples == 6


def test_files_of_one_data_set_with_different_types(register: Ingest, tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": ["1"]}), tmp_path / "b.parquet")
    with pytest.raises(
        ConfigError, match=r"column 'x' is int64 in .*a.parquet and string in .*b.parquet: give the type"
    ):
        register(tmp_path)


def test_two_columns_of_one_name(register: Ingest):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    with pytest.raises(ConfigError, match="more than one column named 'x'"):
        register(table)


def test_a_value_that_is_none_of_its_columns_type(register: Ingest, tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n2\n")
    (tmp_path / "b.csv").write_text("x\nten\n")
    with pytest.raises(Damaged, match=r"b.csv can't be read: .*conversion error to int64: invalid value 'ten'"):
        register(tmp_path, schema=pa.schema({"x": pa.int64()}))
    pq.write_table(pa.table({"x": ["1", "two"]}), tmp_path / "c.parquet")
    with pytest.raises(Damaged, match=r"column 'x' of .*c.parquet is string and not int64: .*'two'"):
        register(tmp_path / "c.parquet", schema=pa.schema({"x": pa.int64()}))


@pytest.mark.parametrize(
    "name", ["a.parquet", "a.arrow", "stream.arrow", "a.csv", "a.csv.gz", "a.jsonl", "a.tar", "a.tar.gz"]
)
def test_a_file_that_is_cut_off(register: Ingest, tmp_path, name: str):
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(table_of(1000), path)
    elif name.endswith(".arrow"):
        write = pa.ipc.new_stream if name == "stream.arrow" else pa.ipc.new_file
        with write(path, table_of(1000).schema) as writer:
            writer.write_table(table_of(1000), max_chunksize=100)
    elif name == "a.csv":
        path.write_text("x,y,z\n" + "1,2,3\n" * 1000)
    elif name == "a.csv.gz":
        numbers = np.random.default_rng(0).integers(0, 1000, (1000, 2)).tolist()
        path.write_bytes(gzip.compress("".join(f"{x},{y}\n" for x, y in [("x", "y"), *numbers]).encode()))
    elif name == "a.jsonl":
        path.write_text('{"x": [1, 2]}\n' * 1000)
    else:
        write_tar(path, {f"{number}.txt": bytes([number]) * 600 for number in range(100)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3 + 1])
    with pytest.raises(Damaged, match=rf"{name} .*can.* be read.*is it whole"):
        register(path)


@pytest.mark.parametrize("batches", range(4))
def test_an_arrow_stream_that_ends_between_two_batches_is_cut_off(register: Ingest, tmp_path, batches: int):
    table = table_of(30).append_column("coded", pa.array(["x", "y", "z"] * 10).dictionary_encode())
    path = tmp_path / "a.arrow"
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        for number in range(batches):
            writer.write_batch(table.combine_chunks().slice(10 * number, 10).to_batches()[0])
    whole = path.read_bytes()
    assert whole.endswith(b"\xff\xff\xff\xff\0\0\0\0")
    for missing in (8, 4):
        path.write_bytes(whole[:-missing])
        with pytest.raises(Damaged, match=r"a.arrow can't be read: .*is it whole"):
            register(path)
    if batches:
        path.write_bytes(whole)
        assert register(path, "good").num_examples == 10 * batches


def test_a_file_that_is_of_another_format(register: Ingest, tmp_path):
    (tmp_path / "a.parquet").write_text("x\n1\n")
    with pytest.raises(Damaged, match=r"a.parquet can't be read"):
        register(tmp_path)


def test_an_image_that_does_not_decode_is_named_or_left_out_and_counted(register: Ingest, tmp_path):
    for name, data in {
        "a/1.jpg": image(1, "JPEG", 64),
        "a/cut.jpg": image(2, "JPEG", 64)[:-60],
        "b/cut.png": image(3, side=64)[:-30],
        "b/empty.png": b"",
        "b/text.jpg": b"no image",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(Damaged, match=r"a/cut.jpg of .* can't be used: column 'image': .*truncated.*on_bad='skip'"):
        register(tmp_path)
    store = register(tmp_path, "good", on_bad="skip")
    assert store.take(np.array([0]), ["path"]).to_pydict() == {"path": ["a/1.jpg"]}
    assert store.manifest.shards[0].skipped == ("a/cut.jpg", "b/cut.png", "b/empty.png", "b/text.jpg")


@pytest.mark.parametrize("form", ["GIF", "BMP", "PPM", "MPO", "WEBP", "TIFF", "JPEG", "PNG"])
def test_an_image_that_is_cut_off_does_not_decode_whatever_its_format(register: Ingest, form: str):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    written = io.BytesIO()
    two = {"save_all": True, "append_images": [Image.fromarray(pixels)]} if form == "MPO" else {}
    Image.fromarray(pixels).save(written, form, **two)
    whole, cut = written.getvalue(), written.getvalue()[: len(written.getvalue()) // 3]
    assert Image.open(io.BytesIO(whole)).format == form
    with pytest.raises(Damaged, match=r"row 1 of .* can't be used: column 'picture': "):
        register(pa.table({"picture": [whole, cut]}))
    assert register(pa.table({"picture": [whole, cut]}), "good", on_bad="skip").num_examples == 1


def test_images_in_large_binary_are_looked_at_too(register: Ingest):
    table = pa.table({"picture": pa.array([image(1), image(2)[:-20]], pa.large_binary())})
    with pytest.raises(Damaged, match=r"row 1 of .*column 'picture'"):
        register(table)
    store = register(table, "good", on_bad="skip")
    assert is_image(store.schema.field("picture"))


def test_a_png_without_a_pixel_is_a_bad_image_and_no_accident(register: Ingest):
    png = png_of((b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)), (b"IEND", b""))
    with pytest.raises(Damaged, match=r"row 1 of .* can't be used: column 'picture': "):
        register(pa.table({"picture": [image(1), png]}))
    assert not is_image(register(pa.table({"picture": [png]}), "good").schema.field("picture"))


def header_of_png(width: int, height: int) -> bytes:
    """A PNG file that says how large it is, and has not a pixel."""
    return png_of((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""))


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of these chunks."""
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_an_image_of_too_many_pixels_is_not_decoded_but_named_or_left_out(register: Ingest, tmp_path):
    (tmp_path / "1.png").write_bytes(image(1))
    (tmp_path / "large.png").write_bytes(header_of_png(8192, 8193))
    (tmp_path / "larger.png").write_bytes(header_of_png(60_000, 60_000))
    with pytest.raises(
        Damaged, match=r"large.png of .* used: column 'image': it has 8192 x 8193 pixels, and at most 67108864 are"
    ):
        register(tmp_path)
    store = register(tmp_path, "good", on_bad="skip")
    assert store.manifest.shards[0].skipped == ("large.png", "larger.png")
    (tmp_path / "edge.png").write_bytes(header_of_png(8192, 8192))
    with pytest.raises(Damaged, match=r"edge.png .* can't be used: column 'image': (?!it has)"):
        register(tmp_path / "edge.png", format="images")


def test_a_jpeg_of_too_many_pixels_is_not_decoded_either(register: Ingest, monkeypatch):
    jpeg = image(1, "JPEG", 64)
    monkeypatch.setattr(images, "MOST_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(Damaged, match="column 'picture': it has 64 x 64 pixels, and at most 4095"):
        register(pa.table({"picture": [jpeg]}))


def test_a_bad_image_in_a_table_is_named_by_its_row(register: Ingest):
    images = [image(number) for number in range(10)]
    images[3] = images[3][:-20]
    table = pa.table({"picture": [None, *images]})  # nothing is no bad image
    with pytest.raises(Damaged, match=r"row 4 of memory:table .*column 'picture'"):
        register(table)
    store = register(table, "good", on_bad="skip")
    assert (store.num_examples, store.manifest.shards[0].skipped) == (10, ("row 4",))


def test_a_bad_sample_of_a_tar_is_named_or_left_out(register: Ingest, tmp_path):
    write_tar(tmp_path / "a.tar", {"x/1.cls": b"4", "x/2.cls": b"four", "x/3.cls": b"5"})
    with pytest.raises(Damaged, match=r"sample 'x/2' of .*a.tar can't be used: invalid literal for int"):
        register(tmp_path / "a.tar")
    assert register(tmp_path / "a.tar", "good", on_bad="skip").take(np.arange(2), ["cls"]).to_pydict() == {
        "cls": [4, 5]
    }


def test_members_of_a_tar_that_fit_no_sample(register: Ingest, tmp_path):
    write_tar(tmp_path / "a.tar", {"1.txt": b"a", "1.TXT": b"b"})
    with pytest.raises(Damaged, match=r"sample '1' of .*a.tar has two members .txt"):
        register(tmp_path / "a.tar")
    write_tar(tmp_path / "b.tar", {**{f"{number:03d}.txt": b"a" for number in range(150)}, "999.late": b"b"})
    with pytest.raises(Damaged, match=r"sample '999' of .*b.tar has a member .late, and the first 100 have none"):
        register(tmp_path / "b.tar")


def test_images_beside_folders_of_classes(register: Ingest, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/1.png", "2.png"):
        (tmp_path / name).write_bytes(image(1))
    with pytest.raises(ConfigError, match=r"2.png lies in .* itself and other images in folders of classes"):
        register(tmp_path, format="images")


def test_a_source_with_nothing_in_it(register: Ingest, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="there is nothing in"):
        register(tmp_path / "empty", format="csv")
    with pytest.raises(ConfigError, match="there is nothing in Table"):
        register(table_of(0))
    with pytest.raises(ConfigError, match="there is nothing in list"):
        register([])
    (tmp_path / "a.csv").write_text("x,y\n")
    with pytest.raises(ConfigError, match=r"there are no records in .*a.csv"):
        register(tmp_path / "a.csv")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.png").write_bytes(b"no")
    with pytest.raises(ConfigError, match=r"no records in .*1.png.* that are sound"):
        register(tmp_path / "bad", on_bad="skip")


def test_arguments_that_are_none(register: Ingest):
    with pytest.raises(ConfigError, match="on_bad must be 'fail' or 'skip', got 'ignore'"):
        register(table_of(3), on_bad="ignore")
    with pytest.raises(NotFound, match="'data' is not registered yet"):
        register(table_of(3), append=True)
    with pytest.raises(ConfigError, match="a int can't be registered"):
        register(3)
