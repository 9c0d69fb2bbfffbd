"""Loaders that frameworks take apart, or that know another rank than their process, are refused with what to write.

What the frameworks themselves do is in tests/frameworks.
"""

from __future__ import annotations

import pytest
import torch.distributed
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_client.pytorch import frameworks
from tests.client.conftest import BATCH, QUICK, N


def attach(loader, address, **options) -> sampler.SampledLoader:
    return sampler.attach(loader, address, run="r", **{"policy": "shuffle", "timeouts": QUICK, **options})


class Moving(DataLoader):
    """Yields something else than the DataLoader does."""

    def __iter__(self):
        return (item for item in super().__iter__())


class Configured(DataLoader):
    """Has arguments of its own, and yields what a DataLoader does."""

    def __init__(self, dataset: TensorDataset) -> None:
        super().__init__(dataset, batch_size=BATCH)


def numbers() -> TensorDataset:
    return TensorDataset(torch.arange(N))


@pytest.mark.parametrize("workers", [0, 1])
def test_only_what_attach_returned_iterates_over_the_loader_beneath(served, plain_loader, workers):
    with attach(plain_loader(num_workers=workers), served.address) as loader:
        with pytest.raises(sampler.ConfigError, match=r"test_frameworks iterates over .* not over its \.loader"):
            list(loader.loader)
        with pytest.raises(sampler.ConfigError, match=r"not over its \.loader"):
            list(loader.sampler)
        assert sorted(i for (ids,), _ in loader for i in ids.tolist()) == list(range(N)), "it is as it was"


def test_a_loader_that_iterates_in_a_way_of_its_own_is_refused_by_name(served):
    with pytest.raises(sampler.ConfigError, match=r"got a .*test_frameworks\.Moving, whose own __iter__ would be lost"):
        attach(Moving(numbers(), batch_size=BATCH), served.address)


def test_a_loader_with_arguments_of_its_own_is_attached(served):
    with attach(Configured(numbers()), served.address) as loader:
        assert sorted(i for (ids,), _ in loader for i in ids.tolist()) == list(range(N))


def test_a_handle_asked_for_before_any_batch_says_that_the_sampler_was_left_out(served):
    batches = sampler.RemoteBatchSampler.connect(
        served.address, run="r", num_examples=N, batch_size=BATCH, policy="shuffle"
    )
    for _ in DataLoader(numbers(), batch_size=BATCH):
        with pytest.raises(sampler.ConfigError, match="was built without this sampler"):
            batches.received()
        break
    batches.close()


def test_what_attach_returned_tells_that_it_is_no_dataloader(served, plain_loader):
    with (
        attach(plain_loader(), served.address) as loader,
        pytest.raises(AttributeError, match="no prepare_data_loader"),
    ):
        _ = loader.worker_init_fn


@pytest.fixture
def alone(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def attached_as_the_second_of_two(monkeypatch, served, plain_loader, **place) -> sampler.SampledLoader:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    return attach(plain_loader(), served.address, **place)


def test_a_loader_attached_before_the_ranks_were_known_is_refused_when_it_is_used(
    monkeypatch, served, plain_loader, request
):
    with attached_as_the_second_of_two(monkeypatch, served, plain_loader) as loader:
        request.getfixturevalue("alone")
        with pytest.raises(
            sampler.ConfigError, match=r"attached as rank 1 of 2, but torch\.distributed says rank 0 of 1"
        ):
            list(loader)


def test_a_place_that_was_given_is_kept_whatever_torch_distributed_says(monkeypatch, served, plain_loader, request):
    """As with tensor parallelism, where several processes share one rank of the data."""
    with attached_as_the_second_of_two(monkeypatch, served, plain_loader, rank=0, world_size=1) as loader:
        request.getfixturevalue("alone")
        assert sum(1 for _ in loader) == 7


def test_a_world_without_a_rank_is_refused_instead_of_taken_for_the_first_rank(monkeypatch, served, plain_loader):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(sampler.ConfigError, match=r"WORLD_SIZE is 2, but RANK is not set .*train_dataloader\(\)"):
        attach(plain_loader(), served.address)


@pytest.mark.parametrize(
    ("module", "known"),
    [
        ("accelerate.data_loader", True),
        ("ray.train.v2.torch.train_loop_utils", True),
        ("lightning.pytorch.utilities.combined_loader", True),
        ("lightning_fabric", False),
        ("accelerate", False),
        ("rayon.train", False),
        ("", False),
    ],
)
def test_a_line_is_known_for_modules_of_frameworks_alone(module, known):
    assert bool(frameworks.line_for(module)) is known
