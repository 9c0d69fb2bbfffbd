"""Steepest descent with respect to a norm, as torch optimisers: which of them trains decides which margin grows.

On separable data with a logistic or exponential loss, steepest descent with respect to ||.|| tends in direction to the
separator of the largest ||.||-margin: gradient descent to l2, coordinate descent to l1, sign gradient descent to linf.
A classifier of the smallest ||w||_* is the one most robust to perturbations bounded in ||.||, so they resist attacks
bounded in l2, linf and l1 best. Gradient descent is `torch.optim.SGD`.

With a constant lr the direction errs by some 1 / log t (Soudry et al., arXiv 1710.10345), for the gradient shrinks with
the loss. Steps divided by the loss do not have that fault (Nacson et al., arXiv 1803.01905), and they are the steps of
the same optimisers on the logarithm of the exponential loss, `log_exponential_loss`. Its curvature along a direction
delta is at most (max_i ||x_i||_* ||delta||)^2, which gives the lr that cannot overshoot, `step_size`.

Source: Faghri et al., arXiv 2102.08868, section 3; Gunasekar et al., arXiv 1802.08246.

Shapes: n examples, d features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sampler_client.config import check_scheduled_lr, check_within
from sampler_client.errors import ConfigError
from sampler_client.robust.norms import Norm, check_examples, check_finite, norm_of


def log_exponential_loss(scores: Tensor, y: Tensor) -> Tensor:
    """log mean_i exp(-y_i s_i): its gradient is that of the exponential loss, divided by that loss.

    Args:
        scores: (n,) of a binary classifier.
        y: (n,) of -1 and +1.

    Raises:
        ConfigError: other shapes or labels, or scores that are not finite.
    """
    if scores.ndim != 1 or scores.shape != y.shape or not len(y):
        raise ConfigError(f"scores and y must both be (n,), got {tuple(scores.shape)} and {tuple(y.shape)}")
    if not (y.abs() == 1).all():
        raise ConfigError(f"y must be -1 or +1, got {sorted(set(y.tolist()))[:5]}")
    check_finite("scores", scores.detach())
    return torch.logsumexp(-y * scores, 0) - math.log(len(y))


def step_size(x: Tensor, norm: Norm) -> float:
    """1 / max_i ||x_i||^2: the best `lr` that surely does not overshoot on `log_exponential_loss` of <w, x>.

    It is the bound 1 / (b^2 loss) of steps on the exponential loss in Faghri et al.'s code, the loss divided out.
    `CoordinateDescent` moves coordinates that tie for the largest all at once, as the source does, and so may overshoot
    where columns of x are copies of one another.

    Args:
        x: (n, d), or (n, h, w) for a 2-D norm.
        norm: of the attack to be resisted, which is the dual of the optimiser's: "l2" for gradient descent, "linf" for
            `CoordinateDescent`, "l1" for `SignGradientDescent`.

    Raises:
        ConfigError: x of another shape, not finite, or all zero.
    """
    check_examples(x, norm)
    largest = float(norm_of(x, norm).max())
    if largest == 0:
        raise ConfigError(f"x must not be all zero, as all {len(x)} examples are")
    return 1 / largest**2


class SignGradientDescent(Optimizer):
    """w -= lr ||g||_1 sign(g): steepest descent with respect to linf. The l1 norm is over all parameters of a group.

    Args:
        params: as of any torch optimiser.
        lr: > 0.

    Raises:
        ConfigError: an lr outside its range or, from `step`, such an lr or a gradient that is not finite; nothing of
            the group has moved then.
    """

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with an lr of their own if need be."""
        _check_lr(param_group.get("lr", self.defaults["lr"]))
        super().add_param_group(param_group)

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

    One coordinate moves in a step, which is for linear models: a deep net has coordinates that mean different things,
    and none of the theory holds. More than one parameter is refused.

    Args:
        params: one weight, (d,) or any other shape.
        lr: > 0.

    Raises:
        ConfigError: an lr outside its range, several parameters or, from `step`, such an lr or a gradient that is not
            finite; nothing has moved then.
    """

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the one parameter."""
        _check_lr(param_group.get("lr", self.defaults["lr"]))
        super().add_param_group(param_group)
        count = sum(len(group["params"]) for group in self.param_groups)
        if count != 1:
            del self.param_groups[-1]
            raise ConfigError(
                f"coordinate descent needs a linear model of one weight and no bias, got {count} parameters; append a "
                "constant feature for a bias, and train deep nets by torch.optim.SGD or SignGradientDescent"
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


def _check_lr(lr: float) -> None:
    check_within("lr", lr, "(0, inf)")


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _with_gradients(group: dict[str, Any]) -> list[Tensor]:
    """What a step moves, once all that it is made of is sound."""
    check_scheduled_lr(group["lr"])
    moved = [parameter for parameter in group["params"] if parameter.grad is not None]
    for parameter in moved:
        check_finite("the gradient", _gradient(parameter))
    return moved


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
