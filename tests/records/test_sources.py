"""Every kind of data becomes the records that it holds, in the order of its files and rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from sampler_service.errors import ConfigError, Damaged
from sampler_service.records import fragments as fragments_module
from sampler_service.records import tables as tables_module
from sampler_service.records.schemas import class_names, is_image, with_classes
from tests.records.support import Ingest, all_of, image, table_of, write_tar


def test_parquet_files_come_by_name_and_rows_in_their_order(register: Ingest, tmp_path):
    table = table_of(100)
    (tmp_path / "source/deeper").mkdir(parents=True)
    pq.write_table(table.slice(0, 30), tmp_path / "source/a.parquet")
    pq.write_table(table.slice(70), tmp_path / "source/z.parquet")
    pq.write_table(table.slice(30, 40), tmp_path / "source/deeper/b.parquet")
    (tmp_path / "source/_SUCCESS").touch()
    (tmp_path / "source/.hidden.parquet").write_bytes(b"no")
    store = register(tmp_path / "source")
    assert all_of(store) == table.to_pylist()
    assert [(shard.first_id, shard.rows) for shard in store.manifest.shards] == [(0, 30), (30, 40), (70, 30)]
    again = register(tmp_path / "source", "again")
    assert [shard.checksum for shard in again.manifest.shards] == [shard.checksum for shard in store.manifest.shards]


def test_a_large_parquet_file_becomes_a_shard_for_some_row_groups_each(register: Ingest, tmp_path, monkeypatch):
    monkeypatch.setattr(fragments_module, "SHARD_BYTES", 2000)
    monkeypatch.setattr(tables_module, "SHARD_BYTES", 2000)
    table = table_of(200)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    store = register(tmp_path / "a.parquet")
    parts = [shard.source.part for shard in store.manifest.shards]
    assert 1 < len(parts) < 10
    assert parts[0].startswith("row groups 0 to ")
    assert parts[-1].endswith(" to 9")
    assert all_of(store) == table.to_pylist()


def test_a_pattern_and_a_list_choose_files(register: Ingest, tmp_path):
    for number in range(4):
        pq.write_table(table_of(number + 1), tmp_path / f"part-{number}.parquet")
    (tmp_path / "part-5.csv").write_text("a\n1\n")
    assert register(f"{tmp_path}/part-*.parquet", "pattern").num_examples == 10
    listed = register([f"{tmp_path}/part-3.parquet", tmp_path / "part-0.parquet"], "list")
    assert [shard.rows for shard in listed.manifest.shards] == [4, 1]
    assert register((tmp_path / "part-2.parquet").as_uri(), "uri").num_examples == 3


@pytest.mark.parametrize("compression", ["uncompressed", "zstd"])
def test_arrow_files_streams_and_feather_are_read(register: Ingest, tmp_path, compression: str):
    table = table_of(50)
    coded = table.append_column("coded", pa.array(["x", "y"] * 25).dictionary_encode())
    pyarrow.feather.write_feather(coded, tmp_path / "a.feather", compression=compression)
    with pa.ipc.new_stream(tmp_path / "b.arrow", coded.schema) as writer:
        writer.write_table(coded, max_chunksize=7)
    store = register(tmp_path, format="arrow")
    assert store.schema.field("coded").type == pa.string()
    assert all_of(store) == coded.to_pylist() * 2


def test_csv_has_the_types_that_are_seen_or_those_that_are_given(register: Ingest, tmp_path):
    (tmp_path / "a.csv").write_text('id,score,text\n1,2,"a, b"\n2,3,"c\nd"\n')
    (tmp_path / "b.csv").write_text("id,score,text\n3,0.5,e\n")
    (tmp_path / "c.tsv").write_text("id\tscore\ttext\n4\t7\tf\n")
    store = register(tmp_path, format="csv")
    assert store.schema.types == [pa.int64(), pa.float64(), pa.string()], "integers in one file, floats in another"
    assert all_of(store)[1:] == [
        {"id": 2, "score": 3.0, "text": "c\nd"},
        {"id": 3, "score": 0.5, "text": "e"},
        {"id": 4, "score": 7.0, "text": "f"},
    ]
    given = register(tmp_path, "given", format="csv", schema=pa.schema({"id": pa.string(), "score": pa.float32()}))
    assert given.schema.types == [pa.string(), pa.float32(), pa.string()]
    assert given.take(np.array([0]), ["id"]).to_pylist() == [{"id": "1"}]


def test_compressed_text_files_are_read(register: Ingest, tmp_path):
    with pa.CompressedOutputStream(str(tmp_path / "a.csv.gz"), "gzip") as file:
        file.write(b"x\n1\n2\n")
    assert all_of(register(tmp_path / "a.csv.gz")) == [{"x": 1}, {"x": 2}]


def test_json_lines_keep_lists_and_structs(register: Ingest, tmp_path):
    lines = [{"a": 1, "b": ["x"], "c": {"d": 2.5}}, {"a": 2, "b": [], "c": {"d": 1.0}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert all_of(register(tmp_path / "a.jsonl")) == lines
    chosen = register(tmp_path / "a.jsonl", "chosen", columns=["c", "a"])
    assert chosen.schema.names == ["c", "a"]
    assert all_of(chosen) == [{"c": {"d": 2.5}, "a": 1}, {"c": {"d": 1.0}, "a": 2}]


def test_a_json_field_that_comes_late_is_an_error_unless_columns_are_chosen(register: Ingest, tmp_path, monkeypatch):
    monkeypatch.setattr(tables_module, "JSON_BLOCK", 64)
    lines = [{"a": number} for number in range(50)] + [{"a": 50, "late": 1}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(Damaged, match="unexpected field"):
        register(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"x": 0, **line}) for line in lines))
    assert register(tmp_path / "b.jsonl", "b", columns=["a"]).num_examples == 51


def test_a_folder_of_images_has_a_label_for_each_folder(register: Ingest, tmp_path):
    root = tmp_path / "animals"
    for name, value in (("dog/1.png", 10), ("cat/2.jpg", 20), ("cat/deep/3.PNG", 30), ("dog/notes.txt", None)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"notes" if value is None else image(value, "JPEG" if name.endswith("jpg") else "PNG"))
    store = register(root)
    assert class_names(store.schema.field("label")) == ["cat", "dog"]
    assert is_image(store.schema.field("image"))
    assert store.take(np.arange(3), ["label", "path"]).to_pylist() == [
        {"label": 0, "path": "cat/2.jpg"},
        {"label": 0, "path": "cat/deep/3.PNG"},
        {"label": 1, "path": "dog/1.png"},
    ]
    assert store.take(np.array([2]), ["image"]).to_pylist() == [{"image": (root / "dog/1.png").read_bytes()}]


def folders_of_images(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image(number))


def test_several_folders_of_images_number_their_classes_together(register: Ingest, tmp_path):
    folders_of_images(tmp_path, "one/cat/1.png", "one/dog/1.png", "two/dog/2.png", "two/fish/2.png")
    store = register([tmp_path / "one", tmp_path / "two"])
    assert class_names(store.schema.field("label")) == ["cat", "dog", "fish"]
    assert store.take(np.arange(4), ["label", "path"]).to_pydict() == {
        "label": [0, 1, 1, 2],
        "path": ["cat/1.png", "dog/1.png", "dog/2.png", "fish/2.png"],
    }
    assert register([tmp_path / "one", tmp_path / "two"]).generation == 1
    folders_of_images(tmp_path, "three/fish/3.png", "three/cat/3.png")
    grown = register([tmp_path / "three", tmp_path / "two"], append=True)
    assert grown.take(np.arange(4, 6), ["label"]).to_pydict() == {"label": [0, 2]}


def test_files_whose_labels_stand_for_other_classes_do_not_go_together(register: Ingest, tmp_path):
    for name, classes in (("a", ["cat", "dog"]), ("b", ["dog", "fish"])):
        label = with_classes(pa.field("label", pa.int64()), classes)
        pq.write_table(pa.table([pa.array([0, 1])], schema=pa.schema([label])), tmp_path / f"{name}.parquet")
    with pytest.raises(
        ConfigError,
        match=r"classes of column 'label' are \['cat', 'dog'\] in .*a.parquet and \['dog', 'fish'\] in .*b.parquet: ",
    ):
        register(tmp_path)


def test_images_without_folders_have_no_label_and_many_become_several_shards(register: Ingest, tmp_path, monkeypatch):
    from sampler_service.records import images as images_module

    monkeypatch.setattr(images_module, "SHARD_BYTES", 300)
    (tmp_path / "flat").mkdir()
    for number in range(10):
        (tmp_path / f"flat/{number}.png").write_bytes(image(number))
    store = register(tmp_path / "flat")
    assert store.schema.names == ["image", "path"]
    assert len(store.manifest.shards) > 2
    assert [row["path"] for row in all_of(store)] == [f"{number}.png" for number in range(10)]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_webdataset_has_a_column_for_each_extension(register: Ingest, tmp_path, name: str):
    members = {}
    for number in range(3):
        key = f"train/{number:04d}"
        members |= {f"{key}.jpg": image(number, "JPEG"), f"{key}.cls": b" 7\n", f"{key}.json": b'{"a": 1}'}
        members |= {f"{key}.seg.png": image(number)} if number else {}
    write_tar(tmp_path / name, members)
    store = register(tmp_path / name)
    assert store.schema.names == ["__key__", "cls", "jpg", "json", "seg.png"]
    assert [is_image(field) for field in store.schema] == [False, False, True, False, True]
    assert store.take(np.array([0, 2]), ["__key__", "cls", "json"]).to_pylist() == [
        {"__key__": "train/0000", "cls": 7, "json": '{"a": 1}'},
        {"__key__": "train/0002", "cls": 7, "json": '{"a": 1}'},
    ]
    assert store.take(np.array([1]), ["jpg"]).to_pylist() == [{"jpg": members["train/0001.jpg"]}]


def test_bytes_in_a_table_that_are_images_are_said_to_be(register: Ingest, tmp_path):
    table = pa.table({"image": [image(1), image(2)], "blob": [b"12", b"3"], "text": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    store = register(tmp_path / "a.parquet")
    assert [is_image(field) for field in store.schema] == [True, False, False]


def test_images_of_hugging_face_in_parquet_are_their_bytes(register: Ingest, tmp_path):
    table = pa.table({"image": [{"bytes": image(1), "path": "1.png"}, {"bytes": image(2), "path": None}]})
    pq.write_table(table, tmp_path / "a.parquet")
    store = register(tmp_path / "a.parquet")
    assert store.schema.field("image").type == pa.binary()
    assert is_image(store.schema.field("image"))
    assert all_of(store) == [{"image": image(1)}, {"image": image(2)}]


def test_a_table_in_memory_is_divided_where_it_is_large(register: Ingest, monkeypatch):
    monkeypatch.setattr(tables_module, "SHARD_BYTES", 1000)
    table = table_of(100)
    store = register(table)
    assert len(store.manifest.shards) > 2
    assert all_of(store) == table.to_pylist()


def test_formats_that_can_not_be_told_are_asked_for(register: Ingest, tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n")
    (tmp_path / "b.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(ConfigError, match=r"several formats \(1 of csv, 1 of jsonl\): choose one with format="):
        register(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="for it is empty"):
        register(tmp_path / "other")
    (tmp_path / "other/notes.txt").write_text("x\n1\n")
    with pytest.raises(ConfigError, match=r"of 1 files, such as notes.txt: choose"):
        register(tmp_path / "other")
    assert register(tmp_path / "other", format="csv").num_examples == 1
    with pytest.raises(ConfigError, match="'xml' is none of auto, parquet"):
        register(tmp_path, format="xml")
