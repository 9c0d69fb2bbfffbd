"""Runs follow what is appended to records and deleted from them, though no trainer asks for any."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sampler_client._pb import sampler_pb2 as pb
from sampler_service.errors import Conflict, Damaged, Unavailable
from sampler_service.records import DataDirectory, delete, ingest
from sampler_service.records.desk import RecordDesk
from sampler_service.rpc.following import Follower
from sampler_service.rpc.records import FollowedRecords, NoRecords
from sampler_service.service import InProcessService
from tests.folder_nodes import FolderNodes, records_of
from tests.raw_wire import N, drain, open_session
from tests.served import ServedService

OFTEN_S = 0.02


def until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def numbers(start: int, stop: int) -> pa.Table:
    return pa.table({"number": list(range(start, stop))})


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Data directory of the gateway's node, with N records."""
    ingest(numbers(0, N), "data", data_dir=tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def there(here: Path) -> Path:
    """That of another node, with a copy."""
    return Path(shutil.copytree(here, here.with_name("there")))


@pytest.fixture
def desk(here: Path, there: Path) -> tuple[RecordDesk, FolderNodes]:
    records, nodes = records_of(here, there=there)
    return RecordDesk(DataDirectory(here), records.bring), nodes


@pytest.fixture
def served(desk: tuple[RecordDesk, FolderNodes]) -> Iterator[ServedService]:
    served = ServedService(records=desk[0], follow_s=OFTEN_S)
    yield served
    served.stop()


def change(data_dir: Path, *, stop: int, gone: list[int]) -> None:
    """Append and delete."""
    delete(DataDirectory(data_dir).open("data"), gone)
    ingest(numbers(N, stop), "data", data_dir=data_dir, append=True)


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_run_that_asks_for_ids_alone_follows_the_records_of_every_node(served, request, where: str):
    session = open_session(served.address)
    session.start_epoch(0, 0)
    change(request.getfixturevalue(where), stop=N + 5, gone=[3, 17])
    until(lambda: served.service.statistics("run").deleted == 2)
    until(lambda: served.service.dataset_size("data") == N + 5)
    assert sorted(set(drain(session)) - {3, 17}) == sorted(set(range(N)) - {3, 17})
    assert served.service.statistics("run").deleted == 2
    session.close()


def test_what_is_not_held_here_or_not_in_use_is_let_be(served, here: Path, there: Path):
    for name in ("unused", "elsewhere"):
        ingest(numbers(0, N), name, data_dir=there)
    shutil.copytree(there / "unused", here / "unused")
    for name in ("data", "elsewhere", "ids"):
        open_session(served.address, run=name, dataset=name).close()
    for name in ("unused", "elsewhere", "data"):
        ingest(numbers(N, N + 5), name, data_dir=there, append=True)
    until(lambda: served.service.dataset_size("data") == N + 5)
    assert DataDirectory(here).open("unused").num_examples == N
    assert not (here / "elsewhere").exists(), "a copy that nobody reads"
    assert served.service.dataset_size("elsewhere") == served.service.dataset_size("ids") == N


def test_a_node_that_fails_is_named_and_nothing_ends(served, desk, here: Path, there: Path, caplog):
    _, nodes = desk
    session = open_session(served.address)
    nodes.away.add("there")
    with caplog.at_level(logging.WARNING):
        change(there, stop=N + 5, gone=[3])
        until(lambda: "from node there" in caplog.text)
        time.sleep(5 * OFTEN_S)
        assert caplog.text.count("data set data is served as it was") == 1, "not at each look"
        ingest(numbers(0, N), "other", data_dir=here)
        open_session(served.address, run="other", dataset="other").close()
        delete(DataDirectory(here).open("other"), [1])
        until(lambda: served.service.statistics("other").deleted == 1)
    nodes.away.clear()
    until(lambda: served.service.statistics("run").deleted == 1)
    session.start_epoch(0, 0)
    assert 3 not in drain(session)
    session.close()


def test_other_data_on_another_node_is_said_and_what_is_here_is_followed(served, here: Path, there: Path, caplog):
    open_session(served.address).close()
    shutil.rmtree(there / "data")
    ingest(numbers(100, 100 + N), "data", data_dir=there)
    with caplog.at_level(logging.WARNING):
        until(lambda: "different data under one name" in caplog.text)
    assert "on node there (registered as" in caplog.text and "on node here (registered as" in caplog.text
    delete(DataDirectory(here).open("data"), [7])
    until(lambda: served.service.statistics("run").deleted == 1)
    assert DataDirectory(here).open("data").take(np.array([0])).to_pydict() == {"number": [0]}


def test_a_service_that_does_not_answer_is_asked_again(caplog):
    class Away(InProcessService):
        asked = 0

        def datasets(self) -> list[str]:
            self.asked += 1
            raise Unavailable("waited 20 s for the registry of this test")

    service = Away()
    follower = Follower(service, NoRecords(), OFTEN_S)  # type: ignore[arg-type]
    until(lambda: service.asked > 3)
    follower.stop()
    assert caplog.text.count("not followed for now: Unavailable: waited 20 s for the registry of this test") == 1
    time.sleep(5 * OFTEN_S)
    asked = service.asked
    time.sleep(5 * OFTEN_S)
    assert service.asked == asked, "it has stopped"


def test_a_stream_waits_for_records_of_which_another_node_told_the_service(desk, there: Path):
    records, _ = desk
    service = InProcessService()
    followed = FollowedRecords(service, records, "data", pb.RecordsRequest())
    change(there, stop=N + 5, gone=[3])
    before = followed.encode(np.array([0, 1]))
    assert len(followed.encode(np.array([N + 4, 1]))) == len(before), "it is brought when it is asked for"
    assert service.dataset_size("data") == N + 5
    with pytest.raises(Damaged, match=f"'data' here are not those of its runs: .* ids 0 to {N + 4}, and none {N + 5}"):
        followed.encode(np.array([N + 5]))


def test_records_of_other_data_are_not_read_for_a_run_of_before(desk, here: Path, there: Path):
    records, _ = desk
    service = InProcessService()
    followed = FollowedRecords(service, records, "data", pb.RecordsRequest())
    followed.follow()
    first = followed.encode(np.arange(3))
    shutil.rmtree(there / "data")
    shutil.rmtree(here / "data")
    with pytest.raises(Damaged, match="are not those of its runs: there are no records in"):
        followed.follow()
    ingest(numbers(100, 100 + N), "data", data_dir=here)
    with pytest.raises(Conflict, match="'data' were removed while they were read"):
        followed.follow()
    assert followed.encode(np.arange(3)) == first
    fresh = FollowedRecords(service, records, "data", pb.RecordsRequest())
    with pytest.raises(Conflict, match="'data' stands for the records that were registered as"):
        fresh.follow()
