"""What servers ask of the records on their node."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from sampler_service.errors import NotFound
from sampler_service.records import DataDirectory, delete, ingest
from sampler_service.records.desk import RecordDesk


def texts(*words: str) -> pa.Table:
    return pa.table({"text": list(words)})


def test_a_desk_says_what_there_is_by_now(tmp_path: Path) -> None:
    store = ingest(texts("a", "b", "c"), "words", data_dir=tmp_path)
    desk = RecordDesk(DataDirectory(tmp_path))
    first = desk.generation("words")
    look = desk.look("words")
    assert look is not None
    assert (desk.describe("words").num_examples, look(1)) == (3, "b")
    ingest(texts("d"), "words", data_dir=tmp_path, append=True)
    assert (desk.describe("words").num_examples, look(3)) == (4, "d")
    store.refresh()
    delete(store, [1])
    assert desk.generation("words") > first
    assert desk.describe("words").deleted.tolist() == [1]
    with pytest.raises(NotFound, match="deleted from data set 'words': example 1"):
        look(1)


def test_what_is_not_there_has_no_look(tmp_path: Path) -> None:
    desk = RecordDesk(DataDirectory(tmp_path))
    assert desk.look("words") is None
    with pytest.raises(NotFound, match="sampler-service ingest URI --name words"):
        desk.describe("words")


def test_other_nodes_are_asked_before_a_data_set_is_read(tmp_path: Path) -> None:
    asked: list[str] = []

    def bring(dataset: str) -> None:
        asked.append(dataset)
        ingest(texts("a"), dataset, data_dir=tmp_path)

    desk = RecordDesk(DataDirectory(tmp_path), bring)
    assert desk.describe("from/elsewhere").num_examples == 1
    assert asked == ["from/elsewhere"]
