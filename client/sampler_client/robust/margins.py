"""Margins of linear classifiers in every norm, adversarial risk, and the largest margin that there is.

A classifier sign(<w, x>) keeps its answers on (x_i, y_i) under all perturbations ||delta|| < eps exactly as long as eps
is at most its margin, min_i y_i <w, x_i> / ||w||_*. The largest margin is 1 / ||w*||_* of

    w* = argmin ||w||_*  subject to  y_i <w, x_i> >= 1 for all i.

Source: Faghri et al., arXiv 2102.08868, section 2.

Shapes: n examples, d features. For 2-D norms examples and weights are (h, w) images.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sampler_client.errors import ConfigError
from sampler_client.robust.norms import DUAL, Norm, check_examples, check_finite, norm_of

_ACCURACY = 1e-6
"""of the solver: its own 1e-8 is out of reach of some small cone programs, of which it then warns"""


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
    score, size = _measured(weight, x, y, norm)
    return (score.unsqueeze(0) <= size * eps.double().unsqueeze(1)).double().mean(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimumNorm:
    """The most robust linear classifier."""

    weight: Tensor
    """(d,) double, scaled so that the least y <w, x> is 1"""
    margin: float
    """in the norm that was asked for"""


def minimum_norm(x: Tensor, y: Tensor, norm: Norm) -> MinimumNorm:
    """The linear classifier of the largest margin against perturbations bounded in `norm`.

    A linear or second-order cone program for CVXPY and Clarabel: a second for hundreds of features and examples.

    Args:
        x, y, norm: as in `margin`.

    Raises:
        ConfigError: as `margin`, cvxpy is missing, or no linear classifier separates the examples.
    """
    check_examples(x, norm)
    _check(x[0], x, y)
    try:
        cvxpy = import_module("cvxpy")
    except ImportError as error:
        raise ConfigError(
            "minimum_norm solves a convex program with cvxpy, which is missing: pip install 'gradient-sampler[robust]'"
        ) from error
    reach = float(norm_of(x.double(), norm).max()) or 1.0  # of numbers about 1 the solver is most certain
    examples = x.double().cpu().numpy().reshape(len(x), -1) / reach
    labels = y.double().cpu().numpy()
    weight = cvxpy.Variable(examples.shape[1])
    size = _size(cvxpy, weight, tuple(x.shape[1:]), DUAL[norm])
    problem = cvxpy.Problem(cvxpy.Minimize(size), [(labels[:, None] * examples) @ weight >= 1])
    problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=_ACCURACY, tol_gap_rel=_ACCURACY, tol_feas=_ACCURACY)
    if weight.value is None:
        raise ConfigError(f"no linear classifier separates these {len(x)} examples ({problem.status})")
    found = (
        torch.from_numpy(weight.value / (labels * (examples @ weight.value)).min()).reshape(x.shape[1:]).to(x.device)
    )
    return MinimumNorm(weight=found, margin=margin(found, x, y, norm))


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
