"""Keys: unique values of an id column, and the way from them to ids."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.errors import ConfigError, Damaged, NotFound
from sampler_service.records import RecordStore
from sampler_service.records.keys import Keys, write_keys
from tests.records.support import Ingest, table_of

INT64 = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None)
@given(keys=st.one_of(st.lists(INT64, min_size=1, unique=True), st.lists(st.text(), min_size=1, unique=True)))
def test_each_key_leads_to_its_id_and_no_other_value_does(tmp_path_factory, keys: list):
    path = tmp_path_factory.mktemp("keys") / "keys.arrow"
    half = len(keys) // 2
    kind = pa.int64() if isinstance(keys[0], int) else pa.string()
    write_keys(
        path, pa.chunked_array([pa.array(keys[:half], kind), pa.array(keys[half:], kind)]), "key", [(0, "there")]
    )
    found = Keys(path, "key")
    assert found.ids_of(keys).tolist() == list(range(len(keys)))
    assert found.ids_of(keys[::-1]).dtype == np.int64
    other = (
        next(number for number in range(len(keys) + 1) if number not in keys) if kind == pa.int64() else max(keys) + "x"
    )
    with pytest.raises(NotFound):
        found.ids_of([other])


def test_keys_go_with_the_records_and_grow_with_them(register: Ingest):
    store = register(table_of(10), id_column="key")
    assert store.ids_of(["k0009", "k0000", "k0009"]).tolist() == [9, 0, 9]
    assert store.take(np.array([9]), ["key"]).to_pylist() == [{"key": "k0009"}]
    register(table_of(12).slice(10), append=True)
    with pytest.raises(NotFound, match="no example has the key 'k0011' in column 'key'"):
        store.ids_of(["k0011"])
    store.refresh()
    assert store.ids_of(["k0011"]).tolist() == [11]
    assert len(list(store.path.glob("keys-*"))) == 1


def test_keys_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    monkeypatch.setattr(os, "replace", lambda *_: synced.append("named"))
    written = write_keys(tmp_path / "keys.arrow", pa.chunked_array([["a", "b"]]), "key", [(0, "there")])
    assert synced == [written.bytes, "named"]


def test_small_integers_are_keys_too(register: Ingest):
    table = pa.table({"id": pa.array([5, 3, 200], pa.uint8())})
    store = register(table, id_column="id")
    assert store.schema.field("id").type == pa.int64()
    assert store.ids_of(np.array([200, 5])).tolist() == [2, 0]
    with pytest.raises(ConfigError, match="keys of column 'id' are int64, got '5'"):
        store.ids_of(["5"])
    with pytest.raises(ConfigError, match="got 9223372036854775808"):
        store.ids_of([2**63])


def test_a_key_that_is_there_twice_is_shown_with_both_places(register: Ingest):
    register(pa.table({"id": [1, 2, 3]}), id_column="id")
    with pytest.raises(ConfigError, match=r"key 2 of column 'id' is there twice, in record 1 of .* and in record 0 of"):
        register(pa.table({"id": [2, 9]}), append=True)
    with pytest.raises(ConfigError, match=r"key 'a' .* twice, in record 0 of .* in record 2 of .*\(2 keys too many"):
        register(pa.table({"id": ["a", "b", "a", "b"]}), "texts", id_column="id")


def test_what_can_be_no_key_is_refused(register: Ingest):
    with pytest.raises(ConfigError, match="has no key in record 1 of"):
        register(pa.table({"id": [1, None]}), "a", id_column="id")
    with pytest.raises(ConfigError, match=r"id column 'id' of .* is double: keys are int64 or string"):
        register(pa.table({"id": [1.0]}), "b", id_column="id")
    with pytest.raises(ConfigError, match="no column 'id'"):
        register(table_of(3), "c", id_column="id")
    with pytest.raises(ConfigError, match="'d' was registered without an id column"):
        register(table_of(3), "d").ids_of(["k0000"])


def test_keys_that_can_not_be_read_are_said(register: Ingest):
    store = register(table_of(3), id_column="key")
    (path,) = store.path.glob("keys-*")
    path.write_bytes(b"nothing")
    with pytest.raises(Damaged, match="the keys, can't be read"):
        RecordStore.open(store.path)
