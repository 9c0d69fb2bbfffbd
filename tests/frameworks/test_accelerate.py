"""Accelerate in one process: a loader that was prepared is refused, and checkpoints hold the position."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from torch import nn
from torch.utils.data import DataLoader

import sampler_client as sampler
from tests.client.conftest import remote
from tests.frameworks.conftest import BATCH, STEPS, N, assert_each_once, losses_of, numbers
from tests.memory_records import MemoryRecords, table_of
from tests.served import ServedService

LINE = r"accelerate\.data_loader.*accelerator\.prepare\(model, optimizer\)"


@pytest.fixture
def accelerator():
    accelerator = Accelerator(cpu=True)
    yield accelerator
    accelerator.free_memory()


def trained(loader, accelerator, model, optimizer, steps: int) -> None:
    """So many steps, over epochs."""
    while steps > 0:
        for (x,), batch in loader:
            losses = losses_of(model, x)
            accelerator.backward(batch.weighted_mean(losses))
            optimizer.step()
            optimizer.zero_grad()
            batch.report(losses)
            steps -= 1
            if not steps:
                break


@pytest.mark.parametrize("steps", [3, STEPS, STEPS + 2])
def test_going_on_from_a_checkpoint_loses_and_repeats_nothing(attach, accelerator, reported, tmp_path, steps):
    model = nn.Linear(1, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.01))
    with attach() as loader:
        accelerator.register_for_checkpointing(loader)
        trained(loader, accelerator, model, optimizer, steps)
        accelerator.save_state(str(tmp_path))
        accelerator._custom_objects.clear()
    with attach() as loader:
        accelerator.register_for_checkpointing(loader)
        accelerator.load_state(str(tmp_path))
        trained(loader, accelerator, model, optimizer, 3 * STEPS - steps)
        accelerator._custom_objects.clear()
    assert_each_once(reported, 3)


def test_what_attach_returned_goes_through_prepare_as_it_is(attach, accelerator):
    with attach() as loader:
        assert accelerator.prepare(loader) is loader


def test_a_prepared_loader_of_a_batch_sampler_is_refused_with_the_line_to_write(served, accelerator):
    batches = sampler.RemoteBatchSampler.connect(served.address, run="r", num_examples=N, batch_size=BATCH, ahead=4)
    prepared = accelerator.prepare(DataLoader(numbers(), batch_sampler=batches))
    with closing(batches), pytest.raises(sampler.ConfigError, match=LINE):
        list(prepared)


def test_the_loader_beneath_is_refused_with_the_line_to_write(attach, accelerator):
    with attach() as loader, pytest.raises(sampler.ConfigError, match=LINE):
        list(accelerator.prepare(loader.loader))


def test_skipping_batches_of_what_attach_returned_is_refused(attach):
    with attach() as loader, pytest.raises(AttributeError, match=r"no skip_first_batches \(Accelerate"):
        skip_first_batches(loader, 2)


@pytest.mark.parametrize("workers", [{}, {"num_workers": 1, "multiprocessing_context": "forkserver"}])
def test_a_prepared_loader_of_records_is_refused_with_the_line_to_write(accelerator, workers):
    served = ServedService(records=MemoryRecords("numbers", table_of(N)))
    with remote(served) as records, pytest.raises(sampler.ConfigError, match=LINE):
        list(accelerator.prepare(DataLoader(records, batch_size=None, **workers)))
    served.stop()


def test_a_prepared_loader_is_not_attached(attach, accelerator):
    prepared = accelerator.prepare(DataLoader(numbers(), batch_size=BATCH))
    with pytest.raises(sampler.ConfigError, match=r"whose own __iter__ would be lost.*accelerator\.prepare\(model"):
        attach(prepared)
