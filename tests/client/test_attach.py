"""What `attach` refuses, and how it learns which trainer it is."""

from __future__ import annotations

import time

import pytest
import torch.distributed
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

import sampler_client as sampler
from sampler_client import joining
from sampler_service.errors import Unavailable
from sampler_service.service import InProcessService
from tests.client.conftest import BATCH, QUICK, N


class Numbers(IterableDataset):
    def __iter__(self):
        return iter(range(N))


def attach(loader, address, **options):
    return sampler.attach(loader, address, run="r", **{"policy": "shuffle", "timeouts": QUICK, **options})


def place(monkeypatch, **options) -> tuple[int, int]:
    """The rank and world size that would be asked for."""
    asked = []
    monkeypatch.setattr(joining, "Session", lambda _client, **request: asked.append(request))
    joining.join("localhost:1", "r", N, BATCH, "shuffle", 2, 2, **options)
    return asked[0]["rank"], asked[0]["world_size"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _make: DataLoader(Numbers(), batch_size=4), "needs a map-style dataset"),
        (lambda make: make(batch_size=None, shuffle=False), "batch_size=None"),
        (lambda make: make(sampler=WeightedRandomSampler([1.0] * N, N), shuffle=False), "replace_sampler=True"),
        (lambda make: make(num_workers=1, in_order=False), "in_order=True"),
    ],
)
def test_a_loader_whose_batches_cannot_come_from_a_service_is_refused(plain_loader, served, make, says):
    with pytest.raises(sampler.ConfigError, match=says):
        attach(make(plain_loader), served.address)


def test_a_sampler_of_the_loaders_own_is_replaced_when_that_is_meant(plain_loader, served):
    weighted = plain_loader(sampler=WeightedRandomSampler([1.0] * N, N), shuffle=False)
    with attach(weighted, served.address, replace_sampler=True) as loader:
        assert sorted(i for (ids,), _ in loader for i in ids.tolist()) == list(range(N))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batchsize": 3}, r"unknown options \['batchsize'\]; there are .*'rank'.*'seed'"),
        ({"rank": 0}, "both rank and world_size or neither"),
        ({"world_size": 2}, "both rank and world_size or neither"),
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"policy": "no-such"}, "unknown policy 'no-such'; choose one of .*'shuffle'"),
        ({"max_lead": 1}, "lower prefetch_factor or open the run with a larger max_lead"),
        ({"policy_options": {"no_such": 1}, "policy": "importance"}, "no_such"),
        ({"on_lost": "ask"}, "on_lost must be 'redeliver' or 'drop'"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_with_what_is_allowed(plain_loader, served, options, says):
    with pytest.raises(sampler.ConfigError, match=says):
        attach(plain_loader(), served.address, **options)


def test_a_prefetch_larger_than_the_lead_is_refused(plain_loader, served):
    with pytest.raises(sampler.ConfigError, match=r"would hold 8 batches .* allows 1 to 4"):
        attach(plain_loader(num_workers=2, prefetch_factor=3), served.address, max_lead=4)


@pytest.mark.parametrize("address", ["", "localhost"])
def test_an_address_without_a_port_is_refused(plain_loader, address):
    with pytest.raises(sampler.ConfigError, match="host:port"):
        attach(plain_loader(), address)


def test_nobody_at_the_address_is_said_so_with_the_address(plain_loader, served):
    served.stop()
    with pytest.raises(sampler.ServiceUnavailable, match=f"no service at {served.address}.*sampler-service up"):
        attach(plain_loader(), served.address)


def test_a_rank_that_is_taken_is_refused_with_its_holder(plain_loader, served):
    with attach(plain_loader(), served.address), pytest.raises(sampler.Conflict, match=r"rank 0 .* is held by"):
        attach(plain_loader(), served.address)


def test_the_rank_comes_from_the_arguments_before_anything_else(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert place(monkeypatch, rank=1, world_size=2) == (1, 2)


def test_the_rank_comes_from_the_environment_when_nothing_else_says_it(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert place(monkeypatch) == (3, 4)


def test_a_trainer_that_nobody_numbers_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert place(monkeypatch) == (0, 1)


def test_the_rank_comes_from_torch_distributed_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert place(monkeypatch) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()


class LosingItsAnswer(InProcessService):
    """The first join is done, but its answer never arrives."""

    lost = False

    def join(self, *args, **kwargs):
        joined = super().join(*args, **kwargs)
        if not self.lost:
            self.lost = True
            raise Unavailable("the answer is lost")
        return joined


def test_a_join_whose_answer_was_lost_is_repeated_and_finds_its_own_rank(plain_loader, served):
    served.stop()
    served.start(LosingItsAnswer())
    with attach(plain_loader(), served.address) as loader:
        assert sorted(i for (ids,), _ in loader for i in ids.tolist()) == list(range(N))


def test_a_trainer_is_connected_before_its_first_batch(plain_loader, served, monkeypatch):
    with attach(plain_loader(), served.address):
        deadline = time.monotonic() + 5
        while not served.service.statistics("r").trainers and time.monotonic() < deadline:
            time.sleep(0.01)
        monkeypatch.setattr("sampler_service.leases.UNCONNECTED_S", 0.0)
        with pytest.raises(sampler.Conflict, match="is held by"):
            attach(plain_loader(), served.address)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": -1, "world_size": 1}, "rank must be at least 0, got -1"),
        ({"rank": 0, "world_size": 0}, "world_size must be at least 1.*got rank 0 of world_size 0"),
        ({"max_lead": -1}, "max_lead must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 1.5}, r"seed must be a whole number, got 1\.5"),
        ({"num_clusters": -1}, "num_clusters must be at least 0, got -1"),
        ({"num_clusters": 2**32}, "num_clusters must be at most 4294967295"),
        ({"sketch_dim": 0}, "sketch_dim must be at least 1, got 0"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"queue": 0}, "queue must be at least 1, got 0"),
    ],
)
def test_a_number_that_can_not_be_is_refused_with_what_is_allowed(plain_loader, served, options, says):
    with pytest.raises(sampler.ConfigError, match=says):
        attach(plain_loader(), served.address, **options)


def test_a_batch_size_below_1_is_refused(served):
    with pytest.raises(sampler.ConfigError, match="batch_size must be at least 1, got -2"):
        sampler.RemoteBatchSampler.connect(served.address, run="r", num_examples=N, batch_size=-2)


@pytest.mark.parametrize("options", [{"rank": -1, "world_size": 1}, {"policy": "no-such"}])
def test_a_connection_that_came_to_nothing_is_closed(plain_loader, served, monkeypatch, options):
    closed = []
    monkeypatch.setattr(sampler.SamplerClient, "close", lambda client: closed.append(client))
    with pytest.raises(sampler.ConfigError):
        attach(plain_loader(), served.address, **options)
    assert len(closed) == 1
