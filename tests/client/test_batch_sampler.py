"""RemoteBatchSampler in a plain DataLoader, and the epochs of both ways in."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from tests.client.conftest import BATCH, QUICK, STEPS, N


@pytest.fixture
def connect(served):
    opened = []

    def make(**options) -> sampler.RemoteBatchSampler:
        given = {"run": "r", "num_examples": N, "batch_size": BATCH, "policy": "shuffle", "timeouts": QUICK, **options}
        opened.append(sampler.RemoteBatchSampler.connect(served.address, **given))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture
def attached(served, plain_loader):
    with sampler.attach(plain_loader(), served.address, run="r", policy="shuffle", timeouts=QUICK) as loader:
        yield loader


def numbers() -> TensorDataset:
    return TensorDataset(torch.arange(N))


@pytest.mark.parametrize("workers", [0, 2])
def test_received_gives_the_handle_of_each_batch_of_a_plain_loader(connect, workers):
    batches = connect(num_workers=workers)
    loader = DataLoader(numbers(), batch_sampler=batches, num_workers=workers)
    for epoch in range(2):
        seen = []
        for (ids,) in loader:
            batch = batches.received()
            assert batch.epoch == epoch
            assert batch.example_ids.tolist() == ids.tolist()
            seen += ids.tolist()
        assert sorted(seen) == list(range(N))


@pytest.mark.parametrize("workers", [0, 1])
def test_forgetting_received_is_an_error_that_names_it(connect, workers):
    batches = connect(num_workers=workers)
    with pytest.raises(sampler.ConfigError, match=r"call received\(\) for every batch"):
        for _ in DataLoader(numbers(), batch_sampler=batches, num_workers=workers):
            pass


def test_a_loader_that_prefetches_more_than_was_said_is_an_error_that_names_it(connect):
    batches = connect(num_workers=0)
    with pytest.raises(sampler.ConfigError, match="pass num_workers and prefetch_factor"):
        for _ in DataLoader(numbers(), batch_sampler=batches, num_workers=2):
            batches.received()


def test_received_without_a_batch_is_an_error(connect):
    with pytest.raises(sampler.ConfigError, match="no DataLoader has asked for a batch"):
        connect().received()


def test_received_twice_for_one_batch_is_an_error(connect):
    batches = connect()
    for _ in DataLoader(numbers(), batch_sampler=batches):
        batches.received()
        with pytest.raises(sampler.ConfigError, match="without a batch"):
            batches.received()
        break


def test_the_length_is_that_of_the_epoch(attached):
    assert len(attached) == len(attached.loader) == STEPS
    assert len(list(attached)) == STEPS


def test_the_length_leaves_out_what_drop_last_drops(served, plain_loader):
    with sampler.attach(plain_loader(drop_last=True), served.address, run="r", policy="shuffle") as loader:
        assert len(loader) == STEPS - 1
        assert [len(batch) for _, batch in loader] == [BATCH] * (STEPS - 1)


def test_each_iteration_is_the_next_epoch_in_another_order(attached):
    first, second = ([batch.example_ids.tolist() for _, batch in attached] for _ in range(2))
    assert first != second


def test_set_epoch_says_which_epoch_the_next_iteration_is_however_often_it_is_called(attached):
    attached.set_epoch(5)
    attached.set_epoch(5)
    assert {batch.epoch for _, batch in attached} == {5}
    assert {batch.epoch for _, batch in attached} == {6}


def test_an_epoch_that_is_set_again_comes_again_in_the_same_order(attached):
    orders = []
    for _ in range(2):
        attached.set_epoch(3)
        orders.append([batch.example_ids.tolist() for _, batch in attached])
    assert orders[0] == orders[1]


def test_a_negative_epoch_is_refused(attached):
    with pytest.raises(sampler.ConfigError, match="epoch must be at least 0, got -1"):
        attached.set_epoch(-1)
    with pytest.raises(sampler.ConfigError, match=r"epoch must be a whole number, got 1\.5"):
        attached.set_epoch(1.5)


@pytest.mark.parametrize("workers", [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}])
def test_leaving_an_epoch_early_makes_the_next_iteration_a_whole_new_epoch(served, plain_loader, workers):
    with sampler.attach(plain_loader(**workers), served.address, run="r", policy="shuffle", timeouts=QUICK) as loader:
        for epoch in range(3):
            for _, batch in loader:
                assert batch.epoch == 2 * epoch
                break
            whole = [(batch.epoch, i) for _, batch in loader for i in batch.example_ids.tolist()]
            assert sorted(whole) == [(2 * epoch + 1, i) for i in range(N)]


def test_an_iteration_under_way_while_another_starts_does_not_go_on(attached):
    first = iter(attached)
    next(first)
    assert len(list(attached)) == STEPS
    with pytest.raises(sampler.SamplerError):
        next(first)


@pytest.mark.parametrize("workers", [0, 2])
def test_after_a_whole_pass_the_position_is_the_start_of_the_next(connect, served, workers):
    batches = connect(num_workers=workers)
    for epoch in range(2):
        for step, _ in enumerate(DataLoader(numbers(), batch_sampler=batches, num_workers=workers), start=1):
            batches.received()
            if step < STEPS:
                state = batches.state_dict()
                assert (state["epoch"], state["examples"]) == (epoch, step * BATCH)
        assert batches.state_dict() == {"version": 1, "run": "r", "epoch": epoch + 1, "examples": 0}
    deadline = time.monotonic() + 5
    while served.service.statistics("r").lead and time.monotonic() < deadline:
        time.sleep(0.01)
    assert served.service.statistics("r").lead == 0


def test_closing_after_a_whole_pass_leaves_nothing_to_the_others(connect):
    pair = [connect(batch_size=BATCH // 2, rank=rank, world_size=2) for rank in range(2)]
    slow = iter(pair[1])
    ids = list(next(slow))
    pair[1].received()
    for part in pair[0]:
        pair[0].received()
        ids += part
    pair[0].close()
    for part in slow:
        pair[1].received()
        ids += part
    assert sorted(ids) == list(range(N))


@pytest.mark.parametrize("workers", [0, 1])
def test_with_the_last_batch_of_an_epoch_the_position_is_the_start_of_the_next(served, plain_loader, workers):
    plain = plain_loader(num_workers=workers)
    with sampler.attach(plain, served.address, run="r", policy="shuffle", timeouts=QUICK) as loader:
        states = [loader.state_dict() for _ in loader]
        assert [(state["epoch"], state["examples"]) for state in states[-2:]] == [(0, (STEPS - 1) * BATCH), (1, 0)]
        assert loader.state_dict() == states[-1]


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_loop_that_counts_its_batches_gets_whole_epochs_and_may_say_that_one_is_over(served, plain_loader, drop_last):
    """As frameworks have it: they take len(loader) batches, and never ask for one too many."""
    plain = plain_loader(drop_last=drop_last)
    with sampler.attach(plain, served.address, run="r", policy="shuffle", timeouts=QUICK) as loader:
        for epoch in range(3):
            batches = [batch for _, (_, batch) in zip(range(len(loader)), loader, strict=False)]
            assert [(batch.epoch, batch.step) for batch in batches] == [(epoch, step) for step in range(len(loader))]
            if epoch == 1:
                loader.end_epoch()
                deadline = time.monotonic() + 5
                while served.service.statistics("r").lead and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert served.service.statistics("r").lead == 0, "the last batch is done"


def test_the_end_of_an_epoch_is_not_believed_while_batches_are_to_come(attached):
    for _ in attached:
        attached.end_epoch()
        break
    assert attached.state_dict()["examples"] == BATCH


def test_the_length_of_a_resumed_epoch_is_that_of_a_whole_one(attached):
    """Frameworks count the batches of an epoch from its start, also where they go on inside of it."""
    state = {"version": 1, "run": "r", "epoch": 0, "examples": 4 * BATCH}
    attached.load_state_dict(state)
    lengths = [len(attached), *(len(attached) for _ in attached), len(attached)]
    assert lengths == [STEPS] * (2 + STEPS - 4)
