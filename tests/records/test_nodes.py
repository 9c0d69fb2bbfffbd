"""What is newer on another node is copied here, and nothing else is."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from sampler_service.errors import Conflict, Unavailable
from sampler_service.records import RecordStore, delete, ingest
from sampler_service.records import nodes as module
from tests.folder_nodes import PATIENCE_S, records_of
from tests.records.support import all_of, table_of


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


def rows_in(data_dir: Path, name: str = "data") -> list[int]:
    store = RecordStore.open(data_dir / name)
    records = store.take(np.arange(store.num_examples), ["number"], also_deleted=True)
    return [number // 10 for number in records.to_pydict()["number"]]


def test_what_another_node_appends_and_deletes_is_brought(here: Path, there: Path):
    records, _ = records_of(here, there=there, empty=here.parent / "empty")
    assert records.bring("data"), "nobody has it"
    store = ingest(table_of(10), "data", data_dir=there)
    assert records.bring("data")
    assert rows_in(here) == list(range(10))
    ingest(table_of(14).slice(10), "data", data_dir=there, append=True)
    store.refresh()
    delete(store, [3])
    assert records.bring("data")
    copy = RecordStore.open(here / "data")
    assert (copy.num_examples, copy.deleted.tolist(), copy.version) == (14, [3], store.version)


def test_the_newest_of_several_nodes_is_brought_and_older_ones_change_nothing(here: Path, tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "new"
    ingest(table_of(10), "data", data_dir=old)
    shutil.copytree(old, new)
    ingest(table_of(12).slice(10), "data", data_dir=new, append=True)
    records, _ = records_of(here, old=old, new=new)
    assert records.bring("data")
    assert rows_in(here) == list(range(12))
    ingest(table_of(15).slice(12), "data", data_dir=here, append=True)
    assert records.bring("data")
    assert rows_in(here) == list(range(15))


def test_a_node_from_which_nothing_comes_is_named_and_what_is_here_stays(here: Path, there: Path, caplog):
    records, nodes = records_of(here, there=there)
    ingest(table_of(10), "data", data_dir=there)
    nodes.away.add("there")
    with pytest.raises(Unavailable, match=r"manifest.json from node there"):
        records.bring("data")
    nodes.away.clear()
    records.bring("data")
    ingest(table_of(14).slice(10), "data", data_dir=there, append=True)
    nodes.away.add("there")
    with caplog.at_level(logging.WARNING):
        assert not records.bring("data")
        assert not records.bring("data")
    assert rows_in(here) == list(range(10))
    (said,) = [record.getMessage() for record in caplog.records if "served as it was" in record.getMessage()]
    assert "data set data is served as it was, generation 1: waited for manifest.json from node there" in said
    nodes.away.clear()
    assert records.bring("data")


def test_other_data_under_the_same_name_is_refused_with_both_nodes_and_nothing_is_overwritten(here: Path, there: Path):
    """The case that generations alone get wrong: the older data has more of them."""
    records, _ = records_of(here, there=there)
    store = ingest(table_of(10), "data", data_dir=there)
    delete(store, [3])
    records.bring("data")
    shutil.rmtree(here / "data")
    made_anew = ingest(table_of(30).slice(20), "data", data_dir=here)
    before = {path.name: path.read_bytes() for path in made_anew.path.iterdir()}
    with pytest.raises(Conflict) as refused:
        records.bring("data")
    said = str(refused.value)
    assert f"node here (registered as {made_anew.version.uid[:8]}, generation 1)" in said
    assert f"node there (registered as {store.version.uid[:8]}, generation 2)" in said
    assert f"remove {made_anew.path} from the node whose data is not wanted" in said
    assert {path.name: path.read_bytes() for path in made_anew.path.iterdir()} == before
    shutil.rmtree(there / "data")
    assert records.bring("data")


def test_a_node_without_a_copy_does_not_choose_between_two_data_sets(here: Path, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    ingest(table_of(10), "data", data_dir=one)
    ingest(table_of(30).slice(20), "data", data_dir=two, append=False)
    records, _ = records_of(here, one=one, two=two)
    with pytest.raises(Conflict, match=r"on node (one|two) .* and on node (one|two) .* different data under one name"):
        records.bring("data")
    assert not (here / "data").exists()


def test_a_large_copy_keeps_nobody_from_another_data_set(here: Path, there: Path, monkeypatch):
    monkeypatch.setattr(module, "LOOKING_S", 0.05)
    monkeypatch.setattr(module, "WAIT_S", 0.05)
    records, nodes = records_of(here, there=there)
    ingest(table_of(10), "large", data_dir=there)
    ingest(table_of(5), "small", data_dir=there)
    nodes.slow["large"] = threading.Event()
    copying = threading.Thread(target=records.bring, args=("large",), daemon=True)
    copying.start()
    assert nodes.begun.wait(PATIENCE_S)
    other = threading.Thread(target=records.bring, args=("small",), daemon=True)
    other.start()
    other.join(PATIENCE_S)
    assert rows_in(here, "small") == list(range(5)), "while the large one is being copied"
    with pytest.raises(
        Unavailable, match=r"waited 0.05 s for data set 'large' to be copied to node here; that goes on"
    ):
        records.bring("large")
    nodes.slow["large"].set()
    copying.join(PATIENCE_S)
    assert rows_in(here, "large") == list(range(10))

    ingest(table_of(12).slice(10), "large", data_dir=there, append=True)
    nodes.slow["large"], nodes.begun = threading.Event(), threading.Event()
    copying = threading.Thread(target=records.bring, args=("large",), daemon=True)
    copying.start()
    assert nodes.begun.wait(PATIENCE_S)
    assert not records.bring("large"), "what is here is served meanwhile"
    nodes.slow["large"].set()
    copying.join(PATIENCE_S)
    assert records.bring("large")
    assert all_of(RecordStore.open(here / "large")) == table_of(12).to_pylist()
