"""Every kind of layer against one-by-one gradients, projected with matrices written out in full."""

from __future__ import annotations

import logging
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sampler_client.errors import ConfigError
from sampler_client.pytorch.sketcher import GradientSketcher

B = 5


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=3)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(ids)).tanh())


class Recurrent(nn.Module):
    """One layer called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.cell(x).tanh()
        return x


def frozen(module: nn.Module, parameter: str) -> nn.Module:
    getattr(module, parameter).requires_grad_(False)
    return module


def ids(*shape: int) -> Tensor:
    return torch.randint(7, shape)


def cases() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    image = torch.randn(B, 6, 7, 8)
    return {
        "linear": (nn.Linear(6, 4), torch.randn(B, 6)),
        "linear without bias": (nn.Linear(6, 4, bias=False), torch.randn(B, 6)),
        "linear with frozen weight": (frozen(nn.Linear(6, 4), "weight"), torch.randn(B, 6)),
        "linear with frozen bias": (frozen(nn.Linear(6, 4), "bias"), torch.randn(B, 6)),
        "sequence": (nn.Linear(6, 4), torch.randn(B, 9, 6)),
        "sequence, frozen weight": (frozen(nn.Linear(6, 4), "weight"), torch.randn(B, 9, 6)),
        "short sequence": (nn.Linear(60, 40), torch.randn(B, 2, 60)),
        "sequence of one": (nn.Linear(6, 4), torch.randn(B, 1, 6)),
        "grid": (nn.Linear(6, 4), torch.randn(B, 3, 2, 6)),
        "mlp, in-place relu": (
            nn.Sequential(
                nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)
            ),
            torch.randn(B, 6),
        ),
        "conv": (nn.Conv2d(6, 4, 3), image),
        "conv, all settings": (nn.Conv2d(6, 4, (3, 2), stride=2, padding=(2, 1), dilation=2, groups=2), image),
        "conv, depthwise": (nn.Conv2d(6, 12, 3, groups=6, bias=False), image),
        "conv, same padding": (nn.Conv2d(6, 4, (3, 5), padding="same"), image),
        "conv, reflected": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), image),
        "conv, frozen weight": (frozen(nn.Conv2d(6, 4, 3), "weight"), image),
        "conv, channels last": (nn.Conv2d(6, 4, 3).to(memory_format=torch.channels_last), image),
        "conv 1d": (nn.Conv1d(6, 4, 3, padding=1), torch.randn(B, 6, 9)),
        "conv 3d": (nn.Conv3d(2, 4, 2), torch.randn(B, 2, 3, 4, 3)),
        "cnn, in-place relu": (
            nn.Sequential(
                nn.Conv2d(6, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.ReLU(True)
            ),
            image,
        ),
        "embedding": (nn.Embedding(7, 6), ids(B)),
        "embedding of sequences": (nn.Embedding(7, 6, padding_idx=2), ids(B, 9)),
        "layer norm": (nn.LayerNorm(6), torch.randn(B, 9, 6)),
        "layer norm over two dimensions": (nn.LayerNorm((9, 6)), torch.randn(B, 9, 6)),
        "layer norm with frozen scale": (frozen(nn.LayerNorm(6), "weight"), torch.randn(B, 6)),
        "rms norm": (nn.RMSNorm(6), torch.randn(B, 9, 6)),
        "group norm": (nn.GroupNorm(2, 6), image),
        "evaluated batch norm": (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8).eval()), torch.randn(B, 6)),
    }


@pytest.mark.parametrize("norms", ["exact", "auto"])
@pytest.mark.parametrize("name", cases())
def test_sketches_and_norms_are_those_of_one_by_one_gradients(name: str, norms: str, reference: ModuleType):
    model, x = cases()[name]
    weight = torch.linspace(0.5, 1.5, B)
    with GradientSketcher(model, 16, layers="all", norms=norms, dtype=np.float32) as sketcher:
        (weight * reference.losses_of(model, x)).mean().backward()
        taken = sketcher.take(weight / B)
        sketches, exact = reference.one_by_one(sketcher, model, x)
        assert taken.usable.all()
        reference.assert_close(taken.sketches, sketches)
        if norms == "exact" or "sketch" not in sketcher.norm_forms.values():
            reference.assert_close(taken.norms, exact)
        assert sketcher.audit() < 1e-5


@pytest.mark.parametrize("name", [name for name in cases() if name.startswith(("conv", "cnn"))])
def test_convolutions_by_khatri_rao_are_exact_too(name: str, reference: ModuleType):
    model, x = cases()[name]
    with GradientSketcher(model, 16, layers="all", norms="exact", dtype=np.float32, cost_budget=1e9) as sketcher:
        reference.losses_of(model, x).sum().backward()
        taken = sketcher.take(np.ones(B))
        sketches, exact = reference.one_by_one(sketcher, model, x)
        reference.assert_close(taken.sketches, sketches)
        reference.assert_close(taken.norms, exact)


@pytest.mark.parametrize(("build", "x"), [(Tied, ids(B, 9)), (Recurrent, torch.randn(B, 6))])
def test_tied_weights_and_repeated_layers_add_up(build: type[nn.Module], x: Tensor, reference: ModuleType):
    torch.manual_seed(0)
    model = build()
    with GradientSketcher(model, 16, norms="sketch", dtype=np.float32) as sketcher:
        reference.losses_of(model, x).sum().backward()
        taken = sketcher.take(np.ones(B))
        reference.assert_close(taken.sketches, reference.one_by_one(sketcher, model, x)[0])
        reference.assert_close(taken.norms, np.linalg.norm(taken.sketches, axis=1))
        assert sketcher.audit() < 1e-5


def test_time_may_come_before_the_batch(reference: ModuleType):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    x = ids(9, B)

    def losses(model: nn.Module, x: Tensor) -> Tensor:
        return reference.losses_of(model, x, batch_dim=1)

    with GradientSketcher(model, 16, batch_dim=1, norms="exact", dtype=np.float32) as sketcher:
        losses(model, x).sum().backward()
        taken = sketcher.take(np.ones(B))
        sketches, norms = reference.one_by_one(sketcher, model, x, losses=losses, batch_dim=1)
        reference.assert_close(taken.sketches, sketches)
        reference.assert_close(taken.norms, norms)


def test_frozen_layers_are_not_sketched():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    model[0].requires_grad_(False)
    with GradientSketcher(model) as sketcher:
        assert sketcher.layers == ["1"]
        assert sketcher.skipped == {}


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(6)
        self.up = nn.ConvTranspose1d(6, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(x * self.scale)[0]
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.up(self.norm(x.mT)).mT)


def test_layers_that_cannot_be_sketched_are_named_once(caplog: pytest.LogCaptureFixture, reference: ModuleType):
    model = Odd()
    with caplog.at_level(logging.INFO, logger="sampler_client"), GradientSketcher(model) as sketcher:
        for _ in range(3):
            reference.losses_of(model, torch.randn(B, 4, 6)).mean().backward()
            sketcher.take()
    assert sketcher.layers == ["head"]
    assert set(sketcher.skipped) == {"scale", "lstm", "attention", "attention.out_proj", "norm", "up"}
    assert len(caplog.records) == 1
    assert all(name in caplog.text for name in sketcher.skipped)


class Positions(nn.Module):
    """Position embeddings are added to every example: their gradient has no examples in it."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Embedding(9, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.position(torch.arange(x.shape[1])))


def test_a_layer_without_a_batch_dimension_is_named_and_left_out(
    caplog: pytest.LogCaptureFixture, reference: ModuleType
):
    model, x = Positions(), torch.randn(B, 9, 6)
    with GradientSketcher(model, 16, dtype=np.float32) as sketcher:
        for _ in range(2):
            reference.losses_of(model, x).mean().backward()
            taken = sketcher.take()
        assert list(sketcher.skipped) == ["position"]
        assert len(caplog.records) == 1
        with GradientSketcher(model, 16, layers=["head"], dtype=np.float32) as alone:
            reference.losses_of(model, x).mean().backward()
            reference.assert_close(taken.sketches, alone.take().sketches)


def test_the_default_leaves_out_convolutions_that_are_dear_to_sketch():
    narrow, wide, very_wide = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 64, 3), nn.Conv2d(64, 512, 3)
    model = nn.Sequential(narrow, wide, very_wide, nn.GroupNorm(8, 512), nn.Flatten(), nn.Linear(512, 3))
    with GradientSketcher(model) as sketcher:
        assert sketcher.layers == ["1", "2", "5"]
        assert set(sketcher.skipped) == {"0", "3"}
    with GradientSketcher(model, layers="all") as sketcher:
        assert sketcher.layers == ["0", "1", "2", "3", "5"]
    with GradientSketcher(model, layers=lambda name, _: name == "0") as sketcher:
        assert sketcher.layers == ["0"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"dim": 0},
        {"norms": "some"},
        {"reduction": "none"},
        {"batch_dim": 2},
        {"layers": "last"},
        {"layers": ["nowhere"]},
        {"layers": []},
    ],
)
def test_wrong_arguments_are_refused(arguments: dict):
    with pytest.raises(ConfigError):
        GradientSketcher(nn.Linear(3, 3), **arguments)
