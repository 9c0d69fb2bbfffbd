"""Workers of a DataLoader whose trainer is killed, fails, evaluates for long or leaves: a real server and processes."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_service.sampler import Sampler
from tests.client.conftest import N, remote
from tests.client.killed_trainer import LEASE_S, PREFETCH
from tests.memory_records import MemoryRecords, table_of
from tests.served import ServedService

# Workers of a forkserver that has imported torch start in a tenth of a second, instead of two.
multiprocessing.get_context("forkserver").set_forkserver_preload(["sampler_client.pytorch.remote_batches"])

ROOT = Path(__file__).parents[2]
STEPS, BATCH = 5, 5  # of each of two ranks


class Later:
    """The time of day, and as much later as a test says."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Later:
    clock = Later()
    monkeypatch.setattr("sampler_service.service.Sampler", partial(Sampler, clock=clock))
    return clock


@pytest.fixture
def recorded() -> Iterator[ServedService]:
    """A server that holds N records under the name "numbers"."""
    served = ServedService(records=MemoryRecords("numbers", table_of(N)))
    yield served
    served.stop()


@pytest.fixture
def trainer(recorded: ServedService) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts trainers in processes of their own."""
    started = []

    def start(method: str, *, rank: int = 0, world_size: int = 1, batches: int) -> subprocess.Popen[str]:
        arguments = [recorded.address, method, *map(str, (rank, world_size, batches))]
        command = [sys.executable, "-m", "tests.client.killed_trainer", *arguments]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()  # not read to its end: a worker that lives on would have it open


def until(condition: Callable[[], bool], what: str, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"waited for {limit_s:g} s for {what}"
        time.sleep(0.02)


def received_by(process: subprocess.Popen[str], batches: int) -> list[list[int]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(batches)]


def of_two(served: ServedService, rank: int, **changes: Any) -> sampler.RemoteBatches:
    settings = {"batch_size": BATCH, "columns": ("number",), "rank": rank, "world_size": 2, "prefetch_factor": PREFETCH}
    return remote(served, **{"lease_s": LEASE_S, **settings, **changes})


def with_workers(records: sampler.RemoteBatches, count: int = 1, **changes: Any) -> DataLoader:
    settings = {"num_workers": count, "prefetch_factor": PREFETCH, "multiprocessing_context": "forkserver"}
    return DataLoader(records, batch_size=None, **settings | changes)


def numbers_of(loader: DataLoader) -> list[list[int]]:
    return [columns["number"].tolist() for columns, _ in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_the_workers_of_a_killed_trainer_end_and_its_rank_is_free(recorded: ServedService, trainer, method: str):
    killed = trainer(method, batches=1)
    received_by(killed, 1)
    assert recorded.service.statistics("run").trainers == 1
    killed.kill()
    until(lambda: recorded.service.statistics("run").trainers == 0, "the worker to end")
    with remote(recorded, batch_size=BATCH, lease_s=LEASE_S) as records:
        assert sorted(flat(numbers_of(DataLoader(records, batch_size=None)))) == list(range(N))


def test_what_waits_in_the_queue_of_a_killed_trainer_goes_to_the_others(recorded: ServedService, trainer):
    killed = trainer("forkserver", rank=1, world_size=2, batches=2)
    received = received_by(killed, 2)

    def all_are_lent() -> bool:
        return recorded.service.statistics("run").examples == STEPS * BATCH

    until(all_are_lent, "the worker to have the whole of its pass")
    time.sleep(0.5)  # for its end to be told, if it is
    killed.kill()
    until(lambda: recorded.service.statistics("run").trainers == 0, "the worker to end")
    with of_two(recorded, rank=0) as records:
        others = flat(numbers_of(DataLoader(records, batch_size=None)))
    assert set(others) | set(flat(received)) == set(range(N))
    assert not set(others) & set(received[0]), "the loop has asked for another one behind it"


@pytest.mark.parametrize("stays", [False, True], ids=["workers that end", "workers that stay"])
def test_what_waits_in_the_queue_of_a_loop_that_fails_goes_to_the_others(recorded: ServedService, stays: bool):
    received: list[list[int]] = []
    with pytest.raises(ArithmeticError, match="NaN"), of_two(recorded, rank=1) as records:
        for columns, _ in with_workers(records, persistent_workers=stays):
            received.append(columns["number"].tolist())
            if len(received) == 2:
                until(lambda: recorded.service.statistics("run").examples == STEPS * BATCH, "the whole pass")
                time.sleep(0.2)
                raise ArithmeticError("the loss is NaN")
    with of_two(recorded, rank=0) as records:
        others = flat(numbers_of(DataLoader(records, batch_size=None)))
    assert set(others) | set(flat(received)) == set(range(N))
    assert not set(others) & set(received[0])


@pytest.mark.parametrize("stays", [False, True], ids=["workers that end", "workers that stay"])
def test_a_loop_that_came_to_its_end_leaves_nothing_to_the_others(recorded: ServedService, stays: bool):
    with of_two(recorded, rank=0) as first, of_two(recorded, rank=1) as second:
        loader = with_workers(first, persistent_workers=stays)
        seen = numbers_of(loader)
        slow = iter(DataLoader(second, batch_size=None))
        rest = [columns["number"].tolist() for columns, _ in (next(slow), next(slow))]
        first.close()
        rest += [columns["number"].tolist() for columns, _ in slow]
        del loader
    assert (len(seen), len(rest)) == (STEPS, STEPS)
    assert sorted(flat(seen + rest)) == list(range(N))
    assert recorded.service.statistics("run").leases_expired == 0


def test_every_worker_of_every_rank_gets_its_own_after_a_long_evaluation(recorded: ServedService, clock: Later):
    ranks = [of_two(recorded, rank, lease_s=30.0) for rank in range(2)]
    loaders = [with_workers(records, 2) for records in ranks]
    for _ in range(3):
        steps = list(zip(*loaders, strict=True))  # in step: neither rank ends before the other
        assert [{batch.step for _, batch in step} for step in steps] == [{at} for at in range(STEPS)]
        assert sorted(i for step in steps for columns, _ in step for i in columns["number"].tolist()) == list(range(N))
        clock.ahead_s += 1000.0
    for records in ranks:
        records.close()
    assert recorded.service.statistics("run").leases_expired == 0
    assert recorded.service.statistics("run").leases == 0


def test_two_ranks_of_one_process_report_each_for_itself(recorded: ServedService):
    ranks = [of_two(recorded, rank) for rank in range(2)]

    def train(records: sampler.RemoteBatches) -> None:
        for columns, batch in with_workers(records):
            batch.report(columns["number"].float())
        records.flush()

    loops = [threading.Thread(target=train, args=(records,)) for records in ranks]
    for loop in loops:
        loop.start()
    for loop in loops:
        loop.join(60)
    assert [records.reports.accepted for records in ranks] == [N // 2] * 2
    ranks[0].close()
    train(ranks[1])
    assert ranks[1].reports.accepted > N // 2, "the other one's end is none of its own"
    assert ranks[1].reports.dropped == 0
    ranks[1].close()
    assert [rank.held for rank in recorded.service.statistics("run").ranks] == []
