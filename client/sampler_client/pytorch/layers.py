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

from sampler_client.pytorch.probe import Hook, Ledger
from sampler_client.pytorch.projection import gaussian, project
from sampler_client.pytorch.taps import (
    AffineTap,
    KhatriRaoTap,
    VectorTap,
    affine_positions,
    by_position,
    full_precision,
    squared_length,
)


class Layer(Hook, ABC):
    """A sketched layer: its random matrices, its forward hook, and its term of the audit."""

    may_wait = False
    """Whether outputs with one position per example can do with `add_entry` in the place of a tap."""

    def __init__(self, name: str, module: nn.Module, ledger: Ledger) -> None:
        self.name, self.module, self.ledger = name, module, ledger
        self.matrices: tuple[Tensor, ...] = ()

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor | None:
        """Forward hook; returns the tapped output, or None to leave the output alone."""
        if not self.ledger.listens(y):
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        batch_dim = self.ledger.find_batch(self.name, y.shape)
        if batch_dim is None:
            return None
        compiling = torch.compiler.is_compiling()
        if not compiling:  # a change of state would cost a recompilation
            self.ledger.norm_forms[self.name] = self.norm_form(x)
        if self.matrices[0].device != y.device:
            self.matrices = tuple(matrix.to(y.device) for matrix in self.matrices)
        x = x.detach()
        if self.may_wait and y.ndim == 2 and not compiling:
            # Autograd keeps the same for the weight's gradient; under autocast that is a copy of y's type.
            kept = self.needed(x.to(y.dtype) if x.is_floating_point() else x)
            if self.ledger.late(self.add_entry, kept, y, self.trainable()):
                return None
        with full_precision(y.device):  # no_grad() is not needed: neither x nor a matrix requires gradients
            factors = self.factors(x, batch_dim)
        y = self.tap(y, self.ledger.page(), factors)
        if not compiling:  # compiled code raises by itself when it is differentiated twice
            self.ledger.watch(y)
        return y

    @abstractmethod
    def factors(self, x: Tensor, batch_dim: int) -> tuple[Any, ...]:
        """What the tap needs of the layer's input; computed without autograd, in float32."""

    @abstractmethod
    def tap(self, y: Tensor, z: Tensor, factors: tuple[Any, ...]) -> Tensor:
        """y, through a tap that writes this layer's entry into z's gradient."""

    def needed(self, x: Tensor) -> Tensor:
        """The features of x that meet trainable weights."""
        return x

    def add_entry(self, entries: Tensor, x: Tensor, g: Tensor) -> None:
        """Add this layer's entry to (b, d + 1), from its `needed` input and the gradient of its output.

        Only asked of layers that `may_wait`.
        """
        raise NotImplementedError

    @abstractmethod
    def norm_form(self, x: Tensor) -> str:
        """How the squared norm of this layer's gradient is found for such an input; "sketch" is an estimate."""

    @abstractmethod
    def gradient_sketches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every covered parameter with the sketch (d,) of its `.grad`, by the same matrices."""

    def trainable(self) -> Tensor | None:
        """One of the parameters that train, as they are now: `load_state_dict(assign=True)` puts others in."""
        return next((p for p in self.module._parameters.values() if p is not None and p.requires_grad), None)

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
    may_wait = True

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

    def add_entry(self, entries: Tensor, x: Tensor, g: Tensor) -> None:
        with full_precision(g.device):
            u, known, q = self.factors(x, 0)
            g = g.float()
            entries[:, :-1].addcmul_(u, project(g, q))
            entries[:, -1].addcmul_(known, squared_length(g))

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
        p = gaussian(seed, names["weight"], "columns", (inputs, d)) if self.trains("weight") else torch.zeros(0, d)
        bias = gaussian(seed, names["bias"], "one", (d,)) if self.trains("bias") else torch.zeros(d)
        q = gaussian(seed, names["weight"], "rows", (outputs, d), std=d**-0.5)
        self.matrices = (p.T.contiguous(), bias, q.T.contiguous())
        self._bias_trains = float(self.trains("bias"))

    def needed(self, x: Tensor) -> Tensor:
        return x if self.matrices[0].shape[1] else x.new_empty((*x.shape[:-1], 0))

    def widths(self, x: Tensor) -> tuple[int, int, int]:
        outputs, inputs = self.module.weight.shape
        return inputs, outputs, x.numel() // inputs // x.shape[self.ledger.batch_dim]

    def factors(self, x: Tensor, batch_dim: int) -> tuple[Any, ...]:
        p, bias, q = self.matrices
        if x.ndim == 2:
            a = self.needed(x).float()
            return project(a, p, bias), squared_length(a, self._bias_trains), q
        a = by_position(self.needed(x), batch_dim)
        norm = self.norm_form(x)
        return project(a, p, bias), self._known(a, norm), q, batch_dim, norm

    def _known(self, a: Tensor, norm: str) -> Tensor:
        if norm == "gram":
            return torch.bmm(a, a.mT) + self._bias_trains
        if norm == "outer":
            return F.pad(a, (0, 1), value=1.0) if self._bias_trains else a
        return a.new_empty(0)

    def gradient_sketches(self) -> Iterator[tuple[Tensor, Tensor]]:
        p, bias, q = self.matrices
        if self.trains("weight"):
            yield self.module.weight, ((self.gradient("weight") @ p.T) * q.T).sum(0)
        if self.trains("bias"):
            yield self.module.bias, (q @ self.gradient("bias")) * bias


class EmbeddingLayer(KhatriRaoLayer):
    """nn.Embedding: a one-hot input, so P a is a row of a table of num_embeddings x d float32."""

    module: nn.Embedding
    vector_ndim = 1

    def __init__(self, name: str, module: nn.Embedding, ledger: Ledger, names: dict[str, str], **options: Any) -> None:
        super().__init__(name, module, ledger, norms=options["norms"], norm_budget=options["norm_budget"])
        seed, d = options["seed"], options["dim"]
        rows, columns = module.weight.shape
        p = gaussian(seed, names["weight"], "rows", (rows, d), std=d**-0.5)
        self.matrices = (p, gaussian(seed, names["weight"], "columns", (columns, d)).T.contiguous())

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
        yield self.module.weight, ((self.gradient("weight") @ q.T) * p).sum(0)


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
