"""Steepest descent with respect to a norm, as torch optimisers: which of them trains decides which margin grows.

On separable data with a logistic or exponential loss, steepest descent with respect to ||.|| tends in direction to the
separator of the largest ||.||-margin: gradient descent to l2, coordinate descent to l1, sign gradient descent to linf.
A classifier of the smallest ||w||_* is the one most robust to perturbations bounded in ||.||, so they resist attacks
bounded in l2, linf and l1 best.

Source: Faghri et al., arXiv 2102.08868, section 3; Gunasekar et al., arXiv 1802.08246. Gradient descent is
`torch.optim.SGD`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sampler_client.errors import ConfigError


class SignGradientDescent(Optimizer):
    """w -= lr ||g||_1 sign(g): steepest descent with respect to linf. The l1 norm is over all parameters of a group.

    Args:
        params: as of any torch optimiser.
        lr: > 0.
    """

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": _checked(lr)})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step."""
        loss = _evaluated(closure)
        for group in self.param_groups:
            moved = _with_gradients(group)
            size = sum((_gradient(p).abs().sum() for p in moved), start=torch.zeros(()))
            for parameter in moved:
                parameter.sub_(group["lr"] * size.to(parameter.device) * _gradient(parameter).sign())
        return loss


class CoordinateDescent(Optimizer):
    """w_k -= lr g_k for the coordinates k of the largest |g|, all that tie: steepest descent with respect to l1.

    One coordinate of all parameters of a group moves in a step, which is for linear models: a deep net has coordinates
    that mean different things, and none of the theory holds. A group of more than one parameter is refused.

    Args:
        params: as of any torch optimiser.
        lr: > 0.
    """

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": _checked(lr)})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of one parameter."""
        super().add_param_group(param_group)
        count = len(self.param_groups[-1]["params"])
        if count != 1:
            del self.param_groups[-1]
            raise ConfigError(
                f"coordinate descent is for a linear model with one weight, got {count} parameters; train deep nets by "
                "another optimiser, or give each parameter a group of its own"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step."""
        loss = _evaluated(closure)
        for group in self.param_groups:
            for parameter in _with_gradients(group):
                size = _gradient(parameter).abs()
                parameter.sub_(group["lr"] * _gradient(parameter) * (size == size.max()))
        return loss


def _checked(lr: float) -> float:
    if not (math.isfinite(lr) and lr > 0):
        raise ConfigError(f"lr must be positive, got {lr}")
    return lr


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _with_gradients(group: dict[str, Any]) -> list[Tensor]:
    return [parameter for parameter in group["params"] if parameter.grad is not None]


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
