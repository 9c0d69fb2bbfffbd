"""Sketches the slow way: one gradient per example, each projected with matrices written out in full.

Tests get this file as the fixture `reference`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sampler_client.pytorch.projection import gaussian
from sampler_client.pytorch.sketcher import GradientSketcher

Losses = Callable[[nn.Module, Tensor], Tensor]


def losses_of(model: nn.Module, x: Tensor, batch_dim: int = 0) -> Tensor:
    """One loss per example, (b,), with a gradient that depends on every output."""
    out = model(x).float()
    out = out.movedim(batch_dim, 0) if out.ndim > 2 else out
    return (out.flatten(1).sin() * torch.linspace(0.5, 2, out[0].numel())).sum(1)


def one_by_one(
    sketcher: GradientSketcher,
    model: nn.Module,
    x: Tensor,
    *,
    seed: int = 0,
    losses: Losses = losses_of,
    batch_dim: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Sketches (b, d) and norms (b,) over the sketched layers of `model`, which must not be wrapped."""
    kept = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    sketches, norms = [], []
    with sketcher.paused():
        for i in range(x.shape[batch_dim]):
            model.zero_grad()
            losses(model, x.narrow(batch_dim, i, 1)).sum().backward()
            sketch, square = projected_gradient(sketcher, model, seed)
            sketches.append(sketch)
            norms.append(square**0.5)
    for name, p in model.named_parameters():
        p.grad = kept[name]
    return torch.stack(sketches).numpy(), np.array(norms)


def projected_gradient(sketcher: GradientSketcher, model: nn.Module, seed: int) -> tuple[Tensor, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    total, square, seen = torch.zeros(sketcher.dim, dtype=torch.float64), 0.0, set()
    for layer in sketcher._layers:
        for role, p in layer.module.named_parameters(recurse=False):
            if p.grad is None or id(p) in seen:
                continue
            seen.add(id(p))
            weight = names[id(layer.module.weight)]
            matrix = _matrix(layer, role, names[id(p)], weight, seed, sketcher.dim)
            total += (p.grad.double()[..., None] * matrix.view(*p.shape, -1)).flatten(0, -2).sum(0)
            square += p.grad.double().square().sum().item()
    return total, square


def _matrix(layer: object, role: str, name: str, weight: str, seed: int, d: int) -> Tensor:
    """What takes this parameter's gradient to the sketch, of shape (*parameter.shape, d)."""
    module = layer.module  # type: ignore[attr-defined]
    outputs, inputs = len(module.weight), module.weight[0].numel()

    def draw(parameter: str, part: str, *shape: int) -> Tensor:
        return gaussian(seed, parameter, part, shape).double()

    if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
        return draw(name, "entries", module.weight.numel(), d) / d**0.5
    if getattr(layer, "compressed", False):
        width = 8
        right = draw(weight, "compressed", width * outputs, d).view(width, outputs, d) / (width * d) ** 0.5
        left = draw(name, "columns", inputs, width) if role == "weight" else draw(name, "one", width)[None]
        return torch.einsum("iw,wod->oid", left, right)
    if isinstance(module, nn.Embedding):
        return torch.einsum("od,id->oid", draw(weight, "rows", outputs, d), draw(name, "columns", inputs, d)) / d**0.5
    left = draw(name, "columns", inputs, d) if role == "weight" else draw(name, "one", d)[None]
    return torch.einsum("od,id->oid", draw(weight, "rows", outputs, d), left) / d**0.5


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < tolerance, f"relative error {error:.2g}"


@pytest.fixture
def reference() -> ModuleType:
    return sys.modules[__name__]
