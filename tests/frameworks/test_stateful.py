"""torchdata's StatefulDataLoader: its state has the position, and going on from it loses and repeats nothing."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

import sampler_client as sampler
from tests.client.conftest import remote
from tests.frameworks.conftest import BATCH, STEPS, N, assert_each_once, numbers
from tests.memory_records import MemoryRecords, table_of
from tests.served import ServedService

EPOCHS = 2

# Workers of a forkserver that has imported torch start in a tenth of a second, instead of two.
multiprocessing.get_context("forkserver").set_forkserver_preload(["sampler_client.pytorch.remote_batches"])


def stateful(workers: int = 0, **changes) -> StatefulDataLoader:
    return StatefulDataLoader(changes.pop("dataset", numbers()), batch_size=BATCH, num_workers=workers, **changes)


def through_a_file(state, folder):
    torch.save(state, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def ids_of(loader, batches: int) -> list[tuple[int, int]]:
    """(epoch, example) of so many batches, over epochs."""
    seen = []
    while batches:
        for (x,), batch in loader:
            assert x.flatten().tolist() == batch.example_ids.tolist()
            seen += [(batch.epoch, int(example)) for example in batch.example_ids]
            batches -= 1
            if not batches:
                break
    return seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("steps", [0, 1, STEPS - 1, STEPS, STEPS + 1])
def test_going_on_from_a_state_loses_and_repeats_nothing(attach, tmp_path, steps, workers):
    with attach(stateful(workers)) as first:
        assert isinstance(first.loader, StatefulDataLoader)
        seen = ids_of(first, steps)
        state = through_a_file(first.state_dict(), tmp_path)
    with attach(stateful(workers)) as second:
        second.load_state_dict(state)
        seen += ids_of(second, EPOCHS * STEPS - steps)
    assert_each_once(seen, EPOCHS)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("steps", [1, STEPS - 1, STEPS])
def test_the_state_of_a_stateful_loader_alone_has_the_position_of_its_batch_sampler(served, tmp_path, steps, workers):
    seen, state = [], None
    for batches in (steps, EPOCHS * STEPS - steps):
        ours = sampler.RemoteBatchSampler.connect(
            served.address, run="r", num_examples=N, batch_size=BATCH, policy="shuffle", num_workers=workers
        )
        loader = StatefulDataLoader(numbers(), batch_sampler=ours, num_workers=workers)
        with closing(ours):
            if state is not None:
                loader.load_state_dict(state)
            while batches:
                for (x,) in loader:
                    batch = ours.received()
                    assert x.flatten().tolist() == batch.example_ids.tolist()
                    seen += [(batch.epoch, int(example)) for example in batch.example_ids]
                    batches -= 1
                    if not batches:
                        break
            state = through_a_file(loader.state_dict(), tmp_path)
    assert_each_once(seen, EPOCHS)


@pytest.fixture
def recorded() -> Iterator[ServedService]:
    """A server that holds N records under the name "numbers"."""
    served = ServedService(records=MemoryRecords("numbers", table_of(N)))
    yield served
    served.stop()


@pytest.mark.parametrize("workers", [{}, {"num_workers": 2, "multiprocessing_context": "forkserver"}])
@pytest.mark.parametrize("steps", [1, STEPS - 1, STEPS, STEPS + 1])
def test_records_that_are_streamed_go_on_from_the_state_of_a_stateful_loader(recorded, tmp_path, steps, workers):
    seen, state = [], None
    for batches in (steps, EPOCHS * STEPS - steps):
        with remote(recorded) as records:
            loader = StatefulDataLoader(records, batch_size=None, **workers)
            if state is not None:
                loader.load_state_dict(state)
            while batches:
                for columns, batch in loader:
                    assert columns["number"].tolist() == batch.example_ids.tolist()
                    seen += [(batch.epoch, int(example)) for example in batch.example_ids]
                    batches -= 1
                    if not batches:
                        break
            state = through_a_file(loader.state_dict(), tmp_path)
            del loader
    assert_each_once(seen, EPOCHS)


class Counting(Dataset):
    """A dataset with a state of its own: how many examples it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        self.asked += 1
        return (torch.tensor([float(index)]),)

    def state_dict(self) -> dict[str, int]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.asked = state["asked"]


def test_the_datasets_own_state_comes_back_too(attach):
    with attach(stateful(dataset=Counting())) as first:
        ids_of(first, 3)
        state = first.state_dict()
    again = Counting()
    with attach(stateful(dataset=again)) as second:
        second.load_state_dict(state)
        ids_of(second, 1)
    assert again.asked == 4 * BATCH


def test_a_state_of_other_workers_is_refused_and_fits_without_what_they_kept(attach):
    with attach(stateful(2)) as first:
        seen = ids_of(first, 2)
        state = first.state_dict()
    with attach(stateful(1)) as second:
        with pytest.raises(sampler.Stale, match=r'num_workers=2, this one 1.*take "loader" out'):
            second.load_state_dict(state)
        del state["loader"]
        second.load_state_dict(state)
        seen += ids_of(second, STEPS - 2)
    assert_each_once(seen, 1)


def test_snapshots_now_and_then_are_refused(attach):
    with pytest.raises(sampler.ConfigError, match="needs snapshot_every_n_steps=1, got 5"):
        attach(stateful(snapshot_every_n_steps=5))
