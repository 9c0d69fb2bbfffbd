"""Gradients of single examples' losses, by layer, from one ordinary backward pass.

A linear layer's are outer products of its input and of the gradient of its output, and stay factored; a
convolution's are sums of such products over positions, and are formed.

Shapes: n examples, k clusters, p coordinates; i inputs and o outputs of a weight matrix (a convolution's unfolded),
t positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sampler_client import GradientSketcher
from sampler_service.types import Float32

CHUNK = 32
"""examples in one backward pass; unfolded images of more leave the cache, and cost twice the time"""


@dataclass(frozen=True)
class Weight:
    """Gradients (n, o, i) of one weight matrix."""

    input_ni: Tensor
    """mean over positions of the layer's inputs"""
    output_no: Tensor
    """sum over positions of the gradients of its outputs"""
    formed_noi: Tensor | None = None
    """None: the outer products of the other two"""

    @property
    def size(self) -> int:
        return self.input_ni.shape[1] * self.output_no.shape[1]

    def columns(self, index_p: Tensor) -> Tensor:
        """(n, p) some coordinates of all gradients."""
        if self.formed_noi is not None:
            return self.formed_noi.flatten(1)[:, index_p]
        width = self.input_ni.shape[1]
        return self.output_no[:, index_p // width] * self.input_ni[:, index_p % width]

    def squares(self) -> Tensor:
        """(n,) squared norms."""
        if self.formed_noi is not None:
            return self.formed_noi.square().sum((1, 2))
        return self.input_ni.square().sum(1) * self.output_no.square().sum(1)

    def products(self, input_ki: Tensor, output_ko: Tensor) -> Tensor:
        """(n, k) inner products with rank-one matrices d_k c_k^T."""
        if self.formed_noi is not None:
            return torch.einsum("nok,ko->nk", self.formed_noi @ input_ki.T, output_ko)
        return (self.input_ni @ input_ki.T) * (self.output_no @ output_ko.T)


@dataclass(frozen=True)
class Gradients:
    """Gradients of n examples with respect to all parameters: those of weight matrices first."""

    weights: list[Weight]
    others: list[Tensor]
    """(n, p) of biases, and of a normalisation's scales and shifts"""
    loss_n: Tensor

    def columns(self, index_p: Tensor) -> Tensor:
        """(n, p) the coordinates at ascending places of the whole gradient."""
        parts, start = [], 0
        for part in (*self.weights, *self.others):
            size = part.size if isinstance(part, Weight) else part.shape[1]
            here_p = index_p[(index_p >= start) & (index_p < start + size)] - start
            parts.append(part.columns(here_p) if isinstance(part, Weight) else part[:, here_p])
            start += size
        return torch.cat(parts, 1)


def gradients(model: nn.Module, inputs: Tensor, labels: Tensor) -> Gradients:
    """Those of every example's cross-entropy, of all parameters of `model`.

    Raises:
        TypeError: it has a layer whose gradients are not known here, or one that is called twice.
    """
    layers = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    for layer in layers:
        if not isinstance(layer, (nn.Linear, nn.Conv2d, nn.GroupNorm)):
            raise TypeError(f"no per-example gradients for {type(layer).__name__}: use Linear, Conv2d or GroupNorm")
    called: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(module: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
        if module in called:
            raise TypeError(f"{module} is called twice: its per-example gradients are not known here")
        called[module] = given[0].detach(), output

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(note).remove)
        loss_n = F.cross_entropy(model(inputs), labels, reduction="none")
    deltas = torch.autograd.grad(loss_n.sum(), [output for _, output in called.values()])
    weights, others = [], []
    for (layer, (given, _)), delta in zip(called.items(), deltas, strict=True):
        if isinstance(layer, nn.GroupNorm):
            scaled = F.group_norm(given, layer.num_groups, eps=layer.eps) * delta
            others += [scaled.flatten(2).sum(2), delta.flatten(2).sum(2)]
            continue
        weights.append(_weight(layer, given, delta))
        if layer.bias is not None:
            others.append(weights[-1].output_no)
    return Gradients(weights, others, loss_n.detach())


def _weight(layer: nn.Module, given: Tensor, delta: Tensor) -> Weight:
    if isinstance(layer, nn.Linear):
        return Weight(given, delta)
    assert isinstance(layer, nn.Conv2d) and layer.groups == 1, "a convolution without groups"
    input_nit = F.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # pyright: ignore
    output_not = delta.flatten(2)
    return Weight(input_nit.mean(2), output_not.sum(2), output_not @ input_nit.transpose(1, 2))


def in_chunks(model: nn.Module, inputs: Tensor, labels: Tensor) -> Iterator[Gradients]:
    for some_inputs, some_labels in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True):
        yield gradients(model, some_inputs, some_labels)


def rows(model: nn.Module, inputs: Tensor, labels: Tensor, index_p: Tensor) -> tuple[Float32, float]:
    """(n, p) those coordinates of all examples' gradients, and the mean loss."""
    parts = [(part.columns(index_p), part.loss_n) for part in in_chunks(model, inputs, labels)]
    row_np, loss_n = (torch.cat(column) for column in zip(*parts, strict=True))
    return row_np.numpy(), float(loss_n.mean())


def weights(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[Weight]:
    """Of all examples, for `gluster`; a convolution's gradients take n times its parameters' memory."""
    chunks = [part.weights for part in in_chunks(model, inputs, labels)]
    return [_joined(parts) for parts in zip(*chunks, strict=True)]


def _joined(parts: Sequence[Weight]) -> Weight:
    formed = [part.formed_noi for part in parts if part.formed_noi is not None]
    return Weight(
        torch.cat([part.input_ni for part in parts]),
        torch.cat([part.output_no for part in parts]),
        torch.cat(formed) if formed else None,
    )


def sketches(model: nn.Module, inputs: Tensor, labels: Tensor, *, dim: int, seed: int) -> tuple[Float32, Float32]:
    """(n, dim) sketches and (n,) norms as a trainer reports them, of the layers that its sketcher chooses."""
    parts = []
    with GradientSketcher(model, dim, seed=seed, dtype=np.float32, reduction="sum") as sketcher:
        for some_inputs, some_labels in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True):
            F.cross_entropy(model(some_inputs), some_labels, reduction="sum").backward()
            parts.append(sketcher.take())
    model.zero_grad()
    return np.concatenate([part.sketches for part in parts]), np.concatenate([part.norms for part in parts])


def coordinates(model: nn.Module, most: int, seed: int) -> Tensor:
    """Ascending places of at most so many coordinates of the gradient, chosen at random."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:most].sort().values
