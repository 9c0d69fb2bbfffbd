"""A small problem to train on, the same in every test."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

N = 60
BATCH = 8
STEPS = 8  # of an epoch, the last one of 4
DIM = 16


def make_loader(**changes: Any) -> DataLoader:
    """(id, x, label) of N examples of three classes."""
    x = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(torch.arange(N), x, torch.arange(N) % 3)
    return DataLoader(dataset, **{"batch_size": BATCH, "shuffle": True, **changes})


def make_model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 3)
