"""Records by id: right for every type, in any order, whatever else goes on."""

from __future__ import annotations

import shutil
import threading
from datetime import datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.errors import ConfigError, Conflict, Damaged, NotFound
from sampler_service.records import DataDirectory, RecordStore, delete
from sampler_service.records import tables as tables_module
from sampler_service.records import writing as writing_module
from sampler_service.records.gather import NARROW, column_of
from tests.records.support import Ingest, table_of

TENSOR = pa.fixed_shape_tensor(pa.int16(), (2, 3))


def every_type(count: int) -> pa.Table:
    numbers = range(count)
    flat = pa.array(np.arange(6 * count, dtype=np.int16))
    tensors = pa.ExtensionArray.from_storage(TENSOR, pa.FixedSizeListArray.from_arrays(flat, 6))
    return pa.table(
        {
            "int8": pa.array([number % 100 for number in numbers], pa.int8()),
            "float64": pa.array([number / 3 for number in numbers]),
            "bool": pa.array([number % 3 == 0 for number in numbers]),
            "time": pa.array([datetime(2026, 1, 1, 0, 0, number % 60) for number in numbers]),
            "binary": pa.array([bytes([number % 250]) * (number % 7) for number in numbers], pa.binary()),
            "large": pa.array([f"{number}é" for number in numbers], pa.large_string()),
            "wide": pa.array([bytes([number % 250] * (NARROW + 1)) for number in numbers], pa.binary(NARROW + 1)),
            "four": pa.array([bytes([number % 250] * 4) for number in numbers], pa.binary(4)),
            "nulls": pa.array([None if number % 4 else number for number in numbers]),
            "text_or_not": pa.array([None if number % 5 else str(number) for number in numbers]),
            "list": pa.array([list(range(number % 4)) for number in numbers]),
            "struct": pa.array([{"a": number, "b": str(number)} for number in numbers]),
            "grid": pa.array([[[number, 1], [2, number]] for number in numbers], pa.list_(pa.list_(pa.int32(), 2), 2)),
            "holes": pa.array([[number, None] for number in numbers], pa.list_(pa.int32(), 2)),
            "nothing": pa.nulls(count),
            "tensor": tensors,
        }
    )


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 29), max_size=20), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_a_column_gives_what_arrow_gives_of_one_array_however_it_is_cut(ids: list[int], cuts: list[int]):
    table = every_type(30)
    edges = [0, *sorted(cuts), 30]
    # A batch that was read from a file begins at its buffers' beginning.
    batches = [
        pa.ipc.open_stream(stream).read_next_batch()
        for start, stop in pairwise(edges)
        for stream in [written(table.slice(start, stop - start).combine_chunks())]
    ]
    starts = np.array(edges[:-1])
    batch_of = np.searchsorted(starts, ids, side="right") - 1
    rows = np.array(ids, int) - starts[batch_of]
    for name in table.column_names:
        column = column_of([batch.column(name) for batch in batches], table.schema.field(name).type)
        taken = column.take(batch_of, rows)
        taken.validate(full=True)
        assert taken.type == table.schema.field(name).type
        assert taken.to_pylist() == table.column(name).take(pa.array(ids, pa.int64())).to_pylist(), name


def written(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_batch(table.to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], table.schema))
    return sink.getvalue()


def test_records_come_in_the_order_asked_for_over_many_batches_and_shards(register: Ingest, monkeypatch):
    monkeypatch.setattr(writing_module, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr(tables_module, "MOST_ROWS", 300)
    table = every_type(5000)
    register(table.slice(0, 3000))
    store = register(table.slice(3000), append=True)
    assert len(store._opened._flat) > 10, "several batches"
    ids = np.random.default_rng(0).integers(0, 5000, 300)
    taken = store.take(ids)
    assert taken.schema.equals(store.schema, check_metadata=True)
    assert taken.to_pylist() == table.take(pa.array(ids)).to_pylist()


def test_columns_come_as_they_are_asked_for(register: Ingest):
    store = register(table_of(10))
    taken = store.take(np.array([3, 3, 9], np.uint8), ["text", "number"])
    assert taken.to_pydict() == {"text": ["ääää"[:3], "äää", "ä" * 4], "number": [30, 30, 90]}
    assert store.take(np.array([], np.int64)).num_rows == 0


def test_tensors_are_laid_over_the_bytes_of_the_batch(register: Ingest):
    store = register(every_type(20))
    tensor = store.take(np.array([4, 2])).column("tensor").to_numpy_ndarray()
    assert tensor.shape == (2, 2, 3)
    assert tensor[:, 0, 0].tolist() == [24, 12]
    assert not tensor.flags.owndata, "no copy was made"


@pytest.mark.parametrize(
    ("ids", "said"),
    [([0, 10], "ids 0 to 9, and none 10"), ([-1], "none -1"), ([3, 2**40], str(2**40))],
)
def test_an_id_that_there_is_not_is_named(register: Ingest, ids: list[int], said: str):
    with pytest.raises(NotFound, match=said):
        register(table_of(10)).take(np.array(ids))


def test_what_is_asked_for_must_be_integers_and_columns_that_there_are(register: Ingest):
    store = register(table_of(10))
    with pytest.raises(ConfigError, match="integers"):
        store.take(np.array([0.5]))
    with pytest.raises(ConfigError, match=r"integers \(n,\), got int64 \(1, 1\)"):
        store.take(np.array([[1]]))
    with pytest.raises(ConfigError, match="no column 'numbr': it has key, number, vector, text"):
        store.take(np.array([0]), ["numbr"])


def test_nothing_registered_is_not_found(tmp_path):
    with pytest.raises(NotFound, match=str(tmp_path)):
        RecordStore.open(tmp_path)


def test_a_shard_that_is_cut_off_or_gone_is_seen_when_it_is_opened(register: Ingest):
    store = register(table_of(100))
    shard = store.path / store.manifest.shards[0].file
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20])
    with pytest.raises(Damaged, match=f"{len(whole) - 20} bytes, registered are {len(whole)}"):
        RecordStore.open(store.path)
    shard.unlink()
    with pytest.raises(Damaged, match=r"00000.arrow, a shard, is missing"):
        RecordStore.open(store.path)


def test_a_store_sees_what_is_new_when_it_is_refreshed_and_not_before(register: Ingest):
    first = register(table_of(10))
    grown = register(table_of(15).slice(10), append=True)
    assert (first.generation, first.num_examples, grown.generation, grown.num_examples) == (1, 10, 2, 15)
    mapped = first._opened._flat[0]
    assert first.refresh()
    assert not first.refresh()
    assert first._opened._flat[0] is mapped, "not mapped anew"
    assert first.take(np.array([14])).to_pylist() == table_of(15).slice(14).to_pylist()


def test_a_data_set_that_was_removed_and_made_anew_is_another(register: Ingest, data_dir):
    directory = DataDirectory(data_dir)
    register(table_of(10))
    assert directory.refresh() == ["data"]
    store = directory.open("data")
    shutil.rmtree(store.path)
    register(table_of(20).slice(10))
    for _ in range(2):
        with pytest.raises(
            Conflict, match=r"'data' was removed, and other data is registered in .*data since: open it"
        ):
            store.refresh()
    with pytest.raises(Conflict):
        delete(store, [3])
    assert store.take(np.array([0]), ["number"]).to_pydict() == {"number": [0]}, "who reads it goes on"
    assert directory.refresh() == ["data"]
    assert directory.open("data").take(np.array([0]), ["number"]).to_pydict() == {"number": [100]}
    assert directory.refresh() == []


def test_appending_and_deleting_keep_the_uid_and_registering_anew_does_not(register: Ingest):
    store = register(table_of(10))
    delete(store, [3])
    grown = register(table_of(12).slice(10), append=True)
    assert {store.version.uid, grown.version.uid, RecordStore.open(store.path).version.uid} == {store.version.uid}
    assert [store.version.generation, grown.version.generation] == [2, 3]
    shutil.rmtree(store.path)
    assert register(table_of(10)).version.uid != store.version.uid


def test_deleted_ids_are_refused_by_name_and_can_be_read(register: Ingest):
    store = register(table_of(10))
    other = RecordStore.open(store.path)
    assert store.deleted.tolist() == []
    assert delete(store, [7, 3, 7]) == 2
    assert delete(store, np.array([3, 4])) == 1
    assert (store.deleted.tolist(), store.deleted.dtype, store.generation) == ([3, 4, 7], np.int64, 3)
    with pytest.raises(NotFound, match=r"deleted from data set 'data': example 7, 3;"):
        store.take(np.array([7, 1, 3]))
    assert store.take(np.array([2, 5, 8, 9])).num_rows == 4
    other.take(np.array([3]))
    assert other.refresh()
    with pytest.raises(NotFound, match="example 3"):
        other.take(np.array([3]))


def test_what_can_not_be_deleted_changes_nothing(register: Ingest):
    store = register(table_of(4))
    with pytest.raises(NotFound, match="no 4: nothing is deleted"):
        delete(store, [0, 4])
    with pytest.raises(ConfigError, match="integers"):
        delete(store, ["0"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="nothing would be left"):
        delete(store, [0, 1, 2, 3])
    assert delete(store, []) == 0
    assert (store.generation, store.deleted.size) == (1, 0)


def test_readers_are_right_while_the_data_set_grows_and_shrinks(register: Ingest):
    """Each id has the number that its first record had, whichever generation a call sees."""
    store, done, wrong = register(table_of(200)), threading.Event(), []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not done.is_set():
            ids = rng.integers(100, store.num_examples, 20)
            numbers = store.take(ids, ["number"]).column("number").to_numpy()
            if not np.array_equal(numbers, ids * 10):
                wrong.append(ids)

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for reader in readers:
        reader.start()
    try:
        for step in range(10):
            register(table_of(200 + 10 * (step + 1)).slice(200 + 10 * step), append=True)
            delete(RecordStore.open(store.path), [step])
            store.refresh()
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert not wrong
    assert (store.num_examples, store.generation, store.deleted.tolist()) == (300, 21, list(range(10)))


def test_a_directory_lists_opens_and_refreshes_its_data_sets(register: Ingest, data_dir):
    directory = DataDirectory(data_dir)
    assert (directory.names(), directory.open_all()) == ([], {})
    register(table_of(3), "vision/small")
    register(table_of(4), "other")
    assert directory.refresh() == ["other", "vision/small"]
    assert {name: store.num_examples for name, store in directory.open_all().items()} == {"other": 4, "vision/small": 3}
    assert directory.refresh() == []
    store = directory.open("other")
    register(table_of(6).slice(4), "other", append=True)
    assert directory.refresh() == ["other"]
    assert directory.open("other") is store
    assert store.num_examples == 6
    with pytest.raises(NotFound, match=r"no data set 'smal' in .*; there: other, vision/small"):
        directory.open("smal")


def test_a_damaged_data_set_does_not_keep_others_from_being_refreshed(register: Ingest, data_dir):
    directory = DataDirectory(data_dir)
    register(table_of(3), "a")
    register(table_of(3), "b")
    (data_dir / "a/00000.arrow").write_bytes(b"")
    with pytest.raises(Damaged, match=r"a/00000.arrow has 0 bytes"):
        directory.refresh()
    register(table_of(5).slice(3), "b", append=True)
    with pytest.raises(Damaged):
        directory.refresh()
    assert directory.open("b").num_examples == 5


@pytest.mark.parametrize("name", ["a/../../b", "a//b", "../a", "", "a b"])
def test_a_name_leads_nowhere_but_below_the_directory(register: Ingest, name: str):
    with pytest.raises(ConfigError, match="dataset name"):
        register(table_of(3), name)
