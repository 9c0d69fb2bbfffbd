"""The taps: identities on a layer's output whose backward also returns the layer's entry for z (see `probe`).

A weight's gradient from example i is sum_t g_t a_t^T, with a_t the layer's input and g_t the gradient of its output
at position t. A tap holds u_t = P a_t, projected in the forward pass, and meets g_t in the backward pass.

Shapes: b examples, t positions, i input features, o output features, c channels, d sketch length, p inner width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sampler_client.pytorch.projection import project


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off: sketches of many steps are compared with one another, so all are computed in float32."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def by_position(features: Tensor, batch_dim: int) -> Tensor:
    """(..., n) with the batch at `batch_dim` -> (b, t, n) float32."""
    return features.float().movedim(batch_dim, 0).flatten(1, -2)


def squared_length(rows: Tensor, more: float = 0.0) -> Tensor:
    """(b, n) -> |row|^2 + more (b,), without a temporary as large as the rows."""
    length = torch.linalg.vector_norm(rows, dim=1)
    return torch.addcmul(length.new_full((), more), length, length) if more else length * length


def entry(sketch: Tensor, squared_norm: Tensor) -> Tensor:
    """The gradient of z, (b, d + 1)."""
    return torch.cat([sketch, squared_norm.unsqueeze(1)], 1)


class VectorTap(torch.autograd.Function):
    """(P a) o (Q g) for one position per example: u (b, d), q (d, o)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, _z: Tensor, u: Tensor, known: Tensor, q: Tensor):
        """`known` (b,) is the squared length of the input, so that the norm is exact: |g a^T| = |g| |a|."""
        ctx.save_for_backward(u, known, q)
        ctx.mark_dirty(y)  # an in-place operator may follow, and autograd forbids that on a view
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        u, known, q = ctx.saved_tensors
        with full_precision(u.device):
            g = grads[0].float()
            written = entry(u * project(g, q), known * squared_length(g))
        return grads[0], written, None, None, None


class KhatriRaoTap(torch.autograd.Function):
    """sum_t (P a_t) o (Q g_t) for features in the last dimension: u (b, t, d), q (d, o)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, _z: Tensor, u: Tensor, known: Tensor, q: Tensor, batch_dim: int, norm: str):
        """`known` is what the norm needs of the inputs: "gram" (b, t, t), or for "outer" the inputs (b, t, i)."""
        ctx.save_for_backward(u, known, q)
        ctx.batch_dim, ctx.norm = batch_dim, norm
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        u, known, q = ctx.saved_tensors
        with full_precision(u.device):
            g = by_position(grads[0], ctx.batch_dim)
            sketch = (u * project(g, q)).sum(1)
            if ctx.norm == "gram":
                squared = (known * torch.bmm(g, g.mT)).sum((1, 2))
            elif ctx.norm == "outer":
                squared = torch.stack([(g_i.mT @ a_i).square().sum() for g_i, a_i in zip(g, known, strict=True)])
            else:
                squared = sketch.square().sum(1)
        return grads[0], entry(sketch, squared), None, None, None, None, None


class ConvKhatriRaoTap(torch.autograd.Function):
    """sum_t (P a_t) o (Q g_t) for channels in dimension 1: u (b, groups d, t), q (c, d)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, _z: Tensor, u: Tensor, q: Tensor, groups: int, norm: str):
        ctx.save_for_backward(u, q)
        ctx.groups, ctx.norm = groups, norm
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        u, q = ctx.saved_tensors
        with full_precision(u.device):
            g = grads[0].float().flatten(2).unflatten(1, (ctx.groups, -1))
            v = q.unflatten(0, (ctx.groups, -1)).mT @ g
            sketch = (u.flatten(2).unflatten(1, (ctx.groups, -1)) * v).sum((1, 3))
            squared = sketch.square().sum(1) * (ctx.norm == "sketch")
        return grads[0], entry(sketch, squared), None, None, None, None


class ConvCompressedTap(torch.autograd.Function):
    """R vec(sum_t (P a_t) g_t^T) for channels in dimension 1: u (b, groups p, t), r (p c, d)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, _z: Tensor, u: Tensor, r: Tensor, groups: int, norm: str):
        ctx.save_for_backward(u, r)
        ctx.groups, ctx.norm = groups, norm
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        u, r = ctx.saved_tensors
        with full_precision(u.device):
            g = grads[0].float().flatten(2).unflatten(1, (ctx.groups, -1)).flatten(0, 1)
            u = u.flatten(2).unflatten(1, (ctx.groups, -1)).flatten(0, 1)
            compressed = torch.bmm(u, g.mT).unflatten(0, (-1, ctx.groups))  # (b, groups, p, c / groups)
            compressed = compressed.transpose(1, 2).flatten(1)
            # P keeps lengths in expectation, so this estimate is sharper than the sketch's own.
            squared = compressed.square().sum(1) * (ctx.norm == "sketch")
            sketch = compressed @ r
        return grads[0], entry(sketch, squared), None, None, None, None


class ConvNormTap(torch.autograd.Function):
    """The exact squared norm of a convolution's gradient, from one weight gradient per example.

    `covered` is as for `AffineTap`.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, _z: Tensor, x: Tensor, weight: Tensor, settings: tuple[Any, ...], covered: str):
        ctx.save_for_backward(x, weight)
        ctx.settings, ctx.covered, ctx.width = settings, covered, _z.shape[1]
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        x, weight = ctx.saved_tensors
        with full_precision(x.device):
            g = grads[0].float()
            squared = g.new_zeros(g.shape[0])
            if "weight" in ctx.covered:
                squared = squared + _conv_weight_squares(x, weight, g, ctx.settings)
            if "bias" in ctx.covered:
                squared = squared + g.flatten(2).sum(2).square().sum(1)
            nothing = squared.new_zeros((g.shape[0], ctx.width - 1))
        return grads[0], entry(nothing, squared), None, None, None, None


def _conv_weight_squares(x: Tensor, weight: Tensor, g: Tensor, settings: tuple[Any, ...]) -> Tensor:
    stride, padding, dilation, groups = settings
    rows: list[Tensor] = []
    for x_i, g_i in zip(x.split(1), g.split(1), strict=True):
        _, of_weight, _ = torch.ops.aten.convolution_backward(
            g_i, x_i, weight, None, stride, padding, dilation, False, [0], groups, [False, True, False]
        )
        rows.append(of_weight.square().sum())
    return torch.stack(rows)


class AffineTap(torch.autograd.Function):
    """M_scale sum_t g_t o a_t + M_shift sum_t g_t: a normalisation's own parameters, projected densely.

    `a` (b, t, n) are the normalised inputs; `covered` is "weight+bias", "weight" or "bias", and `projection` holds
    their matrices one above the other.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, _z: Tensor, a: Tensor, projection: Tensor, positions: tuple[str, int], covered: str
    ):
        """`positions` is the layout and the batch dimension, for `affine_positions`."""
        ctx.save_for_backward(a, projection)
        ctx.positions, ctx.covered = positions, covered
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        a, projection = ctx.saved_tensors
        with full_precision(a.device):
            g = affine_positions(grads[0], a.shape[2], *ctx.positions)
            if ctx.covered == "weight+bias":
                parameters = torch.cat([(g * a).sum(1), g.sum(1)], 1)
            else:
                parameters = (g * a if ctx.covered == "weight" else g).sum(1)
            squared = parameters.square().sum(1)
            sketch = parameters @ projection
        return grads[0], entry(sketch, squared), None, None, None, None


def affine_positions(features: Tensor, n: int, layout: str, batch_dim: int) -> Tensor:
    """Activations of a normalisation layer as (b, t, n) float32, from "channels first" or "last dimensions"."""
    if layout == "channels":
        return features.float().flatten(2).mT
    return features.float().movedim(batch_dim, 0).reshape(features.shape[batch_dim], -1, n)
