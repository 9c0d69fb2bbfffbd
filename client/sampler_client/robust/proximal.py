"""Explicit regularisation by a norm, as a torch optimiser: loss(w) + strength ||w||, by accelerated proximal steps.

As the strength falls to zero the minimiser tends in direction to the separator of the least ||w|| (Rosset, Zhu and
Hastie, NIPS 2003): what an optimiser is biased to can be asked for outright.

FISTA (Beck and Teboulle, 2009) steps from an extrapolated point v, with a step size found by backtracking:

    w_k = prox of lr strength ||.|| at v_k - lr g,    g the gradient at v_k,
    t_{k+1} = (1 + sqrt(1 + 4 t_k^2)) / 2,    v_{k+1} = w_k + (t_k - 1) / t_{k+1} (w_k - w_{k-1}),

where lr is halved until loss(w_k) <= loss(v_k) + <g, w_k - v_k> + ||w_k - v_k||^2 / (2 lr).

Two additions, without which the small strengths that are of use here take very long: t starts anew where a step turns
against the extrapolation (O'Donoghue and Candès, arXiv 1204.3982), and `lr` may grow again, since the loss of separated
data flattens by orders of magnitude (Scheinberg, Goldfarb and Bai, 2014).

Source: as above, and Faghri et al., arXiv 2102.08868, with its authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sampler_client.config import check_within
from sampler_client.errors import ConfigError
from sampler_client.robust.norms import Norm, check_finite, check_vectors, norm_of, prox

_TRIALS = 100
"""a loss with a gradient passes long before"""


class Proximal(Optimizer):
    """FISTA for a convex loss plus norms of the parameters: of each vector of each, along the last dimension.

    It evaluates the closure at least twice a step, all of the data each time: batches have no place here.

    Args:
        params: as of any torch optimiser; groups may have a norm and a strength of their own.
        norm: of the parameters, the dual of the attack's: "l1" against linf attacks, "fourier_l1" against Fourier-linf.
        strength: at least 0.
        lr: first step size, > 0; too large a one is halved until it fits.
        growth: by which `lr` grows before each step, at least 1; 1 is plain FISTA.

    Raises:
        ConfigError: a value outside its range or, from `step`, no closure, or a loss or gradient that is not finite.
    """

    def __init__(
        self, params: Iterable[Any], norm: Norm, strength: float, lr: float = 1.0, *, growth: float = 1.1
    ) -> None:
        super().__init__(params, {"norm": norm, "strength": strength, "lr": lr, "growth": growth, "t": 0.0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with a norm, a strength and so on of their own if need be."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for parameter in group["params"]:
                check_vectors("a parameter", parameter.detach(), group["norm"])
            for name, allowed in (("strength", "[0, inf)"), ("lr", "(0, inf)"), ("growth", "[1, inf)")):
                check_within(name, group[name], allowed)
        except ConfigError:
            del self.param_groups[-1]
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: clears the gradients, evaluates the loss on all the data, calls its `backward` and returns it.

        Returns:
            The loss at the new parameters, without the penalty.
        """
        if closure is None:
            raise ConfigError("proximal steps evaluate the loss several times: call step(closure)")
        before = [[parameter.clone() for parameter in group["params"]] for group in self.param_groups]
        for group in self.param_groups:
            self._extrapolate(group)
        start = [[parameter.clone() for parameter in group["params"]] for group in self.param_groups]
        loss = self._loss(closure)
        gradients = [[_gradient(parameter) for parameter in group["params"]] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] *= group["growth"]
        for _ in range(_TRIALS):
            bound = loss
            for group, points, slopes in zip(self.param_groups, start, gradients, strict=True):
                for parameter, point, slope in zip(group["params"], points, slopes, strict=True):
                    parameter.copy_(prox(point - group["lr"] * slope, group["norm"], group["lr"] * group["strength"]))
                    move = parameter - point
                    bound += float((slope * move).sum() + move.square().sum() / (2 * group["lr"]))
            found = self._loss(closure)
            if found <= bound + 4 * torch.finfo(start[0][0].dtype).eps * abs(loss):  # but for rounding
                break
            for group in self.param_groups:
                group["lr"] /= 2
        else:
            raise ConfigError(f"no step size fits the loss at {loss}: it must be differentiable, on all the data alike")
        for group, points, olds in zip(self.param_groups, start, before, strict=True):
            self._remember(group, points, olds)
        return found

    def penalty(self) -> float:
        """sum of strength ||w|| over all vectors, which the returned loss lacks."""
        return sum(
            group["strength"] * float(norm_of(parameter.detach(), group["norm"]).sum())
            for group in self.param_groups
            for parameter in group["params"]
        )

    def _extrapolate(self, group: dict[str, Any]) -> None:
        following = (1 + math.sqrt(1 + 4 * group["t"] ** 2)) / 2
        for parameter in group["params"]:
            previous = self.state[parameter].get("previous")
            if previous is not None:
                parameter.add_(parameter - previous, alpha=(group["t"] - 1) / following)
        group["t"] = following

    def _remember(self, group: dict[str, Any], points: list[Tensor], olds: list[Tensor]) -> None:
        turned = 0.0
        for parameter, point, old in zip(group["params"], points, olds, strict=True):
            self.state[parameter]["previous"] = old
            turned += float(((point - parameter) * (parameter - old)).sum())
        if turned > 0:
            group["t"] = 1.0  # the next factor is (1 - 1) / …: no extrapolation

    def _loss(self, closure: Callable[[], Any]) -> float:
        with torch.enable_grad():
            loss = closure()
        loss = loss.item() if isinstance(loss, Tensor) else float(loss)
        if not math.isfinite(loss):
            raise ConfigError(f"the loss is {loss}; start where it is finite")
        return loss


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise ConfigError("a parameter has no gradient: the closure must call backward on its loss")
    check_finite("the gradient", parameter.grad)
    return parameter.grad.clone()
