"""How a sketch leaves the backward pass: as the gradient of a tensor of zeros.

Every sketched layer passes its output through a *tap*, an identity whose backward also returns, as the gradient of
a shared tensor z of zeros, that layer's entry (b, d + 1): d sketch numbers and the squared gradient norm. Autograd
adds the entries of all layers, and z's own backward writes the sum into the `Ledger`. Nothing here is a module
backward hook, so `torch.compile(fullgraph=True)`, activation checkpointing and DDP see ordinary operators.

Shapes: b examples, d sketch length; width = d + 1.
"""

from __future__ import annotations

from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Ledger:
    """What the taps of one sketcher have written since the last `take`."""

    def __init__(self, width: int, anchor: Tensor, batch_dim: int) -> None:
        self.width = width
        self.anchor = anchor  # a leaf, so that autograd walks back to z at all
        self.batch_dim = batch_dim
        self.enabled = True
        self.batch_size: int | None = None  # of the current forward pass, where the model's inputs tell
        self.zeros: Tensor | None = None  # z of the current forward pass, made by its first sketched layer
        self.sums: list[Tensor] = []  # what backward passes brought, (b, width); two when b changed
        self.odd_shapes: dict[str, str] = {}  # layers met without the batch dimension, and their shape
        self.norm_forms: dict[str, str] = {}  # layers met in eager mode, and how their norm is found
        self.key = next(_KEYS)
        _LEDGERS[self.key] = self

    def begin(self, batch_size: int | None) -> None:
        """A forward pass of the model starts. No tensor is made yet: the compiler may see this as code of its own."""
        self.batch_size, self.zeros = batch_size, None

    def _open(self, batch_size: int) -> Tensor:
        """A new z."""
        if torch.compiler.is_compiling():
            return torch.ops.sampler_client.open_ledger(self.anchor, batch_size, self.width, self.key)
        z = self.anchor.new_zeros((batch_size, self.width), requires_grad=True)
        z.register_post_accumulate_grad_hook(self._turn)
        return z

    def listens(self, y: Tensor) -> bool:
        """Whether a backward pass can come through y: no evaluation, no first pass of a reentrant checkpoint."""
        return self.enabled and torch.is_grad_enabled() and y.requires_grad

    def page(self, name: str, y: Tensor, norm_form: str) -> tuple[Tensor, int] | None:
        """z for a layer's output y and the dimension of y that is the batch, or None where there is none."""
        if self.zeros is None:
            shown = y.shape[self.batch_dim if y.ndim > 2 else 0]  # all there is when only a part of the model is called
            self.zeros = self._open(shown if self.batch_size is None else self.batch_size)
        z = self.zeros
        for dim in (self.batch_dim, 0):
            if dim < y.ndim - 1 and y.shape[dim] == z.shape[0]:
                if not torch.compiler.is_compiling():  # a change of state would cost a recompilation
                    self.norm_forms[name] = norm_form
                return z, dim
        if name not in self.odd_shapes:
            self.odd_shapes[name] = f"{tuple(y.shape)} in a batch of {z.shape[0]}"
        return None

    def _turn(self, z: Tensor) -> None:
        if z.grad is not None:
            self.write(z.grad)
            z.grad = None  # a second backward pass through z begins anew

    def write(self, entries: Tensor) -> None:
        if self.sums and self.sums[-1].shape == entries.shape:
            self.sums[-1] = self.sums[-1] + entries
        else:
            self.sums.append(entries)

    def clear(self) -> None:
        self.begin(None)
        self.sums, self.anchor.grad = [], None


_KEYS = count()
_LEDGERS: WeakValueDictionary[int, Ledger] = WeakValueDictionary()


# z inside compiled code. Custom operators, because the compiler must neither look into the ledger nor drop the write.
@torch.library.custom_op("sampler_client::open_ledger", mutates_args=())
def _open_ledger(anchor: Tensor, batch_size: int, width: int, key: int) -> Tensor:  # noqa: ARG001
    return anchor.new_zeros((batch_size, width))


@torch.library.custom_op("sampler_client::write_ledger", mutates_args=())
def _write_ledger(entries: Tensor, key: int) -> Tensor:
    ledger = _LEDGERS.get(key)
    if ledger is not None:
        ledger.write(entries.clone())  # compiled code may reuse the memory of `entries`
    return entries.new_zeros(())


@_open_ledger.register_fake
def _(anchor: Tensor, batch_size: int, width: int, key: int) -> Tensor:  # noqa: ARG001
    return anchor.new_empty((batch_size, width))


@_write_ledger.register_fake
def _(entries: Tensor, key: int) -> Tensor:  # noqa: ARG001
    return entries.new_empty(())


def _remember_key(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.key = inputs[3]


def _write(ctx: Any, entries: Tensor) -> tuple[Tensor, None, None, None]:
    return torch.ops.sampler_client.write_ledger(entries, ctx.key), None, None, None


_open_ledger.register_autograd(_write, setup_context=_remember_key)
