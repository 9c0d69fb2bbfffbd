"""A stream that breaks, a service that comes back, and one that does not."""

from __future__ import annotations

import queue
import threading
import time

import pytest

import sampler_client as sampler
from sampler_client.session import Session
from sampler_service.rpc import batches
from sampler_service.service import InProcessService
from tests.client.conftest import BATCH, QUICK, STEPS, N

EVERYTHING = list(range(N))


class SlowToOpen(InProcessService):
    """A run whose processes take a second to start."""

    def open_run(self, config):
        time.sleep(1.0)
        return super().open_run(config)


class Stuck(InProcessService):
    """Plans no batch while `stuck` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def take(self, session, count, acked, waited_s=0.0):
        if count:
            self.released.wait(30)
        return super().take(session, count, acked, waited_s)


@pytest.fixture
def attach(plain_loader):
    opened = []

    def make(address, *, workers=0, timeouts=QUICK, batch_size=BATCH, **options) -> sampler.SampledLoader:
        plain = plain_loader(num_workers=workers, batch_size=batch_size)
        opened.append(sampler.attach(plain, address, run="r", policy="shuffle", timeouts=timeouts, **options))
        return opened[-1]

    yield make
    for loader in opened:
        loader.close()


def ids_with(loader, step: int, act) -> list[int]:
    """Ids of an epoch in which `act` is called before the batch `step` is asked for."""
    ids = []
    for count, (_, batch) in enumerate(loader, start=1):
        ids += batch.example_ids.tolist()
        if count == step:
            act()
    return ids


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 3, STEPS])
def test_a_stream_that_is_cut_loses_nothing_and_repeats_nothing(attach, served, proxy, step, workers):
    loader = attach(proxy.address, workers=workers)
    assert sorted(ids_with(loader, step, proxy.cut)) == EVERYTHING
    assert sorted(ids_with(loader, 0, None)) == EVERYTHING
    assert served.service.statistics("r").leases_expired == 0


def test_a_stream_that_is_cut_again_and_again_loses_nothing(attach, proxy):
    loader = attach(proxy.address)
    ids = []
    for _, batch in loader:
        ids += batch.example_ids.tolist()
        proxy.cut()
    assert sorted(ids) == EVERYTHING


def test_a_stream_that_is_cut_between_epochs_starts_the_next_one(attach, proxy):
    loader = attach(proxy.address)
    for _ in range(2):
        assert sorted(ids_with(loader, 0, None)) == EVERYTHING
        proxy.cut()


def test_a_stream_opened_again_keeps_its_rank_when_the_old_one_is_noticed_late(attach, served, proxy):
    loader = attach(proxy.address, lease_s=0.2)
    ids_with(loader, 2, proxy.cut)
    time.sleep(0.5)  # longer than the lease: a trainer taken for lost would be forgotten now
    assert served.service.statistics("r").trainers == 1
    assert sorted(ids_with(loader, 0, None)) == EVERYTHING


@pytest.mark.parametrize("grace_s", [0.0, 2.0], ids=["killed", "drained"])
@pytest.mark.parametrize("step", [1, 4, STEPS])
def test_a_service_that_comes_back_without_memory_goes_on_behind_what_was_received(attach, served, step, grace_s):
    loader = attach(served.address)

    def restart() -> None:
        served.stop(grace_s)
        threading.Timer(0.5, served.start, [InProcessService()]).start()

    assert sorted(ids_with(loader, step, restart)) == EVERYTHING
    assert sorted(ids_with(loader, 0, None)) == EVERYTHING


def test_a_service_that_comes_back_finds_ranks_that_stood_apart(attach, served):
    pair = [attach(served.address, batch_size=BATCH // 2, rank=rank, world_size=2) for rank in range(2)]
    running = [iter(loader) for loader in pair]
    ids = [next(running[rank])[1].example_ids.tolist() for rank in (0, 0, 0, 1)]
    served.stop()
    served.start(InProcessService())
    rest = [batch.example_ids.tolist() for each in running for _, batch in each]
    assert sorted(i for part in ids + rest for i in part) == EVERYTHING


@pytest.mark.parametrize("workers", [0, 2])
def test_a_service_that_is_gone_for_good_is_an_error_that_names_it_in_time(attach, served, workers):
    loader = attach(served.address, workers=workers, timeouts=sampler.Timeouts(call_s=1, reconnect_s=1.5))
    with pytest.raises(sampler.ServiceUnavailable, match=f"{served.address} was away for"):
        began = ids_with(loader, 1, served.stop)
        assert began == []
    started = time.monotonic()
    with pytest.raises(sampler.ServiceUnavailable, match=served.address):
        ids_with(loader, 0, None)
    assert 1.0 < time.monotonic() - started < 4.0


def test_after_that_error_the_next_epoch_comes_when_the_service_is_back(attach, served):
    loader = attach(served.address, timeouts=sampler.Timeouts(call_s=1, reconnect_s=0.5))
    with pytest.raises(sampler.ServiceUnavailable):
        ids_with(loader, 1, served.stop)
    served.start(InProcessService())
    time.sleep(2)  # gRPC's own pause between attempts is longer than this reconnect_s
    assert sorted(ids_with(loader, 0, None)) == EVERYTHING


def test_no_batch_in_time_is_an_error_that_names_the_service_and_the_next_epoch_comes(attach, served):
    served.stop()
    stuck = Stuck()
    served.start(stuck)
    loader = attach(served.address, timeouts=sampler.Timeouts(batch_s=0.5))
    started = time.monotonic()
    with pytest.raises(sampler.ReplyTimeout, match=rf"no batch from {served.address} within 0\.5 s.*batch_s"):
        ids_with(loader, 0, None)
    assert time.monotonic() - started < 3
    stuck.released.set()
    assert sorted(ids_with(loader, 0, None)) == EVERYTHING


def test_opening_a_run_may_take_longer_than_other_calls(attach, served):
    served.stop()
    served.start(SlowToOpen())
    loader = attach(served.address, timeouts=sampler.Timeouts(call_s=0.5))
    assert sorted(ids_with(loader, 0, None)) == EVERYTHING
    with pytest.raises(sampler.ReplyTimeout, match="open run 'r'"):
        attach(served.address, timeouts=sampler.Timeouts(open_s=0.5))


def test_a_trainer_that_leaves_after_its_epoch_leaves_nothing_to_the_others(attach, served):
    pair = [attach(served.address, batch_size=BATCH // 2, rank=rank, world_size=2) for rank in range(2)]
    slow = iter(pair[1])
    ids = next(slow)[1].example_ids.tolist()
    ids += ids_with(pair[0], 0, None)
    pair[0].close()
    ids += [i for _, batch in slow for i in batch.example_ids.tolist()]
    assert sorted(ids) == EVERYTHING


def test_a_trainer_that_leaves_inside_its_epoch_leaves_the_rest_to_the_others(attach, served):
    pair = [attach(served.address, batch_size=BATCH // 2, rank=rank, world_size=2) for rank in range(2)]
    slow = iter(pair[1])
    ids = next(slow)[1].example_ids.tolist()
    ids += ids_of_first(pair[0], 2)
    pair[0].close()
    ids += [i for _, batch in slow for i in batch.example_ids.tolist()]
    assert set(ids) == set(EVERYTHING)
    assert len(ids) <= N + BATCH // 2  # the batch that was in its hands may come again


def ids_of_first(loader, steps: int) -> list[int]:
    running = iter(loader)
    return [i for _ in range(steps) for i in next(running)[1].example_ids.tolist()]


def test_closing_takes_no_time_when_the_service_is_gone(attach, served):
    loader = attach(served.address)
    ids_of_first(loader, 1)
    served.stop()
    started = time.monotonic()
    loader.close()
    loader.close()
    assert time.monotonic() - started < 5


def test_what_is_done_arrives_although_the_stream_broke_after_the_last_batch(proxy, served):
    made = Session(
        sampler.SamplerClient(proxy.address, timeouts=QUICK),
        run="r",
        dataset="r",
        num_examples=N,
        options=sampler.RunOptions(policy="shuffle"),
        rank=0,
        world_size=1,
        batch_size=BATCH,
        drop_last=False,
        lead=STEPS + 2,
    )
    made.start_epoch(0, 0)
    assert len(list(iter(made.next, None))) == STEPS
    assert served.service.statistics("r").lead == STEPS
    proxy.cut()
    deadline = time.monotonic() + 5
    while made._stream._replies.is_active() and time.monotonic() < deadline:
        time.sleep(0.01)
    made.finish_epoch()
    assert (served.service.statistics("r").lead, served.service.statistics("r").trainers) == (0, 1)
    made.start_epoch(1, 0)
    assert len(list(iter(made.next, None))) == STEPS
    proxy.refuse = True
    proxy.cut()
    time.sleep(0.3)
    started = time.monotonic()
    made.finish_epoch()
    assert time.monotonic() - started < 6
    proxy.refuse = False
    made.start_epoch(2, 0)
    assert len(list(iter(made.next, None))) == STEPS
    made.close()


def test_a_trainer_whose_hello_comes_too_late_opens_its_stream_again(served, attach, monkeypatch):
    hello, late = batches._hello, []

    def first_is_late(inbox):
        if not late:
            late.append(inbox.get(timeout=5))
            return hello(queue.Queue())  # nothing comes
        return hello(inbox)

    monkeypatch.setattr(batches, "HELLO_S", 1.0)
    monkeypatch.setattr(batches, "_hello", first_is_late)
    loader = attach(served.address)
    assert sorted(ids_with(loader, 0, None)) == EVERYTHING
    assert len(late) == 1
