"""Which factors of its gradient each kind of layer offers, and the same sketch taken from `.grad` for the audit.

A layer here is a forward hook. It projects the layer's input, then sends the output through a tap.

Shapes: b examples, t positions, i input features, o output features, n affine parameters, d sketch length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sampler_client.pytorch.probe import Ledger
from sampler_client.pytorch.projection import gaussian
from sampler_client.pytorch.taps import (
    AffineTap,
    KhatriRaoTap,
    VectorTap,
    affine_positions,
    by_position,
    full_precision,
    squared_length,
)


class Layer(ABC):
    """A sketched layer: its random matrices, its forward hook, and its term of the audit."""

    def __init__(self, name: str, module: nn.Module, ledger: Ledger) -> None:
        self.name, self.module, self.ledger = name, module, ledger
        self.matrices: tuple[Tensor, ...] = ()

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor | None:
        """Forward hook; returns the tapped output, or None to leave the output alone."""
        if not self.ledger.listens(y):
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        page = self.ledger.page(self.name, y, self.norm_form(x))
        if page is None:
            return None
        if self.matrices[0].device != y.device:
            self.matrices = tuple(matrix.to(y.device) for matrix in self.matrices)
        with full_precision(y.device):  # no_grad() is not needed: neither x.detach() nor a matrix requires gradients
            factors = self.factors(x.detach(), page[1])
        return self.tap(y, page[0], factors)

    @abstractmethod
    def factors(self, x: Tensor, batch_dim: int) -> tuple[Any, ...]:
        """What the tap needs of the layer's input; computed without autograd, in float32."""

    @abstractmethod
    def tap(self, y: Tensor, z: Tensor, factors: tuple[Any, ...]) -> Tensor:
        """y, through a tap that writes this layer's entry into z's gradient."""

    @abstractmethod
    def norm_form(self, x: Tensor) -> str:
        """How the squared norm of this layer's gradient is found for such an input; "sketch" is an estimate."""

    @abstractmethod
    def gradient_sketches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every covered parameter with the sketch (d,) of its `.grad`, by the same matrices."""

    def trains(self, parameter: str) -> bool:
        value = getattr(self.module, parameter, None)
        return value is not None and value.requires_grad

    def gradient(self, parameter: str) -> Tensor:
        value = getattr(self.module, parameter)
        found = torch.zeros_like(value) if value.grad is None else value.grad
        return found.float().to(self.matrices[0].device)


class KhatriRaoLayer(Layer):
    """What Linear and Embedding share: weight (rows, columns), matrices p for the inputs and q for the outputs."""

    vector_ndim: int
    """Dimensions of an input with one position per example."""

    def __init__(self, name: str, module: nn.Module, ledger: Ledger, *, norms: str, norm_budget: float) -> None:
        super().__init__(name, module, ledger)
        self.norms, self.norm_budget = norms, norm_budget

    def norm_form(self, x: Tensor) -> str:
        if x.ndim == self.vector_ndim:
            return "lengths"
        inputs, outputs, positions = self.widths(x)
        if self.norms == "exact":
            return "gram" if positions * (inputs + outputs) <= inputs * outputs else "outer"
        # Flops of both Gram matrices over those of the layer's own training step, 6 t i o.
        share = positions * (inputs + outputs) / (3 * inputs * outputs)
        return "gram" if self.norms == "auto" and share <= self.norm_budget else "sketch"

    @abstractmethod
    def widths(self, x: Tensor) -> tuple[int, int, int]:
        """Input features, output features and positions per example of a sequence."""

    def tap(self, y: Tensor, z: Tensor, factors: tuple[Any, ...]) -> Tensor:
        tap = VectorTap if y.ndim == 2 else KhatriRaoTap
        return tap.apply(y, z, *factors)  # pyright: ignore[reportReturnType]


class LinearLayer(KhatriRaoLayer):
    """nn.Linear over the last dimension, its bias as one more input that is always 1."""

    module: nn.Linear
    vector_ndim = 2

    def __init__(self, name: str, module: nn.Linear, ledger: Ledger, names: dict[str, str], **options: Any) -> None:
        super().__init__(name, module, ledger, norms=options["norms"], norm_budget=options["norm_budget"])
        seed, d = options["seed"], options["dim"]
        outputs, inputs = module.weight.shape
        p = gaussian(seed, names["weight"], "columns", (inputs, d)) if self.trains("weight") else torch.zeros(inputs, d)
        bias = gaussian(seed, names["bias"], "one", (d,)) if self.trains("bias") else torch.zeros(d)
        q = gaussian(seed, names["weight"], "rows", (outputs, d), std=d**-0.5)
        self.matrices = (p, bias, q)
        self._weight_trains, self._bias_trains = self.trains("weight"), self.trains("bias")

    def widths(self, x: Tensor) -> tuple[int, int, int]:
        outputs, inputs = self.module.weight.shape
        return inputs, outputs, x.numel() // inputs // x.shape[self.ledger.batch_dim]

    def factors(self, x: Tensor, batch_dim: int) -> tuple[Any, ...]:
        p, bias, q = self.matrices
        if x.ndim == 2:
            return torch.addmm(bias, x.float(), p), self._squared_length(x.float()), q
        a = by_position(x, batch_dim)
        u = torch.addmm(bias, a.flatten(0, 1), p).unflatten(0, a.shape[:2])
        norm = self.norm_form(x)
        return u, self._known(a, norm), q, batch_dim, norm

    def _known(self, a: Tensor, norm: str) -> Tensor:
        if not self.trains("weight"):
            a = a[..., :0]
        if norm == "gram":
            return torch.bmm(a, a.mT) + float(self.trains("bias"))
        if norm == "outer":
            return F.pad(a, (0, 1), value=1.0) if self.trains("bias") else a
        return a.new_empty(0)

    def _squared_length(self, a: Tensor) -> Tensor:
        """|[a; 1]|^2 (b,), of the parts that meet trainable parameters."""
        if not self._weight_trains:
            return a.new_full((len(a),), float(self._bias_trains))
        return squared_length(a, float(self._bias_trains))

    def gradient_sketches(self) -> Iterator[tuple[Tensor, Tensor]]:
        p, bias, q = self.matrices
        if self.trains("weight"):
            yield self.module.weight, ((self.gradient("weight") @ p) * q).sum(0)
        if self.trains("bias"):
            yield self.module.bias, (self.gradient("bias") @ q) * bias


class EmbeddingLayer(KhatriRaoLayer):
    """nn.Embedding: a one-hot input, so P a is a row of a table of num_embeddings x d float32."""

    module: nn.Embedding
    vector_ndim = 1

    def __init__(self, name: str, module: nn.Embedding, ledger: Ledger, names: dict[str, str], **options: Any) -> None:
        super().__init__(name, module, ledger, norms=options["norms"], norm_budget=options["norm_budget"])
        seed, d = options["seed"], options["dim"]
        rows, columns = module.weight.shape
        p = gaussian(seed, names["weight"], "rows", (rows, d), std=d**-0.5)
        self.matrices = (p, gaussian(seed, names["weight"], "columns", (columns, d)))

    def widths(self, x: Tensor) -> tuple[int, int, int]:
        # No product forms the output, so no Gram matrix is cheap beside it.
        return 1, self.module.embedding_dim, x.numel() // x.shape[self.ledger.batch_dim]

    def norm_form(self, x: Tensor) -> str:
        form = super().norm_form(x)
        return "gram" if form == "outer" else form

    def factors(self, x: Tensor, batch_dim: int) -> tuple[Any, ...]:
        p, q = self.matrices
        padding = self.module.padding_idx
        # The padding's row has no gradient.
        live = torch.ones_like(x, dtype=torch.bool) if padding is None else x != padding
        if x.ndim == 1:
            return p[x] * live.unsqueeze(1), live.float(), q
        index, live = (ids.movedim(batch_dim, 0).flatten(1) for ids in (x, live))
        u = p[index] * live.unsqueeze(2)
        norm = self.norm_form(x)
        known = u.new_empty(0)
        if norm == "gram":
            known = ((index.unsqueeze(2) == index.unsqueeze(1)) & live.unsqueeze(2)).float()
        return u, known, q, batch_dim, norm

    def gradient_sketches(self) -> Iterator[tuple[Tensor, Tensor]]:
        p, q = self.matrices
        yield self.module.weight, ((self.gradient("weight") @ q) * p).sum(0)


class AffineLayer(Layer):
    """Scale and shift of LayerNorm, RMSNorm and GroupNorm, projected densely; its norm is always exact."""

    module: nn.LayerNorm | nn.RMSNorm | nn.GroupNorm

    def __init__(self, name: str, module: nn.Module, ledger: Ledger, names: dict[str, str], **options: Any) -> None:
        super().__init__(name, module, ledger)
        seed, d = options["seed"], options["dim"]
        self.size = self.module.weight.numel()
        self.covered = tuple(role for role in ("weight", "bias") if self.trains(role))
        matrices = [gaussian(seed, names[role], "entries", (self.size, d), std=d**-0.5) for role in self.covered]
        self.matrices = (torch.cat(matrices),)
        self.layout = "channels" if isinstance(module, nn.GroupNorm) else "last"

    def norm_form(self, x: Tensor) -> str:  # noqa: ARG002
        return "exact"

    def factors(self, x: Tensor, batch_dim: int) -> tuple[Any, ...]:
        a = affine_positions(self._normalised(x.float()), self.size, self.layout, batch_dim)
        return a, *self.matrices, (self.layout, batch_dim), "+".join(self.covered)

    def tap(self, y: Tensor, z: Tensor, factors: tuple[Any, ...]) -> Tensor:
        return AffineTap.apply(y, z, *factors)  # pyright: ignore[reportReturnType]

    def _normalised(self, x: Tensor) -> Tensor:
        module = self.module
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(x, module.num_groups, eps=module.eps)
        if isinstance(module, nn.RMSNorm):
            return F.rms_norm(x, list(module.normalized_shape), eps=module.eps)
        return F.layer_norm(x, list(module.normalized_shape), eps=module.eps)

    def gradient_sketches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for role, matrix in zip(self.covered, self.matrices[0].split(self.size), strict=True):
            yield getattr(self.module, role), self.gradient(role).flatten() @ matrix
