"""Records that are appended and deleted while a run streams them: real files, a real gRPC server."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_client import wire
from sampler_service.records import DataDirectory, delete, ingest
from sampler_service.records.desk import RecordDesk
from tests.client.conftest import remote
from tests.folder_nodes import records_of
from tests.served import ServedService

N, MORE = 40, 15


def until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def numbers(start: int, stop: int) -> pa.Table:
    return pa.table({"number": list(range(start, stop))})


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedService]:
    ingest(numbers(0, N), "numbers", data_dir=tmp_path)
    served = ServedService(records=RecordDesk(DataDirectory(tmp_path)))
    yield served
    served.stop()


@pytest.fixture
def served_from_two(served: ServedService, tmp_path: Path) -> Iterator[ServedService]:
    """A gateway beside another node, which has the data too; it looks there all the time."""
    shutil.copytree(tmp_path / "numbers", tmp_path / "there/numbers")
    records, _ = records_of(tmp_path, there=tmp_path / "there")
    served = ServedService(records=RecordDesk(DataDirectory(tmp_path), records.bring), follow_s=0.05)
    yield served
    served.stop()


def epoch_of(loader: DataLoader) -> list[int]:
    return sorted(number for columns, _ in loader for number in columns["number"].tolist())


def changed_at_its_first_batch(loader: DataLoader, change: Callable[[], object]) -> tuple[list[int], list[int]]:
    """Records that count: of the first two batches of an epoch, between which there is a change, and of all others."""
    before, after = [], []
    for step, (columns, batch) in enumerate(loader):
        kept = columns["number"][batch.weights.copy() > 0].tolist()
        (before if step <= 1 else after).extend(kept)
        if step == 0:
            change()
    return before, after


def test_what_is_appended_while_a_run_goes_on_is_in_its_next_epoch(served: ServedService, tmp_path: Path) -> None:
    with remote(served) as records:
        loader = DataLoader(records, batch_size=None)
        seen = []
        for step, (columns, _) in enumerate(loader):
            seen += columns["number"].tolist()
            if step == 3:
                ingest(numbers(N, N + MORE), "numbers", data_dir=tmp_path, append=True)
        assert sorted(seen) == list(range(N)), "an epoch under way stays what it was"
        assert epoch_of(loader) == list(range(N + MORE))
    with remote(served, run="another") as records:
        assert epoch_of(DataLoader(records, batch_size=None)) == list(range(N + MORE))
    assert served.service.dataset_size("numbers") == N + MORE


def test_what_is_deleted_comes_no_more_from_then_on(served: ServedService, tmp_path: Path) -> None:
    gone = [3, 14, 15, 27, 39]
    with remote(served, ahead=1) as records:
        loader = DataLoader(records, batch_size=None)
        before, after = changed_at_its_first_batch(
            loader, lambda: delete(DataDirectory(tmp_path).open("numbers"), gone)
        )
        assert not set(after) & set(gone)
        assert set(before) | set(after) | set(gone) == set(range(N))
        assert epoch_of(loader) == sorted(set(range(N)) - set(gone))
    assert served.service.statistics("run").deleted == len(gone)
    with remote(served, run="another") as records:
        assert epoch_of(DataLoader(records, batch_size=None)) == sorted(set(range(N)) - set(gone))


def test_what_another_node_appends_and_deletes_reaches_a_run_in_the_middle_of_an_epoch(
    served_from_two: ServedService, tmp_path: Path
) -> None:
    gone, there = [3, 14, 15, 27, 39], DataDirectory(tmp_path / "there")

    def change() -> None:
        delete(there.open("numbers"), gone)
        ingest(numbers(N, N + MORE), "numbers", data_dir=there.path, append=True)
        # No stream is opened meanwhile, and none may ask for anything.
        until(lambda: served_from_two.service.statistics("run").deleted == len(gone))
        until(lambda: served_from_two.service.dataset_size("numbers") == N + MORE)

    with remote(served_from_two, ahead=1) as records:
        loader = DataLoader(records, batch_size=None)
        _, after = changed_at_its_first_batch(loader, change)
        assert not set(after) & set(gone)
        assert epoch_of(loader) == sorted(set(range(N + MORE)) - set(gone))


def test_a_batch_that_no_message_can_carry_ends_the_loop_and_says_what_to_change(
    served: ServedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = pa.table({"data": [b"x" * 10_000] * N, "number": list(range(N))})
    ingest(wide, "wide", data_dir=tmp_path)
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", 128 * 1024 + 50_000)
    with (
        remote(served, dataset="wide") as records,
        pytest.raises(
            sampler.ConfigError,
            match=r"the 8 records of batch 1 have 8\d{4} bytes, a message may have 50000; ask for fewer columns "
            r"\(columns=\), smaller images \(decode=\) or smaller batches \(batch_size=\)",
        ),
    ):
        epoch_of(DataLoader(records, batch_size=None))
    for run, change in (("columns", {"columns": ["number"]}), ("batches", {"batch_size": 4})):
        with remote(served, dataset="wide", run=run, **change) as records:
            assert epoch_of(DataLoader(records, batch_size=None)) == list(range(N))


@pytest.mark.parametrize("count", [7, N, N + MORE])
def test_other_data_under_the_same_name_is_refused(served: ServedService, tmp_path: Path, count: int) -> None:
    with remote(served, ahead=1) as records:
        loader = DataLoader(records, batch_size=None)
        seen = []
        with pytest.raises(sampler.Conflict, match="numbers' were removed while they were read, and other data is reg"):
            for step, (columns, _) in enumerate(loader):
                seen += columns["number"].tolist()
                if step == 0:
                    other = ingest(numbers(1000, 1000 + count), "other", data_dir=tmp_path).path
                    (tmp_path / "numbers").rename(tmp_path / "old")
                    other.rename(tmp_path / "numbers")
        assert set(seen) <= set(range(N)), "not one of the other data"
    fresh = ServedService(served.service, records=RecordDesk(DataDirectory(tmp_path)))
    with remote(fresh, run="another") as records, pytest.raises(sampler.Conflict, match="'numbers' stands for"):
        epoch_of(DataLoader(records, batch_size=None))
    fresh.stop()
