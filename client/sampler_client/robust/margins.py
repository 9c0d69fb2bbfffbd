"""Margins of linear classifiers in every norm, adversarial risk, and the largest margin that there is.

A classifier sign(<w, x>) keeps its answers on (x_i, y_i) under all perturbations ||delta|| < eps exactly as long as eps
is at most its margin, min_i y_i <w, x_i> / ||w||_*. The largest margin is 1 / ||w*||_* of

    w* = argmin ||w||_*  subject to  y_i <w, x_i> >= 1 for all i.

Source: Faghri et al., arXiv 2102.08868, section 2.

Shapes: n examples, d features. For 2-D norms examples and weights are (h, w) images.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sampler_client.errors import ConfigError
from sampler_client.robust.norms import DUAL, Norm, check_examples, check_finite, norm_of


def margin(weight: Tensor, x: Tensor, y: Tensor, norm: Norm) -> float:
    """The largest size, in `norm`, of perturbations that change no answer; negative where one is wrong already.

    Args:
        weight: (d,).
        x: (n, d).
        y: (n,) of -1 and +1.
        norm: of perturbations; the classifier's own is measured in the dual one.

    Raises:
        ConfigError: shapes or labels that do not fit, values that are not finite, or a weight that is zero.
    """
    score, size = _measured(weight, x, y, norm)
    return float(score.min()) / size


def adversarial_risk(weight: Tensor, x: Tensor, y: Tensor, norm: Norm, eps: Tensor) -> Tensor:
    """(e,) share of the examples that some perturbation of at most that size turns wrong; exact for linear models.

    Args:
        weight, x, y, norm: as in `margin`.
        eps: (e,) sizes, at least 0.

    Raises:
        ConfigError: as `margin`, or sizes that are none.
    """
    if eps.ndim != 1 or not (eps >= 0).all():
        raise ConfigError(f"eps must be a vector of sizes, at least 0; got {eps.tolist()}")
    check_finite("eps", eps)
    score, size = _measured(weight, x, y, norm)
    return (score.unsqueeze(0) <= size * eps.double().unsqueeze(1)).double().mean(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimumNorm:
    """The most robust linear classifier, and the proof that it is."""

    weight: Tensor
    """(d,) double, scaled so that the least y <w, x> is 1"""
    margin: float
    """in the norm that was asked for"""
    bound: float
    """no linear classifier has a larger margin: the size of a mean of y_i x_i, weighted by the dual solution"""


def minimum_norm(x: Tensor, y: Tensor, norm: Norm) -> MinimumNorm:
    """The linear classifier of the largest margin against perturbations bounded in `norm`.

    A linear or second-order cone program for CVXPY and Clarabel: seconds for hundreds of features and examples. That
    margin and bound agree to a thousandth is checked here, whatever the solver says of itself.

    Args:
        x, y, norm: as in `margin`.

    Raises:
        ConfigError: as `margin`, cvxpy is missing, or no linear classifier was found that separates the examples.
    """
    check_examples(x, norm)
    _check(x[0], x, y)
    try:
        cvxpy = import_module("cvxpy")
    except ImportError as error:
        raise ConfigError(
            "minimum_norm solves a convex program with cvxpy, which is missing: pip install 'gradient-sampler[robust]'"
        ) from error
    signed = y.double().reshape(-1, *[1] * (x.ndim - 1)) * x.double()
    reach = float(norm_of(signed, norm).max()) or 1.0  # of numbers about 1 the solver is most certain
    rows = signed.flatten(1).cpu().numpy() / reach
    weight = cvxpy.Variable(rows.shape[1])
    separated = rows @ weight >= 1
    problem = cvxpy.Problem(cvxpy.Minimize(_size(cvxpy, weight, tuple(x.shape[1:]), DUAL[norm])), [separated])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "may be inaccurate": it is checked below
        try:
            problem.solve(solver=cvxpy.CLARABEL)
        except cvxpy.SolverError as error:
            raise ConfigError(f"the solver found no classifier of these {len(x)} examples: {error}") from error
    if weight.value is None or (rows @ weight.value).min() <= 0:
        raise ConfigError(f"no linear classifier separates these {len(x)} examples ({problem.status})")
    share = torch.from_numpy(separated.dual_value.clip(min=0)).to(x.device)
    bound = float(norm_of(torch.tensordot(share / share.sum(), signed, 1), norm))
    found = torch.from_numpy(weight.value / (rows @ weight.value).min() / reach).reshape(x.shape[1:]).to(x.device)
    largest = margin(found, x, y, norm)
    if not largest >= 0.999 * bound:
        raise ConfigError(f"the solver stopped short ({problem.status}): the largest margin is in {largest} … {bound}")
    return MinimumNorm(weight=found, margin=largest, bound=bound)


def _size(cvxpy: Any, weight: Any, shape: tuple[int, ...], norm: Norm) -> Any:
    """The norm as CVXPY has it, of a flattened weight."""
    if not norm.startswith("fourier"):
        return cvxpy.norm(weight, {"l1": 1, "l2": 2, "linf": "inf"}[norm])
    real, imaginary = _transform(shape)
    moduli = cvxpy.norm(cvxpy.vstack([real @ weight, imaginary @ weight]), 2, axis=0)
    return cvxpy.sum(moduli) if norm.endswith("l1") else cvxpy.max(moduli)


def _transform(shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The unitary Fourier transform of a flattened vector or image as a matrix, its real and imaginary part."""
    size = int(np.prod(shape))
    units = np.eye(size).reshape(size, *shape)
    matrix = np.fft.fftn(units, axes=tuple(range(1, units.ndim)), norm="ortho").reshape(size, size).T
    return matrix.real, matrix.imag


def _measured(weight: Tensor, x: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, float]:
    """(n,) y <w, x>, and the dual norm of the weight."""
    check_examples(x, norm)
    _check(weight, x, y)
    check_finite("weight", weight)
    size = float(norm_of(weight.double(), DUAL[norm]))
    if size == 0:
        raise ConfigError("weight must not be zero: it has no margin")
    return y * (x.double().flatten(1) @ weight.double().flatten()), size


def _check(weight: Tensor, x: Tensor, y: Tensor) -> None:
    if weight.shape != x.shape[1:] or y.shape != x.shape[:1]:
        raise ConfigError(
            f"needed are a weight (d,), examples (n, d) and labels (n,); got {tuple(weight.shape)}, {tuple(x.shape)} "
            f"and {tuple(y.shape)}"
        )
    if not (y.abs() == 1).all():
        raise ConfigError(f"y must be -1 or +1, got {sorted(set(y.tolist()))[:5]}")
