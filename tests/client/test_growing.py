"""A data set that grows and loses examples while trainers are at it, over the real wire."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

import sampler_client as sampler
from sampler_client.session import Session
from sampler_client.testing import fake_attach
from tests.client.conftest import BATCH, QUICK, N
from tests.raw_wire import ids_of as ids_in
from tests.raw_wire import open_session
from tests.served import ServedService


class Numbers(Dataset):
    """Example i is the number i; grows in place."""

    def __init__(self, size: int = N) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> torch.Tensor:
        if index >= self.size:
            raise IndexError(f"no example {index} of {self.size}")
        return torch.tensor(index)


@pytest.fixture
def attach(served) -> Iterator:
    opened = []

    def make(dataset: Numbers | None = None, *, run: str = "r", workers: int = 0, **options) -> sampler.SampledLoader:
        loader = DataLoader(dataset or Numbers(), batch_size=BATCH, num_workers=workers)
        given = {"policy": "shuffle", "timeouts": QUICK, "dataset": "numbers", **options}
        opened.append(sampler.attach(loader, served.address, run=run, **given))
        return opened[-1]

    yield make
    for loader in opened:
        loader.close()


@pytest.fixture
def client(served) -> Iterator[sampler.SamplerClient]:
    with sampler.SamplerClient(served.address, timeouts=QUICK) as client:
        yield client


def ids_of(loader, steps: int | None = None) -> list[int]:
    """Ids of an epoch, or of its first steps, which the data are."""
    ids = []
    for count, (item, batch) in enumerate(loader, start=1):
        assert item.tolist() == batch.example_ids.tolist()
        ids += item.tolist()
        batch.report(np.ones(len(batch)))
        if count == steps:
            break
    return ids


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_trains_on_what_was_appended_from_its_next_epoch_on(attach, client, workers):
    dataset = Numbers()
    loader = attach(dataset, workers=workers)
    assert sorted(ids_of(loader)) == list(range(N))
    dataset.size = N + 14
    assert sorted(ids_of(loader)) == list(range(N)), "it was not said yet"
    loader.grow()
    assert sorted(ids_of(loader)) == list(range(N + 14))
    assert len(loader) == 8
    said = client.statistics("r")
    assert (said.num_examples, said.deleted) == (N + 14, 0)


def test_the_clock_never_goes_back_though_epochs_get_longer_and_shorter(attach):
    dataset = Numbers()
    loader = attach(dataset)
    steps = []
    for size, gone in ((N, 0), (2 * N, 0), (5 * N, 30), (5 * N, 40)):
        dataset.size = size
        loader.grow()
        if gone:
            loader.delete(np.arange(gone))
        steps += [batch.run_step for _, batch in loader]
    assert steps == sorted(steps)
    assert steps[:8] == [0, 1, 2, 3, 4, 5, 6, 7], "one by one, as long as an epoch is as the run was opened with"
    assert max(steps) < 4 * 7, "an epoch is seven of them, however many it has"


def test_a_run_grows_when_its_last_rank_has_said_so(attach):
    datasets = [Numbers(), Numbers()]
    loaders = [attach(dataset, rank=rank, world_size=2) for rank, dataset in enumerate(datasets)]

    def epoch() -> list[int]:
        both = [iter(loader) for loader in loaders]
        ids = []
        while both:
            for running in list(both):
                item = next(running, None)
                if item is None:
                    both.remove(running)
                else:
                    ids += item[0].tolist()
        return sorted(ids)

    datasets[0].size = N + 6
    loaders[0].grow()
    assert epoch() == list(range(N))
    datasets[1].size = N + 10
    loaders[1].grow()
    assert epoch() == list(range(N + 6)), "what both can load"
    datasets[0].size = N + 10
    loaders[0].grow()
    assert epoch() == list(range(N + 10))


def test_a_trainer_whose_dataset_is_as_it_was_gets_no_more_than_that(attach, client):
    former = attach(run="former")
    client.grow_dataset("numbers", N + 20)
    for _ in range(2):
        assert sorted(ids_of(former)) == list(range(N)), "nobody asked it"
    later = attach(run="later")
    assert sorted(ids_of(later)) == list(range(N)), "once it was of that size"
    attach(Numbers(N + 20), run="whole")
    with pytest.raises(sampler.Stale, match=r"run 'whole' has 70 examples, this trainer can load 50; extend its data"):
        attach(run="whole", rank=1, world_size=2)
    assert sorted(ids_of(attach(Numbers(N + 10), run="another"))) == list(range(N + 10))
    with pytest.raises(sampler.Conflict, match="is registered with 70 examples, asked for 71"):
        attach(Numbers(N + 21), run="more")


def test_no_batch_that_is_sent_after_a_deletion_has_one_of_them(attach, client):
    loader = attach()
    gone, ids, rejected = set(range(10, 20)), [], 0
    for step, (_, batch) in enumerate(loader):
        ids += batch.example_ids.tolist()
        if step == 1:
            loader.delete(list(gone))
        if step > 3:  # two batches were on their way
            assert not gone & set(batch.example_ids.tolist())
        elif step >= 1:
            rejected += len(gone & set(batch.example_ids.tolist()))
            batch.report(np.ones(len(batch)))
    assert set(range(N)) - gone <= set(ids)
    assert len(ids) == len(set(ids))
    loader.flush()
    assert loader.reports.rejected.get("deleted", 0) == rejected
    assert sorted(ids_of(loader)) == sorted(set(range(N)) - gone)
    assert (client.statistics("r").num_examples, client.statistics("r").deleted) == (N, 10)
    assert client.explain("r", 12).why[0].startswith("It was deleted from its data set")


def test_a_saved_position_goes_on_with_the_examples_its_epoch_began_with(attach, client):
    first = attach()
    client.delete_examples("numbers", [0, 1])
    before = ids_of(first, 3)
    state = first.state_dict()
    first.close()
    client.grow_dataset("numbers", N + 20)
    client.delete_examples("numbers", [2, 3, N + 1])
    second = attach(Numbers(), run="r")
    second.load_state_dict(state)
    rest = ids_of(second)
    assert not set(before) & set(rest)
    assert set(before) | set(rest) | {2, 3} == set(range(2, N))
    third = attach(Numbers(N + 20), run="other")
    assert sorted(ids_of(third)) == sorted(set(range(N + 20)) - {0, 1, 2, 3, N + 1})


def test_a_grown_epoch_goes_on_over_a_service_that_lost_its_memory(attach, served):
    dataset = Numbers()
    loader = attach(dataset)
    ids_of(loader)
    dataset.size = N + 14
    loader.grow()
    ids, clock = [], []
    for step, (_, batch) in enumerate(loader):
        ids += batch.example_ids.tolist()
        clock.append(batch.run_step)
        if step == 2:
            served.restart()
    assert sorted(ids) == list(range(N + 14))
    assert clock == sorted(clock)
    assert sorted(ids_of(loader)) == list(range(N + 14))


def test_what_can_not_be_grown_or_deleted_is_said(attach, client):
    loader = attach()
    with pytest.raises(sampler.Conflict, match="dataset 'numbers' has 50 examples, asked to grow to 49; it never"):
        client.grow_dataset("numbers", N - 1)
    assert client.grow_dataset("numbers", N).num_examples == N
    for call in (lambda: client.grow_dataset("nope", 5), lambda: client.delete_examples("nope", [5])):
        with pytest.raises(sampler.NotFound, match="unknown dataset 'nope'"):
            call()
    with pytest.raises(sampler.ConfigError, match=r"example 50 is not one of dataset 'numbers', whose ids are 0 to 49"):
        loader.delete([3, 50])
    with pytest.raises(sampler.ConfigError, match="all that is left of dataset 'numbers'"):
        loader.delete(np.arange(N))
    for bad in ([], [[1]], [0.5], ["a"]):
        with pytest.raises(sampler.ConfigError, match=r"example_ids must be \(r,\) whole numbers"):
            client.delete_examples("numbers", bad)
    assert client.delete_examples("numbers", np.array([4, 4, 2], np.int32)).deleted == 2
    assert client.delete_examples("numbers", [4]).deleted == 2, "a repeat changes nothing"
    with pytest.raises(sampler.ConfigError, match="num_examples must be at least 50, got 49"):
        loader.grow(N - 1)


def test_workers_that_stay_would_not_see_what_was_appended(served):
    plain = DataLoader(Numbers(), batch_size=BATCH, num_workers=1, persistent_workers=True)
    with (
        sampler.attach(plain, served.address, run="r", timeouts=QUICK) as loader,
        pytest.raises(sampler.ConfigError, match="persistent_workers=True, and they keep the dataset as it was"),
    ):
        loader.grow()


def test_a_fake_service_grows_and_deletes_too():
    dataset = Numbers(20)
    loader = fake_attach(DataLoader(dataset, batch_size=4))
    dataset.size = 24
    loader.grow()
    loader.delete([0, 21])
    assert sorted(ids_of(loader)) == sorted(set(range(24)) - {0, 21})
    seen, gone = [], {0, 21}
    for step, (_, batch) in enumerate(loader):
        seen += batch.example_ids.tolist()
        if step == 0:
            left = next(i for i in range(24) if i not in {*gone, *seen})
            loader.delete([left])
            gone.add(left)
    assert sorted(seen) == sorted(set(range(24)) - gone)
    assert loader.sampler.source.statistics().deleted == 3


# --- any order of events ---


class Walk:
    """Two ranks that take a batch at a time, leave with it in hand and come again, while the data set changes."""

    def __init__(self, address: str, seed: int) -> None:
        self.rng, self.address = np.random.default_rng(seed), address
        self.client = sampler.SamplerClient(address, timeouts=QUICK)
        self.size, self.gone, self.served = 24, set(), [24, 24]
        self.done: dict[int, Counter[int]] = defaultdict(Counter)
        self.began: dict[int, set[int]] = {}
        self.there = {rank: self._join(rank) for rank in (0, 1)}

    def _join(self, rank: int) -> Session:
        options = {"seed": 5}
        size = self.served[rank]
        return open_session(
            self.address, rank=rank, world_size=2, batch_size=2, lead=1, num_examples=size, options=options
        )

    def epoch(self, epoch: int) -> None:
        for rank in {0, 1} - set(self.there):
            self.there[rank] = self._join(rank)
        gone = set(self.gone)
        started = {session.start_epoch(epoch, 0).population for session in self.there.values()}
        (name,) = started
        self.began[epoch] = set(range(int(name.partition(".")[2]))) - gone
        running = dict(self.there)
        while running:
            self._happen(running)
            rank = list(running)[self.rng.integers(len(running))]
            batch = running[rank].next()
            if batch is None:
                running.pop(rank).finish_epoch()
                continue
            assert max(ids_in(batch)) < self.served[rank]
            if len(running) == 2 and self.rng.random() < 0.05:
                running.pop(rank).close()  # with the batch in its hands
                del self.there[rank]
                continue
            weights = np.frombuffer(batch.weights, np.float32)
            self.done[batch.epoch].update(np.array(ids_in(batch))[weights > 0].tolist())
            running[rank].done(batch.batch_id)

    def _happen(self, running: dict[int, Session]) -> None:
        what = self.rng.random()
        if what < 0.06:
            self.size += int(self.rng.integers(1, 5))
            self.client.grow_dataset("data", self.size)
        elif what < 0.12:
            rank = list(running)[self.rng.integers(len(running))]
            self.served[rank] = self.size
            running[rank].grow(self.size)
        elif what < 0.2 and len(self.gone) < self.size // 2:
            ids = set(self.rng.integers(0, self.size, 3).tolist())
            self.client.delete_examples("data", sorted(ids))
            self.gone |= ids

    def close(self) -> None:
        for session in self.there.values():
            session.close()
        self.client.close()


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_example_alive_is_done_exactly_once_an_epoch_over_the_wire(seed):
    served = ServedService()
    try:
        walk = Walk(served.address, seed)
        for epoch in range(4):
            walk.epoch(epoch)
        walk.close()
    finally:
        served.stop()
    for epoch in range(3):  # what a rank left behind at an epoch's end comes in the next
        left = walk.began[epoch] - walk.gone
        assert {i: walk.done[epoch][i] for i in left} == dict.fromkeys(left, 1)
