"""Convolutions of one, two and three dimensions: never unfolded, because P a_t is itself a convolution of x with P.

Two forms. Khatri-Rao, as for Linear, where d more output channels are cheap. Else *compressed*: P has only p rows,
the compressed gradient sum_t (P a_t) g_t^T of p x c numbers is formed exactly, and a dense Gaussian matrix takes it
to d numbers. Its relative variance is 2/d + (2 rho/p)(1 + 2/d), against 2/d + rho (2/p + 2/q + 2/d) of a Kronecker
product with the same p, because the output side is not compressed at all, and it costs one product less.

Shapes: b examples, t output positions, c output channels, k weights of a channel, d sketch length, p inner width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sampler_client.pytorch.layers import Layer
from sampler_client.pytorch.probe import Ledger
from sampler_client.pytorch.projection import gaussian
from sampler_client.pytorch.taps import ConvCompressedTap, ConvKhatriRaoTap, ConvNormTap

COMPRESSED_WIDTH = 8
"""p of the compressed form. Halving it halves the cost and doubles 2 rho/p, the variance from a few positions."""


class ConvLayer(Layer):
    """nn.Conv1d, nn.Conv2d, nn.Conv3d with any groups, stride, padding, padding mode and dilation."""

    module: nn.Conv1d | nn.Conv2d | nn.Conv3d

    def __init__(self, name: str, module: nn.Module, ledger: Ledger, names: dict[str, str], **options: Any) -> None:
        super().__init__(name, module, ledger)
        self.norms, self.compressed = options["norms"], options["compressed"]
        self.covered = "+".join(role for role in ("weight", "bias") if self.trains(role))
        seed, d = options["seed"], options["dim"]
        width = COMPRESSED_WIDTH if self.compressed else d
        channels, fan_in = len(self.module.weight), self.module.weight[0].numel()
        std = width**-0.5 if self.compressed else 1.0
        p, bias = torch.zeros(width, fan_in), torch.zeros(width)
        if self.trains("weight"):
            p = gaussian(seed, names["weight"], "columns", (fan_in, width), std=std).T.contiguous()
        if self.trains("bias"):
            bias = gaussian(seed, names["bias"], "one", (width,), std=std)
        shape = (width * channels if self.compressed else channels, d)
        q = gaussian(seed, names["weight"], "compressed" if self.compressed else "rows", shape, std=d**-0.5)
        # Every group of channels meets the same P: they are rows of one weight.
        kernel = p.view(width, *self.module.weight.shape[1:]).repeat(
            self.module.groups, *[1] * (self.module.weight.ndim - 1)
        )
        self.matrices = (p, bias, q, kernel, bias.repeat(self.module.groups))

    def norm_form(self, x: Tensor) -> str:  # noqa: ARG002
        return "per example" if self.norms == "exact" else "sketch"

    def factors(self, x: Tensor, batch_dim: int) -> tuple[Any, ...]:  # noqa: ARG002
        _, _, q, kernel, bias = self.matrices
        x = x.float()
        u = self.module._conv_forward(x, kernel, bias)
        return u, q, x if self.norms == "exact" else None

    def tap(self, y: Tensor, z: Tensor, factors: tuple[Any, ...]) -> Tensor:
        u, q, x = factors
        tap = ConvCompressedTap if self.compressed else ConvKhatriRaoTap
        y = tap.apply(y, z, u, q, self.module.groups, self.norm_form(u))  # pyright: ignore[reportAssignmentType]
        if x is None:
            return y
        x, padding = self._padded(x)
        settings = (list(self.module.stride), padding, list(self.module.dilation), self.module.groups)
        weight = self.module.weight.detach().float()
        return ConvNormTap.apply(y, z, x, weight, settings, self.covered)  # pyright: ignore[reportReturnType]

    def _padded(self, x: Tensor) -> tuple[Tensor, list[int]]:
        """x with whatever padding a plain convolution does not do by itself, and the padding that is left."""
        module = self.module
        if module.padding_mode == "zeros" and not isinstance(module.padding, str):
            return x, list(module.padding)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        return F.pad(x, module._reversed_padding_repeated_twice, mode=mode), [0] * len(module.stride)

    def gradient_sketches(self) -> Iterator[tuple[Tensor, Tensor]]:
        p, bias, q, *_ = self.matrices
        if self.trains("weight"):
            compressed = p @ self.gradient("weight").flatten(1).T  # (p, c)
            yield (
                self.module.weight,
                compressed.flatten() @ q if self.compressed else (compressed * q.T).sum(1),
            )
        if self.trains("bias") and self.module.bias is not None:
            compressed = torch.outer(bias, self.gradient("bias"))
            yield self.module.bias, compressed.flatten() @ q if self.compressed else (compressed * q.T).sum(1)
