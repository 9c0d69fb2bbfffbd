"""A data set of one node on another: two folders stand for them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sampler_service.errors import ConfigError, Conflict, Damaged, Unavailable
from sampler_service.records import RecordStore, copies, delete, ingest, verify
from sampler_service.records.copies import bring_up_to_date, serve_piece
from tests.records.support import Ingest, all_of, table_of


class Node:
    """Serves a folder as a node would, and counts what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.fails_after = 10**9

    def fetch(self, file: str, start: int, length: int) -> bytes:
        if sum(self.asked.values()) == self.fails_after:
            raise Unavailable("the node is gone")
        self.asked[file] += 1
        return serve_piece(self.folder, file, start, length)


@pytest.fixture
def node(register: Ingest, monkeypatch) -> Node:
    """With a data set of two shards."""
    monkeypatch.setattr(copies, "PIECE_BYTES", 1000)
    register(table_of(100), id_column="key")
    return Node(register(table_of(150).slice(100), append=True).path)


def test_a_copy_is_whole_and_made_once(node: Node, tmp_path):
    folder = tmp_path / "other/data"
    size = bring_up_to_date(folder, node.fetch)
    copy = RecordStore.open(folder)
    verify(copy)
    assert size == sum(file.bytes for file in copy.manifest.files())
    assert all_of(copy) == table_of(150).to_pylist()
    assert copy.ids_of(["k0149"]).tolist() == [149]
    assert node.asked["00000.arrow"] > 3, "in pieces"
    node.asked.clear()
    assert bring_up_to_date(folder, node.fetch) == 0
    assert node.asked == {"manifest.json": 1}


def test_a_copy_gets_what_is_new_and_nothing_else(node: Node, register: Ingest, tmp_path):
    folder = tmp_path / "other/data"
    bring_up_to_date(folder, node.fetch)
    copy = RecordStore.open(folder)
    node.asked.clear()
    delete(register(table_of(160).slice(150), append=True), [0, 155])
    bring_up_to_date(folder, node.fetch)
    assert set(node.asked) == {"manifest.json", "00002.arrow", "keys-00003.arrow", "deleted-00004.npy"}
    assert copy.refresh()
    assert (copy.num_examples, copy.deleted.tolist(), copy.generation) == (160, [0, 155], 4)
    assert copy.take(np.array([159]), ["number"]).to_pydict() == {"number": [1590]}
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in node.folder.iterdir())


def test_on_a_shared_file_system_nothing_is_fetched(node: Node):
    assert bring_up_to_date(node.folder, node.fetch) == 0
    assert node.asked == {"manifest.json": 1}


def test_a_copy_that_was_interrupted_goes_on(node: Node, tmp_path):
    folder = tmp_path / "other/data"
    first = RecordStore.open(node.folder).manifest.shards[0]
    node.fails_after = 1 + -(-first.bytes // copies.PIECE_BYTES) + 1  # the manifest, a shard, a piece of the next
    with pytest.raises(Unavailable, match="the node is gone"):
        bring_up_to_date(folder, node.fetch)
    there = sorted(path.name for path in folder.iterdir())
    assert there == [".lock", "00000.arrow"], "nothing half, and no manifest"
    node.fails_after, node.asked = 10**9, Counter()
    bring_up_to_date(folder, node.fetch)
    assert node.asked["00000.arrow"] == 0
    verify(RecordStore.open(folder))


def test_bytes_that_are_not_what_the_manifest_says_are_not_taken(node: Node, tmp_path):
    shard = node.folder / "00001.arrow"
    data = bytearray(shard.read_bytes())
    data[-300] ^= 1
    shard.write_bytes(data)
    with pytest.raises(
        Damaged, match=r"00001.arrow of node 7 is not what its manifest says: verify the data set there"
    ):
        bring_up_to_date(tmp_path / "other", node.fetch, "node 7")
    assert not (tmp_path / "other/00001.arrow").exists()
    shard.unlink()
    with pytest.raises(Damaged, match=r"00001.arrow is missing"):
        bring_up_to_date(tmp_path / "other", node.fetch)


def test_a_copy_that_was_damaged_is_mended(node: Node, tmp_path):
    folder = tmp_path / "other"
    bring_up_to_date(folder, node.fetch)
    (folder / "00000.arrow").write_bytes(b"short")
    assert bring_up_to_date(folder, node.fetch) > 0
    verify(RecordStore.open(folder))


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files that a manifest names, and of the manifest."""
    names = {"manifest.json", *(file.file for file in RecordStore.open(folder).manifest.files())}
    return {name: (folder / name).read_bytes() for name in names}


def test_other_data_is_not_overwritten(node: Node, tmp_path):
    store = ingest(table_of(40), "data", data_dir=tmp_path / "other")
    before = contents(store.path)
    with pytest.raises(
        Conflict, match=r"'data' on node b \(registered as .{8}, generation 1\) and on node a .* generation 2\) is diff"
    ):
        bring_up_to_date(store.path, node.fetch, "node a", "node b")
    assert contents(store.path) == before
    assert node.asked == {"manifest.json": 1}


def append(*numbers: int) -> Callable[[Path], None]:
    table = table_of(max(numbers) + 1).take(list(numbers))
    return lambda folder: ingest(table, "data", data_dir=folder.parent, append=True) and None


def deletion(*ids: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for example_id in ids:
            delete(RecordStore.open(folder), [example_id])

    return change


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (append(200), append(300)),
        (append(200), append(300, 301)),
        (append(200), deletion(1, 2)),
        (deletion(3), append(300)),
        (deletion(3), deletion(4)),
        (deletion(3), deletion(4, 5)),
        (deletion(3, 4), deletion(3, 5, 6)),
    ],
)
def test_a_copy_that_was_changed_by_itself_is_not_overwritten(node: Node, tmp_path, here, there):
    folder = tmp_path / "other/data"
    shutil.copytree(node.folder, folder)
    here(folder)
    there(node.folder)
    before = contents(folder)
    with pytest.raises(Conflict, match=r"was changed on this node .* and on the other node .* and make its changes ag"):
        bring_up_to_date(folder, node.fetch)
    assert contents(folder) == before
    verify(RecordStore.open(folder), sources=False)


@pytest.mark.parametrize("change", [append(200), deletion(3), deletion(3, 4)])
def test_what_is_newer_here_stays(node: Node, tmp_path, change):
    folder = tmp_path / "other/data"
    shutil.copytree(node.folder, folder)
    change(folder)
    before = contents(folder)
    assert bring_up_to_date(folder, node.fetch) == 0
    assert contents(folder) == before


def test_copies_of_an_earlier_format_are_known_as_the_same_data(node: Node, register: Ingest, tmp_path):
    def said(folder: Path) -> dict:
        return json.loads((folder / "manifest.json").read_text())

    def as_before(folder: Path) -> None:
        earlier = said(folder) | {"format": 1}
        del earlier["uid"]
        (folder / "manifest.json").write_text(json.dumps(earlier))

    folder = tmp_path / "other/data"
    as_before(node.folder)
    shutil.copytree(node.folder, folder)
    uid = RecordStore.open(folder).version.uid
    assert uid == register(table_of(160).slice(150), append=True).version.uid
    assert bring_up_to_date(folder, node.fetch) > 0
    assert (said(folder)["format"], said(folder)["uid"]) == (2, uid)
    assert uid != ingest(table_of(7), "data", data_dir=tmp_path / "third").version.uid
    (folder / "manifest.json").write_text(json.dumps(said(folder) | {"format": 3}))
    with pytest.raises(ConfigError, match="has format 3, and this version reads up to 2"):
        RecordStore.open(folder)


def test_no_other_file_is_served(node: Node):
    (node.folder.parent / "secret").write_bytes(b"secret")
    with pytest.raises(Damaged, match="is missing"):
        serve_piece(node.folder, "../secret", 0, 10)
