"""Ingestion: once, resumable, and either wholly or not at all."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from sampler_service.errors import Busy, ConfigError, Conflict, Damaged, NotFound, Stale, Unavailable
from sampler_service.records import RecordStore, ingest, ingestion, progress, tables, verify, writing
from sampler_service.records.directory import changing
from sampler_service.records.manifest import PART
from sampler_service.records.progress import one_by_one
from tests.records.support import Ingest, all_of, image, table_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five Parquet files of twenty records."""
    (tmp_path / "source").mkdir()
    for number in range(5):
        pq.write_table(table_of(100).slice(20 * number, 20), tmp_path / f"source/{number}.parquet")
    return tmp_path / "source"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are really written."""
    names: list[str] = []
    opened = writing.open_part

    def open_part(path: Path) -> io.IOBase:
        names.append(path.name.partition(PART)[0])
        return opened(path)

    monkeypatch.setattr(writing, "open_part", open_part)
    return names


class SmallDisk:
    """Files of a disk on which there is room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def open_part(self, path: Path) -> io.BufferedWriter:
        return io.BufferedWriter(_OnSmallDisk(self, path), 16)


class _OnSmallDisk(io.FileIO):
    def __init__(self, disk: SmallDisk, path: Path) -> None:
        super().__init__(path, "wb")
        self._disk = disk

    def write(self, data, /) -> int:
        self._disk.room -= len(data)
        if self._disk.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_the_same_again_writes_nothing(register: Ingest, source, written):
    assert register(source).generation == 1
    assert len(written) == 5
    again = register(source)
    assert (again.generation, len(written)) == (1, 5)


def test_a_full_disk_leaves_no_half_shard_and_the_same_call_goes_on(
    register: Ingest, source, data_dir, written, monkeypatch
):
    size = register(source, "measured").manifest.shards[0].bytes
    written.clear()
    with monkeypatch.context() as patched:
        patched.setattr(writing, "open_part", SmallDisk(int(2.5 * size)).open_part)
        with pytest.raises(Unavailable, match=r"disk of .*data is full: shards that were finished are kept; make room"):
            register(source, execute=one_by_one)
    folder = data_dir / "data"
    assert sorted(path.name for path in folder.glob("*.arrow*")) == ["00000.arrow", "00001.arrow"]
    with pytest.raises(NotFound):
        register(source, append=True)
    store = register(source)
    assert sorted(written) == ["00002.arrow", "00003.arrow", "00004.arrow"]
    assert all_of(store) == table_of(100).to_pylist()
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        *(f"0000{number}.arrow" for number in range(5)),
        "manifest.json",
    ]


def test_a_disk_that_is_full_when_all_is_written_but_the_manifest_registers_nothing(
    register: Ingest, source, written, monkeypatch
):
    def no_space(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ingestion, "write_manifest", no_space)
        with pytest.raises(Unavailable, match="is full: shards that were finished are kept"):
            register(source, id_column="key")
    with pytest.raises(NotFound):
        register(source, append=True)
    written.clear()
    store = register(source, id_column="key")
    assert (written, store.generation) == ([], 1)
    assert store.ids_of(["k0099"]).tolist() == [99]


def test_a_full_disk_leaves_the_data_set_as_it_was_when_more_is_appended(register: Ingest, source, monkeypatch):
    before = register(table_of(7), "data")
    with monkeypatch.context() as patched:
        patched.setattr(writing, "open_part", SmallDisk(100).open_part)
        with pytest.raises(Unavailable, match="is full"):
            register(source, append=True)
    assert not before.refresh()
    assert register(source, append=True).num_examples == 107


def test_a_terminal_shows_how_far_it_is(register: Ingest, source, monkeypatch):
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, color_system=None, width=200)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    store = register(source)
    last = [line for line in shown.getvalue().splitlines() if "shards" in line][-1]
    assert "data" in last and "5/5 shards" in last
    assert f"100 records, {store.manifest.bytes / 1e6:,.0f} MB" in last


def test_a_folder_that_can_not_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match=f"{tmp_path}/file/sets/data can't be written: .*Not a directory"):
        ingest(table_of(3), "data", data_dir=tmp_path / "file/sets")


KILLED = """
import os, signal, sys
from sampler_service.records import ingest
from sampler_service.records.writing import write_shard

def execute(works):
    for number, work in enumerate(works):
        def killed(rows, size):
            if number == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        yield write_shard(work, killed)

ingest(sys.argv[1], "data", data_dir=sys.argv[2], execute=execute)
"""


def test_an_ingestion_that_was_killed_goes_on_where_it_was(register: Ingest, source, data_dir, written):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(source), str(data_dir)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (data_dir / "data").glob("*.arrow*"))
    assert left[:3] == ["00000.arrow", "00001.arrow", "00002.arrow"]
    assert left[3].startswith("00003.arrow.part-"), "it was in the middle of one"
    store = register(source)
    assert sorted(written) == ["00003.arrow", "00004.arrow"]
    assert all_of(store) == table_of(100).to_pylist()
    assert not list((data_dir / "data").glob("*.part-*"))


def interrupted(source: Path, data_dir: Path) -> None:
    """Write two shards, then fail."""

    def execute(works) -> Iterator:
        yield from one_by_one(works[:2])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(source, "data", data_dir=data_dir, execute=execute)


def test_a_finished_shard_is_written_again_if_its_source_has_changed(register: Ingest, source, data_dir, written):
    interrupted(source, data_dir)
    pq.write_table(table_of(3), source / "0.parquet")
    written.clear()
    store = register(source)
    assert sorted(written) == ["00000.arrow", "00002.arrow", "00003.arrow", "00004.arrow"]
    assert store.num_examples == 83


def test_a_finished_shard_is_written_again_if_its_bytes_are_wrong(register: Ingest, source, data_dir, written):
    interrupted(source, data_dir)
    shard = data_dir / "data/00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    written.clear()
    store = register(source)
    assert sorted(written)[0] == "00001.arrow"
    assert all_of(store) == table_of(100).to_pylist()


def test_a_finished_shard_is_written_again_if_other_columns_are_wanted(register: Ingest, source, data_dir, written):
    interrupted(source, data_dir)
    written.clear()
    store = register(source, columns=["number"])
    assert len(written) == 5
    assert store.schema.names == ["number"]


def test_new_files_are_appended_behind_those_that_are_there(register: Ingest, source, tmp_path):
    register(source)
    pq.write_table(table_of(110).slice(100), source / "0-late.parquet")  # by name it would be the second
    grown = register(source, append=True)
    assert (grown.generation, grown.num_examples) == (2, 110)
    assert all_of(grown) == table_of(110).to_pylist()
    assert grown.manifest.shards[-1].first_id == 100
    assert register(source, append=True).generation == 2, "nothing is new"
    pq.write_table(table_of(5), tmp_path / "other.parquet")
    assert register(tmp_path / "other.parquet", append=True).num_examples == 115


def test_what_was_deleted_stays_deleted_when_more_is_appended(register: Ingest, source):
    from sampler_service.records import delete

    delete(register(source), [5])
    grown = register(table_of(3), append=True)
    assert (grown.deleted.tolist(), grown.num_examples, grown.generation) == ([5], 103, 3)


def test_new_images_are_appended_and_keep_the_labels_of_their_classes(register: Ingest, tmp_path):
    root = tmp_path / "images"
    for name in ("a/1.png", "b/1.png", "c/1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image(3))
    (root / "a/bad.png").write_bytes(b"no")
    register(root, on_bad="skip")
    (root / "c/0.png").write_bytes(image(4))
    grown = register(root, append=True)
    assert grown.take(np.arange(4), ["label", "path"]).to_pydict() == {
        "label": [0, 1, 2, 2],
        "path": ["a/1.png", "b/1.png", "c/1.png", "c/0.png"],
    }
    verify(grown)
    (root / "d").mkdir()
    (root / "d/1.png").write_bytes(image(4))
    with pytest.raises(
        Conflict, match=r"classes of column 'label' of .* are \['d'\], registered are \['a', 'b', 'c'\]"
    ):
        register(root, append=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop(["text"]), "column 'text' is registered and .* has none"),
        (lambda table: table.append_column("more", pa.array([1] * 5)), "column 'more' of .* is not registered"),
        (
            lambda table: table.set_column(1, "number", pa.array(["x"] * 5)),
            "'number' of .* is string, registered is int64",
        ),
        (
            lambda table: table.set_column(1, "number", pa.array([0.5] * 5)),
            "'number' of .* is double, registered is int64",
        ),
    ],
)
def test_other_columns_can_not_be_appended(register: Ingest, change, said: str):
    store = register(table_of(4))
    with pytest.raises(Conflict, match=said):
        register(change(table_of(5)), append=True)
    assert not store.refresh()


def test_narrower_columns_can_be_appended(register: Ingest):
    register(pa.table({"x": [0.5]}))
    assert all_of(register(pa.table({"x": [1, 2]}), append=True)) == [{"x": 0.5}, {"x": 1.0}, {"x": 2.0}]


def test_a_name_that_stands_for_something_else_is_not_overwritten(register: Ingest, source, tmp_path):
    register(source, id_column="key")
    pq.write_table(table_of(5), tmp_path / "other.parquet")
    with pytest.raises(
        Conflict, match=r"'data' is registered and does not hold .*other.parquet: add it with append=True"
    ):
        register(tmp_path / "other.parquet")
    with pytest.raises(Conflict, match="has the id column 'key', not 'number'"):
        register(source, id_column="number")
    with pytest.raises(Conflict, match="has the columns key, number, vector, text: they stay"):
        register(source, columns=["other"])


def test_columns_and_types_that_are_registered_stay_when_others_are_asked_for(register: Ingest, source):
    register(source, columns=["number", "text"], schema=pa.schema({"number": pa.int32()}))
    again = {"columns": ["text", "number"], "schema": pa.schema({"number": pa.int32()})}
    assert register(source, **again).generation == register(source).generation == 1
    for append in (False, True):
        with pytest.raises(Conflict, match="'data' has the columns number, text: they stay"):
            register(source, columns=["text"], append=append)
        with pytest.raises(Conflict, match="column 'number' of data set 'data' is int32, not double: it stays"):
            register(source, schema=pa.schema({"number": pa.float64()}), append=append)
        with pytest.raises(Conflict, match="'data' has no column 'key': it has number, text"):
            register(source, schema=pa.schema({"key": pa.string()}), append=append)
    pq.write_table(table_of(110).slice(100), source / "new.parquet")
    assert register(source, **again, append=True).num_examples == 110
    keyed = register(table_of(3), "keyed", id_column="number", schema=pa.schema({"number": pa.int16()}))
    assert register(table_of(3), "keyed", schema=pa.schema({"number": pa.int16()})).version == keyed.version


def test_the_path_of_images_is_a_column_that_is_not_asked_for(register: Ingest, tmp_path):
    (tmp_path / "1.png").write_bytes(image(1))
    assert register(tmp_path / "1.png", columns=["image"]).schema.names == ["image", "path"]
    assert register(tmp_path / "1.png", columns=["image"]).generation == 1


def test_a_registered_file_that_changes_is_noticed(register: Ingest, source):
    store = register(source)
    verify(store)
    pq.write_table(table_of(3), source / "2.parquet")
    with pytest.raises(Stale, match=r"2.parquet has changed since it was registered \(\d+ bytes then, \d+ now\)"):
        register(source, append=True)
    with pytest.raises(
        Stale, match=r"'data' is whole, but .*2.parquet has \d+ bytes and had \d+; its records are those"
    ):
        verify(store)
    verify(store, sources=False)
    os.utime(source / "3.parquet", ns=(0, 0))  # its bytes are what they were
    (source / "4.parquet").unlink()
    with pytest.raises(Stale, match=r"is whole, but .*2.parquet has \d+ bytes and had \d+; .*4.parquet is gone; its"):
        verify(store)


def test_files_that_were_copied_anew_are_still_those_that_are_registered(register: Ingest, source, tmp_path):
    register(source)
    (tmp_path / "a.csv").write_text("x\n1\n2\n")
    register(tmp_path / "a.csv", "csv", schema=pa.schema({"x": pa.float32()}))
    for path in (*source.iterdir(), tmp_path / "a.csv"):
        os.utime(path, ns=(0, 0))
    pq.write_table(table_of(110).slice(100), source / "new.parquet")
    grown = register(source, append=True)
    assert (grown.num_examples, grown.generation) == (110, 2)
    verify(grown)
    assert register(tmp_path / "a.csv", "csv").generation == 1
    (tmp_path / "a.csv").write_text("x\n1\n3\n")
    with pytest.raises(Stale, match=r"a.csv was written again"):
        verify(RecordStore.open(grown.path.with_name("csv")))
    with pytest.raises(Stale, match=r"a.csv has changed since it was registered \(6 bytes then, 6 now\)"):
        register(tmp_path / "a.csv", "csv")


def test_a_large_file_that_was_copied_anew_is_compared_part_by_part(register: Ingest, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "SHARD_BYTES", 2000)
    pq.write_table(table_of(200), tmp_path / "a.parquet", row_group_size=20, compression="none")
    store = register(tmp_path / "a.parquet", columns=["number"])
    assert len(store.manifest.shards) > 1
    os.utime(tmp_path / "a.parquet", ns=(0, 0))
    verify(store)
    data = (tmp_path / "a.parquet").read_bytes()
    last = (1990).to_bytes(8, "little")
    assert last in data
    (tmp_path / "a.parquet").write_bytes(data.replace(last, (1991).to_bytes(8, "little")))
    with pytest.raises(Stale, match=r"a.parquet was written again"):
        verify(store)


def test_registered_images_that_change_are_noticed(register: Ingest, tmp_path):
    for name in ("1.bmp", "2.bmp", "bad.bmp"):
        (tmp_path / name).write_bytes(b"no" if name == "bad.bmp" else image(1, "BMP"))
    store = register(f"{tmp_path}/*.bmp", format="images", on_bad="skip")
    verify(store)
    os.utime(tmp_path / "1.bmp", ns=(0, 0))
    verify(store)
    (tmp_path / "2.bmp").write_bytes(image(2, "BMP"))
    with pytest.raises(Stale, match=r"files of .* \(1.bmp to bad.bmp\) were written again"):
        verify(store)
    (tmp_path / "2.bmp").unlink()
    with pytest.raises(Stale, match=r"2.bmp of .* is gone"):
        verify(store)


def test_a_shard_whose_bytes_change_is_noticed(register: Ingest, source):
    store = register(source, id_column="key")
    shard = store.path / "00003.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Damaged, match=r"not what was registered: .*00003.arrow has another checksum; restore"):
        verify(store)
    shard.unlink()
    with pytest.raises(Damaged, match=r"00003.arrow is missing"):
        verify(store)


def test_a_shard_that_fails_ends_those_that_are_written_beside_it(register: Ingest, source, data_dir, monkeypatch):
    monkeypatch.setattr(progress, "_writers", lambda _: 3)
    whole = (source / "2.parquet").read_bytes()
    (source / "2.parquet").write_bytes(whole[:-500] + bytes(100) + whole[-400:])
    with pytest.raises(Damaged, match=r"2.parquet"):
        register(source)
    assert not list((data_dir / "data").glob("*.part-*"))
    (source / "2.parquet").write_bytes(whole)
    assert all_of(register(source)) == table_of(100).to_pylist()


def test_only_one_process_changes_a_data_set(register: Ingest, source, data_dir):
    with changing(data_dir / "data"), pytest.raises(Busy, match=r"another process is changing the data set in .*data"):
        register(source)
    assert register(source).num_examples == 100


def test_shards_of_a_source_that_was_given_up_are_removed(register: Ingest, source, data_dir):
    interrupted(source, data_dir)
    store = register(table_of(3))
    assert [path.name for path in sorted(store.path.glob("0*"))] == ["00000.arrow"]


def test_an_append_that_fails_leaves_its_keys_out(register: Ingest):
    store = register(table_of(4), id_column="key")
    with pytest.raises(ConfigError, match="is there twice"):
        register(table_of(5), append=True)
    assert store.ids_of(["k0003"]).tolist() == [3]
    assert not store.refresh()
    assert register(table_of(6).slice(4), append=True).ids_of(["k0005"]).tolist() == [5]
