"""Margins of linear classifiers in every norm, and adversarial risk.

A classifier sign(<w, x>) keeps its answers on (x_i, y_i) under all perturbations ||delta|| < eps exactly as long as eps
is at most its margin, min_i y_i <w, x_i> / ||w||_*. The largest margin is 1 / ||w*||_* of

    w* = argmin ||w||_*  subject to  y_i <w, x_i> >= 1 for all i.

Source: Faghri et al., arXiv 2102.08868, section 2.

Shapes: n examples, d features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sampler_client.errors import ConfigError
from sampler_client.robust.norms import DUAL, Norm, norm_of


def margin(weight: Tensor, x: Tensor, y: Tensor, norm: Norm) -> float:
    """The largest size, in `norm`, of perturbations that change no answer; negative where one is wrong already.

    Args:
        weight: (d,).
        x: (n, d).
        y: (n,) of -1 and +1.
        norm: of perturbations; the classifier's own is measured in the dual one.

    Raises:
        ConfigError: shapes or labels that do not fit, or a weight that is zero or not finite.
    """
    _check(weight, x, y)
    size = float(norm_of(weight.double(), DUAL[norm]))
    if not (math.isfinite(size) and size > 0):
        raise ConfigError(f"a weight of norm {size} has no margin")
    return float((y * (x.double() @ weight.double())).min()) / size


def adversarial_risk(weight: Tensor, x: Tensor, y: Tensor, norm: Norm, eps: Tensor) -> Tensor:
    """(e,) share of the examples that some perturbation of at most that size turns wrong; exact for linear models.

    Args:
        weight, x, y, norm: as in `margin`.
        eps: (e,) sizes, at least 0.
    """
    _check(weight, x, y)
    if eps.ndim != 1 or (eps < 0).any():
        raise ConfigError(f"eps must be a vector of sizes, at least 0; got shape {tuple(eps.shape)}")
    score = y * (x.double() @ weight.double())
    reach = eps.double() * norm_of(weight.double(), DUAL[norm])
    return (score.unsqueeze(0) <= reach.unsqueeze(1)).double().mean(1)


def _check(weight: Tensor, x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or weight.shape != x.shape[1:] or y.shape != x.shape[:1] or not len(x):
        raise ConfigError(
            f"needed are a weight (d,), examples (n, d) and labels (n,); got {tuple(weight.shape)}, {tuple(x.shape)} "
            f"and {tuple(y.shape)}"
        )
    if not (y.abs() == 1).all():
        raise ConfigError(f"labels must be -1 or +1, got {sorted(set(y.tolist()))[:5]}")
    if not torch.isfinite(x).all():
        raise ConfigError("examples must be finite; some are NaN or infinite")
