"""Per-example gradient sketches, read off the backward pass that training makes anyway.

Shapes: b examples, d sketch length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor, nn

from sampler_client.config import check_whole
from sampler_client.errors import ConfigError, SketchError
from sampler_client.pytorch import audit
from sampler_client.pytorch.captured import CapturedSketches, Deferred, GradientSketches
from sampler_client.pytorch.probe import Hook, Ledger
from sampler_client.pytorch.projection import unwrapped
from sampler_client.pytorch.selection import LayerChoice, select

logger = logging.getLogger("sampler_client")

NORM_BUDGET = 0.02
"""With norms="auto", the share of a layer's training step that its exact norms may cost."""


class GradientSketcher:
    """Sketches the gradient of every example's loss while a model trains, with no second backward pass.

    s_i = d^-1/2 sum_layers sum_positions (P_l a) o (Q_l g), the summed Khatri-Rao projection of the factors a (layer
    input) and g (gradient of its output), with independent seeded Gaussian P, Q: Rakhshan and Rabusseau, "Tensorized
    Random Projections" (2020), rank one. Inner products are unbiased; the relative variance of a squared norm is
    (2 + 6 rho)/d for one layer, rho = 1 for one position per example and lower for sequences. Convolutions for which
    d projections are dear use a compressed form, see `convolution`. The same (seed, parameter name, shape) gives the
    same matrices in every process.

    Works with mean, sum and weighted losses, gradient accumulation, autocast, GradScaler, activation checkpointing,
    DistributedDataParallel, torch.compile(fullgraph=True), tied weights and a layer called several times. The first
    (or `batch_dim`) dimension of inputs and activations must be the examples: a layer fed anything else, such as
    position indices (t,) added to every example, is left out and named. A (t,) whose t happens to equal b can't be
    told from a batch. Choose what is frozen before the sketcher is made, and make it before torch.compile traces the
    model. Not for DataParallel, model-parallel placement or a sharded (FSDP, tensor-parallel) weight.

    Only first derivatives are sketched. Once a backward pass with create_graph=True has come through a sketched layer,
    as a gradient penalty's does, take() raises: sketch the plain loss alone, with the penalty's forward passes inside
    of `paused()`. It also raises where a layer's input was written into before the backward pass ended; a write
    through `.data` can't be seen. A copied or pickled model is not sketched: its hooks do nothing.

    Args:
        model: the module that trains, bare or wrapped. Hooks go on its layers, never on tensors that outlive a step.
        dim: d, length of a sketch.
        seed: of the matrices; sketches of different seeds can't be compared.
        dtype: of the sketches returned, float16 or float32. float16 overflows above 65504: such a row is not usable.
        layers: None for the layers within `cost_budget`, "all", module names, or a predicate (name, module).
        norms: "auto" for exact norms where they cost under 2 % of the layer's step (one position per example, short
            sequences, normalisations) and that layer's sketch as the estimate elsewhere; "exact" for all layers,
            which on convolutions costs a weight gradient per example; "sketch" for ||s_i||. `norm_forms` says which
            layer got what. A layer called twice, or two with tied weights, add squares without their cross terms:
            use "sketch" for such models.
        reduction: how losses were reduced, for `take(None)`: "mean" or "sum".
        loss_scale: what the loss was multiplied by, for `take(None)`: a number, or a function such as
            `scaler.get_scale`, which take() calls and which must therefore not have been updated yet.
        batch_dim: dimension of the examples in inputs and activations with a time axis; 1 for (t, b, features).
        cost_budget: largest share of its own training step that a convolution's sketch may cost, see `selection`.

    Attributes:
        layers: names of the sketched layers.
        skipped: {module name: reason} for trainable layers that are not in the sketch. Named once in the log.
        norm_forms: {layer name: form}, filled by forward passes outside compiled code; all but "sketch" are exact.

    Raises:
        ConfigError: an argument is not as above, or no layer is left to sketch.
    """

    def __init__(  # noqa: PLR0913 - keyword-only settings, each with a default
        self,
        model: nn.Module,
        dim: int = 64,
        *,
        seed: int = 0,
        dtype: DTypeLike = np.float16,
        layers: LayerChoice = None,
        norms: Literal["auto", "exact", "sketch"] = "auto",
        reduction: Literal["mean", "sum"] = "mean",
        loss_scale: float | Callable[[], float] = 1.0,
        batch_dim: int = 0,
        cost_budget: float = 0.1,
    ) -> None:
        _check(dim=dim, dtype=dtype, norms=norms, reduction=reduction, batch_dim=batch_dim)
        self.dim, self.dtype, self.norms = dim, np.dtype(dtype), norms
        self._reduction, self._loss_scale = reduction, loss_scale
        root = unwrapped(model)
        device = next((p.device for p in root.parameters()), torch.device("cpu"))
        self._ledger = Ledger(dim + 1, torch.zeros((), device=device, requires_grad=True), batch_dim)
        self._layers, self.skipped = select(
            root,
            self._ledger,
            layers,
            dim=dim,
            seed=seed,
            norms=norms,
            norm_budget=NORM_BUDGET,
            cost_budget=cost_budget,
        )
        if not self._layers:
            raise ConfigError(
                f"nothing to sketch in {type(root).__name__}: {self.skipped or 'no trainable parameters'}"
            )
        self._window = audit.GradientWindow()
        # Outermost user hooks still see the layer's output, whatever they do with it afterwards.
        self._handles = [
            layer.module.register_forward_hook(layer, with_kwargs=True, prepend=True) for layer in self._layers
        ]
        self._handles.append(root.register_forward_pre_hook(_Begin(self._ledger), with_kwargs=True, prepend=True))

    @property
    def layers(self) -> list[str]:
        """Canonical names of the sketched layers."""
        return [layer.name for layer in self._layers]

    @property
    def norm_forms(self) -> dict[str, str]:
        return dict(self._ledger.norm_forms)

    @property
    def enabled(self) -> bool:
        """Whether forward passes are sketched. Under torch.compile a change recompiles the model once."""
        return self._ledger.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._ledger.enabled = value

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run forward passes that are not sketched, at no cost."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def take(self, coefficients: Any = None) -> GradientSketches:
        """The sketches of the backward pass (or passes, of equal batch sizes) since the last call, and forget them.

        Args:
            coefficients: array or tensor (b,), c_i = dL/dl_i, the derivative of what was back-propagated with
                respect to each example's own loss: importance weights, 1/b, 1/accumulation steps and GradScaler's
                factor all multiplied. Captured rows are c_i s_i and are divided by it. None: all are loss_scale/b
                or loss_scale, by `reduction`.

        Raises:
            SketchError: no backward pass came through a sketched layer, the number of examples does not match, or the
                sketches are spoilt: by create_graph=True, or by writes into activations.
        """
        return self.capture(coefficients).resolve()

    def capture(self, coefficients: Any = None) -> CapturedSketches:
        """`take` in two steps: this one only notes what the device was told to compute and waits for nothing.

        `capture(c).resolve()` is `take(c)`; `resolve` may be called later and in another thread, as
        `batch.report` does. `audit` counts what was captured. A `loss_scale` function is called here.

        Raises:
            SketchError: as `take` does.
        """
        raw = self._collect()
        c = self._coefficients(coefficients, len(raw))
        self._window.add(raw, self._layers)
        return CapturedSketches(
            entries=Deferred(raw, copy=False).numpy,
            coefficients=c,
            dtype=self.dtype,
            norms_from_sketches=self.norms == "sketch",
        )

    def audit(self, *, tolerance: float = 1e-3) -> float:
        """Check that the sketches taken since `zero_grad()` add up to that of `.grad`; returns the relative error.

        Call it after take(), before clipping, `unscale_` or `optimizer.step()`; every backward pass since
        `zero_grad()` (which must set gradients to None, as is the default) must have been taken. When
        torch.distributed is initialised all ranks must call it, and gradients must be averages, as
        DistributedDataParallel leaves them.
        In float32 the error is about 1e-6; under bfloat16 autocast 1e-2, so pass a higher `tolerance` there.

        Raises:
            SketchAuditError: it is above `tolerance`; the message names the layer that would explain it.
            SketchError: nothing has been taken yet.
        """
        if self._window.total is None:
            raise SketchError("audit() compares what take() returned with .grad: call take() after backward first")
        return audit.check(self._window.total[: self.dim], self._layers, tolerance)

    def close(self) -> None:
        """Remove every hook. Safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._ledger.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _collect(self) -> Tensor:
        sums, spoilt = self._ledger.sums, self._ledger.spoilt
        for name, shape in self._ledger.odd_shapes.items():
            if name not in self.skipped:
                self.skipped[name] = f"its output has no batch dimension: {shape}"
                logger.warning("gradient sketches leave out %s: its output has no batch dimension, %s", name, shape)
        self._ledger.clear()
        if spoilt:
            raise SketchError(spoilt)
        if not sums:
            raise SketchError(
                "no backward pass has come through a sketched layer since the last take(): call it after backward(), "
                f"with the sketcher enabled (enabled={self.enabled}) and not closed"
            )
        if len(sums) > 1:
            raise SketchError(f"backward passes of {list(sums)} examples since the last take(): take each")
        return next(iter(sums.values()))

    def _coefficients(self, given: Any, b: int) -> Callable[[], NDArray[np.float32]]:
        if given is None:
            scale = self._loss_scale() if callable(self._loss_scale) else self._loss_scale
            c = np.full(b, scale / b if self._reduction == "mean" else scale, np.float32)
            return lambda: c
        values = given if isinstance(given, Tensor) else np.array(given, np.float32).reshape(-1)
        count = values.numel() if isinstance(values, Tensor) else len(values)
        if count != b:
            raise SketchError(f"{count} coefficients for a backward pass of {b} examples")
        return Deferred(values).numpy if isinstance(values, Tensor) else lambda: values


class _Begin(Hook):
    """Before each forward pass of the model: how many examples it has."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._ledger.enabled and torch.is_grad_enabled():
            first = _first_tensor((args, kwargs))
            if first is None:
                self._ledger.begin(None)
            else:
                dim = self._ledger.batch_dim
                self._ledger.begin(first.shape[dim if first.ndim > dim else 0])


def _check(*, dim: int, dtype: DTypeLike, norms: str, reduction: str, batch_dim: int) -> None:
    check_whole("dim", dim, 1)
    try:
        known = np.dtype(dtype) in (np.dtype(np.float16), np.dtype(np.float32))
    except TypeError:
        known = False
    if not known:
        raise ConfigError(f"dtype must be numpy.float16 or numpy.float32, got {dtype!r}")
    if norms not in ("auto", "exact", "sketch"):
        raise ConfigError(f'norms must be "auto", "exact" or "sketch", got {norms!r}')
    if reduction not in ("mean", "sum"):
        raise ConfigError(f'reduction must be "mean" or "sum", got {reduction!r}')
    if batch_dim not in (0, 1):
        raise ConfigError(f"batch_dim must be 0 or 1, got {batch_dim}")


def _first_tensor(value: object) -> Tensor | None:
    """The first tensor with a dimension in nested arguments."""
    if isinstance(value, Tensor):
        return value if value.ndim else None
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((found for found in map(_first_tensor, inner) if found is not None), None)
