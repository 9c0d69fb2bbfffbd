"""What servers ask of the records on their node."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sampler_service.errors import ConfigError, NotFound
from sampler_service.records import DataDirectory, delete, ingest
from sampler_service.records.desk import RecordDesk


def texts(*words: str) -> pa.Table:
    return pa.table({"text": list(words)})


def test_a_desk_says_what_there_is_by_now(tmp_path: Path) -> None:
    store = ingest(texts("a", "b", "c"), "words", data_dir=tmp_path)
    desk = RecordDesk(DataDirectory(tmp_path))
    first = desk.version("words")
    look = desk.look("words")
    assert look is not None
    assert (desk.describe("words").num_examples, look(1)) == (3, "b")
    ingest(texts("d"), "words", data_dir=tmp_path, append=True)
    assert (desk.describe("words").num_examples, look(3)) == (4, "d")
    store.refresh()
    delete(store, [1])
    assert desk.version("words").uid == first.uid == desk.describe("words").uid
    assert (first.generation, desk.version("words").generation) == (1, 3)
    assert desk.describe("words").deleted.tolist() == [1]
    with pytest.raises(NotFound, match="deleted from data set 'words': example 1"):
        look(1)


def test_what_is_not_there_has_no_look(tmp_path: Path) -> None:
    desk = RecordDesk(DataDirectory(tmp_path))
    assert desk.look("words") is None
    for ask in (desk.describe, desk.version):
        with pytest.raises(NotFound, match="sampler-service ingest URI --name words"):
            ask("words")


def test_who_reads_goes_on_when_other_data_comes_under_the_name(tmp_path: Path) -> None:
    ingest(texts("a", "b", "c"), "words", data_dir=tmp_path)
    desk = RecordDesk(DataDirectory(tmp_path))
    first, reader, look = desk.version("words"), desk.reader("words", [], []), desk.look("words")
    assert look is not None and look(1) == "b"
    shutil.rmtree(tmp_path / "words")
    ingest(texts("x", "y", "z"), "words", data_dir=tmp_path)
    assert desk.version("words").uid not in ("", first.uid)
    assert reader.read(np.array([1])).to_pydict() == {"text": ["b"]}
    assert desk.reader("words", [], []).read(np.array([1])).to_pydict() == {"text": ["y"]}
    assert look(1) == "y", "the page shows what there is"


def test_other_nodes_are_asked_for_a_data_set_by_its_name_alone(tmp_path: Path) -> None:
    asked: list[str] = []

    def bring(dataset: str) -> bool:
        asked.append(dataset)
        return False

    desk = RecordDesk(DataDirectory(tmp_path), bring)
    assert not desk.bring("from/elsewhere")
    for name in ("../secret", "/etc"):
        with pytest.raises(ConfigError, match="dataset name"):
            desk.bring(name)
    assert asked == ["from/elsewhere"]
