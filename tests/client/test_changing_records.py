"""Records that are appended and deleted while a run streams them: real files, a real gRPC server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_service.records import DataDirectory, delete, ingest
from sampler_service.records.desk import RecordDesk
from tests.client.conftest import remote
from tests.served import ServedService

N, MORE = 40, 15


def numbers(start: int, stop: int) -> pa.Table:
    return pa.table({"number": list(range(start, stop))})


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedService]:
    ingest(numbers(0, N), "numbers", data_dir=tmp_path)
    served = ServedService(records=RecordDesk(DataDirectory(tmp_path)))
    yield served
    served.stop()


def epoch_of(loader: DataLoader) -> list[int]:
    return sorted(number for columns, _ in loader for number in columns["number"].tolist())


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
        before, after = [], []
        for step, (columns, batch) in enumerate(loader):
            kept = columns["number"][batch.weights.copy() > 0].tolist()
            (before if step <= 1 else after).extend(kept)
            if step == 0:
                delete(DataDirectory(tmp_path).open("numbers"), gone)
        assert not set(after) & set(gone)
        assert set(before) | set(after) | set(gone) == set(range(N))
        assert epoch_of(loader) == sorted(set(range(N)) - set(gone))
    assert served.service.statistics("run").deleted == len(gone)
    with remote(served, run="another") as records:
        assert epoch_of(DataLoader(records, batch_size=None)) == sorted(set(range(N)) - set(gone))


def test_other_data_under_the_same_name_is_refused(served: ServedService, tmp_path: Path) -> None:
    with remote(served) as records:
        epoch_of(DataLoader(records, batch_size=None))
    ingest(numbers(0, 7), "fewer", data_dir=tmp_path)
    folder = tmp_path / "numbers"
    folder.rename(tmp_path / "old")
    (tmp_path / "fewer").rename(folder)
    fresh = ServedService(served.service, records=RecordDesk(DataDirectory(tmp_path)))
    with remote(fresh, run="another") as records, pytest.raises(sampler.Conflict, match="numbers"):
        epoch_of(DataLoader(records, batch_size=None))
    fresh.stop()
