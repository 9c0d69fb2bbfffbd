"""A small task whose examples are numbers, so that what a framework trained on can be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_client.batch import Batch
from tests.served import ServedService

N = 50
BATCH = 8
STEPS = 7  # of an epoch, the last one of 2
SKETCH_DIM = 8


def numbers() -> TensorDataset:
    return TensorDataset(torch.arange(N, dtype=torch.float32)[:, None])


def losses_of(model: nn.Module, x: Tensor) -> Tensor:
    """(b,)."""
    return model(x / N).square().sum(1)


Seen = list[tuple[int, int]]


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """(epoch, example) of all that was reported, in order."""
    seen: Seen = []
    report = Batch.report

    def watched(batch: Batch, *arguments) -> None:
        seen.extend((batch.epoch, int(example)) for example in batch.example_ids)
        report(batch, *arguments)

    monkeypatch.setattr(Batch, "report", watched)
    return seen


@pytest.fixture
def attach(served: ServedService) -> Callable[..., sampler.SampledLoader]:
    """Attaches a DataLoader to a run of shuffled epochs, so that what comes in which epoch is known."""

    def made(loader: DataLoader | None = None, **options) -> sampler.SampledLoader:
        plain = DataLoader(numbers(), batch_size=BATCH) if loader is None else loader
        return sampler.attach(plain, served.address, run="r", policy="shuffle", sketch_dim=SKETCH_DIM, **options)

    return made


def assert_each_once(seen: Seen, epochs: int) -> None:
    """Every example came once in each of so many epochs, one epoch after the other."""
    assert Counter(seen) == Counter((epoch, example) for epoch in range(epochs) for example in range(N))
    order = [epoch for epoch, _ in seen]
    assert order == sorted(order)
