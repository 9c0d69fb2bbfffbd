"""The self-audit: the examples' sketches must add up to the sketch of the gradient the optimiser sees.

sum_i raw_i = sketch(.grad), by the same matrices. It catches layers that were missed or counted twice, matrices
that do not belong together and mistakes across ranks. It cannot see a wrong overall scale, which both sides share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor

from sampler_client.errors import SketchError

if TYPE_CHECKING:
    from sampler_client.pytorch.layers import Layer


class SketchAuditError(SketchError):
    """The sketches do not add up to the gradient; the message says by how much, and which layer would explain it."""


class GradientWindow:
    """The raw sketches of the backward passes that one `.grad` has accumulated; summed only when asked for."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None
        self._grad = lambda: None

    @property
    def total(self) -> Tensor | None:
        """The sum (d + 1,) over all rows; None before the first."""
        return None if self._rows is None else self._rows.sum(0)

    def add(self, raw: Tensor, layers: Iterable[Layer]) -> None:
        """Take entries (b, d + 1) in; those of an earlier window are forgotten."""
        parameters = (p for layer in layers for p in layer.module._parameters.values() if p is not None)
        grad = next((p.grad for p in parameters if p.grad is not None), None)
        # A new tensor in .grad means that zero_grad() has dropped the old one.
        same = grad is not None and self._grad() is grad
        self._rows = torch.stack((self._rows.sum(0), raw.sum(0))) if same and self._rows is not None else raw
        self._grad = ref(grad) if grad is not None else lambda: None


def check(total: Tensor, layers: Iterable[Layer], tolerance: float) -> float:
    """Compare the sum of raw sketches (d,) with the sketch of `.grad`; returns the relative error.

    Raises:
        SketchAuditError: the error is above `tolerance`.
    """
    terms = _terms(layers)
    if not terms:
        raise SketchAuditError("no sketched layer has a gradient: call audit() after backward and before zero_grad()")
    expected = torch.stack(list(terms.values())).sum(0)
    total = _mean_over_ranks(total.to(expected.device))
    scale = max(expected.norm().item(), total.norm().item())
    error = (total - expected).norm().item() / scale if scale else 0.0
    if error <= tolerance:
        return error
    raise SketchAuditError(
        f"the sketches add up to a vector of length {total.norm().item():.4g}, the gradient's sketch has "
        f"{expected.norm().item():.4g}: relative error {error:.2g}, allowed {tolerance:.2g}. "
        + _culprit(total - expected, terms)
    )


def _terms(layers: Iterable[Layer]) -> dict[str, Tensor]:
    """Sketch (d,) of the gradients of each layer; a tied parameter counts once."""
    seen: set[int] = set()
    terms: dict[str, Tensor] = {}
    for layer in layers:
        for parameter, sketch in layer.gradient_sketches():
            if parameter.grad is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            terms[layer.name] = terms[layer.name] + sketch if layer.name in terms else sketch
    return terms


def _culprit(difference: Tensor, terms: dict[str, Tensor]) -> str:
    """The one layer that, missed or counted twice, comes nearest to the difference."""
    cases = [
        ((difference - sign * term).norm().item(), name, what)
        for name, term in terms.items()
        for sign, what in ((-1.0, "missing"), (1.0, "counted twice"))
    ]
    left, name, what = min(cases)
    if left < 0.05 * difference.norm().item():
        return f"Layer {name!r} is {what}."
    return (
        "No single layer explains it. Was the gradient clipped, unscaled or zeroed in place before audit(), "
        "or did a backward pass go by without take()?"
    )


def _mean_over_ranks(total: Tensor) -> Tensor:
    """DistributedDataParallel leaves the mean over ranks in `.grad`."""
    if not (dist.is_available() and dist.is_initialized()):
        return total
    total = total.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
