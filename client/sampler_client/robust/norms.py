"""Norms of linear classifiers and of perturbations, their duals, projections onto their balls and proximal steps.

Fourier norms are those of the unitary discrete Fourier transform over the last dimension, "fourier_2d_…" over the last
two. Source: Faghri et al., "Bridging the gap between adversarial robustness and optimization bias", arXiv 2102.08868;
projection onto the l1 ball after Duchi et al., ICML 2008.

Shapes: (…, d) numbers, (…, h, w) pixels; every function works on the last dimension (Fourier 2-D: the last two) and
treats all before it as separate vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from sampler_client.config import check_within
from sampler_client.errors import ConfigError

Norm = Literal["l1", "l2", "linf", "fourier_l1", "fourier_linf", "fourier_2d_l1", "fourier_2d_linf"]

DUAL: dict[Norm, Norm] = {
    "l1": "linf",
    "l2": "l2",
    "linf": "l1",
    "fourier_l1": "fourier_linf",
    "fourier_linf": "fourier_l1",
    "fourier_2d_l1": "fourier_2d_linf",
    "fourier_2d_linf": "fourier_2d_l1",
}
"""the norm ||.||_* with max over ||delta|| <= 1 of <w, delta> = ||w||_*"""


def check_norm(norm: str) -> None:
    """Raise ConfigError for a name that is none."""
    if norm not in get_args(Norm):
        raise ConfigError(f"norm must be one of {get_args(Norm)}, got {norm!r}")


def check_vectors(name: str, vectors: Tensor, norm: Norm) -> None:
    """Raise ConfigError for an argument of that name that is no finite (…, d) or, for a 2-D norm, (…, h, w) tensor."""
    check_norm(norm)
    dims = ("h", "w") if norm.startswith("fourier_2d") else ("d",)
    if vectors.ndim < len(dims) or not vectors.numel() or not vectors.is_floating_point():
        raise ConfigError(
            f"{name} must be floating-point numbers of shape (…, {', '.join(dims)}) for {norm!r}, got {vectors.dtype} "
            f"of shape {tuple(vectors.shape)}"
        )
    check_finite(name, vectors)


def check_finite(name: str, values: Tensor) -> None:
    """Raise ConfigError where an argument of that name has NaN or infinite values."""
    odd = int((~torch.isfinite(values)).sum())
    if odd:
        raise ConfigError(f"{name} must be finite; {odd} of its {values.numel()} values are NaN or infinite")


def check_examples(x: Tensor, norm: Norm) -> None:
    """Raise ConfigError for x that is not (n, d) or, for a 2-D norm, (n, h, w), or not finite."""
    check_vectors("x", x, norm)
    if x.ndim != (3 if norm.startswith("fourier_2d") else 2):
        raise ConfigError(f"x must be (n, d), or (n, h, w) for a 2-D norm; got shape {tuple(x.shape)} and {norm!r}")


def norm_of(vectors: Tensor, norm: Norm) -> Tensor:
    """(…,) norms of (…, d) vectors, or of (…, h, w) images for a 2-D norm.

    Raises:
        ConfigError: here and below, a name that is no norm, or vectors that are not finite or of another shape.
    """
    check_vectors("vectors", vectors, norm)
    moduli, dims = _moduli(vectors, norm)
    if norm == "l2":
        return moduli.square().sum(dims).sqrt()
    return moduli.sum(dims) if norm.endswith("l1") else moduli.amax(dims)


def project(vectors: Tensor, norm: Norm, radius: float) -> Tensor:
    """The nearest point, in l2, of the ball ||x|| <= radius of each vector.

    Args:
        radius: at least 0.
    """
    check_vectors("vectors", vectors, norm)
    check_within("radius", radius, "[0, inf)")
    return _in_basis(vectors, norm, lambda moduli: _projected(moduli, norm, radius))


def prox(vectors: Tensor, norm: Norm, strength: float) -> Tensor:
    """argmin over x of strength ||x|| + ||x - v||^2 / 2, by Moreau: v less its projection onto the dual ball.

    Args:
        strength: at least 0.
    """
    check_norm(norm)
    check_within("strength", strength, "[0, inf)")
    return vectors - project(vectors, DUAL[norm], strength)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """argmax over ||delta|| <= 1 of <gradient, delta>: the attack of a linear loss, and steepest descent's direction.

    Where several are as good, the one that spreads evenly over them.
    """
    check_vectors("gradient", gradient, norm)
    if norm.endswith("l1"):
        return _in_basis(gradient, norm, _largest)
    if norm == "l2":
        return gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
    return _in_basis(gradient, norm, lambda moduli: (moduli > 0).to(moduli.dtype))


def _largest(moduli: Tensor) -> Tensor:
    most = moduli == moduli.amax(-1, keepdim=True)
    return most / most.sum(-1, keepdim=True)


def _moduli(vectors: Tensor, norm: Norm) -> tuple[Tensor, tuple[int, ...]]:
    if norm.startswith("fourier_2d"):
        return torch.fft.fft2(vectors, norm="ortho").abs(), (-2, -1)
    if norm.startswith("fourier"):
        return torch.fft.fft(vectors, norm="ortho").abs(), (-1,)
    return vectors.abs(), (-1,)


def _in_basis(vectors: Tensor, norm: Norm, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Give each coefficient, in the norm's basis, the modulus that `change` makes of all; phases or signs stay."""
    if norm.startswith("fourier_2d"):
        coefficients = torch.fft.fft2(vectors, norm="ortho").flatten(-2)
        changed = _with_moduli(coefficients, change(coefficients.abs())).unflatten(-1, vectors.shape[-2:])
        return torch.fft.ifft2(changed, norm="ortho").real
    if norm.startswith("fourier"):
        coefficients = torch.fft.fft(vectors, norm="ortho")
        return torch.fft.ifft(_with_moduli(coefficients, change(coefficients.abs())), norm="ortho").real
    return _with_moduli(vectors, change(vectors.abs()))


def _with_moduli(coefficients: Tensor, moduli: Tensor) -> Tensor:
    size = coefficients.abs()
    return torch.where(size > 0, coefficients / size.clamp(min=torch.finfo(size.dtype).tiny), 0) * moduli


def _projected(moduli: Tensor, norm: Norm, radius: float) -> Tensor:
    if norm == "l2":
        length = moduli.norm(dim=-1, keepdim=True)
        return moduli * (radius / length.clamp(min=torch.finfo(moduli.dtype).tiny)).clamp(max=1)
    if norm.endswith("linf"):
        return moduli.clamp(max=radius)
    # l1: what is over the largest threshold at which the rest sums to the radius.
    order = moduli.sort(-1, descending=True).values
    excess = order.cumsum(-1) - radius
    rank = torch.arange(1, moduli.shape[-1] + 1, device=moduli.device, dtype=moduli.dtype)
    active = (order * rank > excess).sum(-1, keepdim=True).clamp(min=1)
    threshold = (excess.gather(-1, active - 1) / active).clamp(min=0)
    return (moduli - threshold).clamp(min=0)
