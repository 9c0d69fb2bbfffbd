"""Multiplicative and hybrid updates over any torch optimiser.

Any first-order optimiser is a direction m_t and a scale l_t for each coordinate: theta_t = theta_{t-1} - eta m_t l_t.
The multiplicative update moves each coordinate by a share of itself,

    theta_t = theta_{t-1} - eta_out |theta_{t-1}| tanh(eta_in m_t l_t),

so |theta_t - theta_{t-1}| <= eta_out |theta_{t-1}|, and with eta_out < 1 no coordinate ever changes its sign (a
scheduler of eta scales eta_out with it; what comes to 1 is refused). The hybrid update blends it with the additive one,
so that signs can change:

    theta_t = theta_{t-1} - [blend eta_out |theta_{t-1}| tanh(eta_in m_t l_t) + (1 - blend) eta m_t l_t].

Source: Kirtas, Passalis and Tefas, arXiv 2307.07189. The framework and the multiplicative rule are theirs; no code and
no full text were to be had, and the form of the hybrid rule, as well as what happens at zero, are a reconstruction of
ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch.optim import Optimizer

from sampler_client.config import check_scheduled_lr
from sampler_client.errors import ConfigError

_UNFIT = (torch.optim.LBFGS, torch.optim.Adafactor, torch.optim.ASGD)
"""their steps are of the parameters' values too, or of more than one evaluation"""


class Multiplicative(Optimizer):
    """Make the steps of another optimiser multiplicative, or a blend of both kinds.

    It shares the parameter groups of the optimiser that it wraps: schedulers, `zero_grad`, per-group learning rates and
    clipping work as before, and each group may set `eta_out`, `eta_in` and `blend` of its own. Its `state_dict` is that
    of the other optimiser, with these settings in the groups.

    - Signs: with blend 1 and eta_out < 1 a coordinate keeps its sign for ever. Networks whose solution has other signs
      than their initialisation need blend < 1.
    - Zeros: a coordinate that is exactly zero could never move by a share of itself. It takes the additive step instead
      (biases and other parameters that start at zero do so once, and are multiplicative from then on).
    - The other optimiser's `lr` is eta: it sets the additive part, and nothing of the multiplicative one, in which
      eta_in takes its place. A scheduler that lets `lr` fall must reach the multiplicative part, too: eta_out is taken
      times lr / initial lr, lr when it was wrapped. One that lets `lr` rise so far that this comes to 1 is refused.

    Args:
        base: SGD, Adagrad, RMSprop, Adam or any other that computes a step from gradients and its state alone, which
            LBFGS, Adafactor and ASGD do not. Its weight decay must be 0: a decay is no gradient's direction; use
            `weight_decay` here.
        eta_out: largest relative change of a coordinate in one step, in (0, 1).
        eta_in: at which m l the relative change saturates, > 0.
        blend: share of the multiplicative step, in [0, 1]; 1 is the pure rule, 0 the other optimiser's.
        weight_decay: decoupled, theta -= eta weight_decay theta, at least 0.

    Raises:
        ConfigError: a value outside its range, or a base that is none of these.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        eta_out: float = 0.01,
        eta_in: float = 1.0,
        blend: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        if not isinstance(base, Optimizer):
            raise ConfigError(f"base must be a torch optimiser, got {type(base).__name__}")
        if isinstance(base, _UNFIT):
            raise ConfigError(
                f"base must compute its step from gradients alone, which {type(base).__name__} does not: wrap SGD, "
                "Adagrad, RMSprop, Adam or the like"
            )
        settings = {"eta_out": eta_out, "eta_in": eta_in, "blend": blend, "decay": weight_decay}
        # The same dicts: what a scheduler sets here is what the other optimiser reads.
        super().__init__(base.param_groups, settings)
        self.param_groups = base.param_groups  # torch made a list of its own, which groups added later are not in
        self.base = base
        for group in self.param_groups:
            _check(group)
            group["initial_eta"] = float(group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; gradients that are None leave their parameters alone.

        Args:
            closure: evaluates the model and returns the loss; called once, before the step.

        Raises:
            ConfigError: a setting outside its range, or a gradient that is not finite; nothing has moved then. A
                GradScaler leaves such steps out by itself.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            _check(group)
        moved = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        _check_gradients(moved)
        before = [[parameter.clone() for parameter in parameters] for parameters in moved]
        for parameter in chain.from_iterable(moved):
            parameter.zero_()  # from zero the other optimiser's step is exact, however small
        try:
            self.base.step()
        except BaseException:
            for parameter, theta in zip(chain.from_iterable(moved), chain.from_iterable(before), strict=True):
                parameter.copy_(theta)
            raise
        for group, parameters, thetas in zip(self.param_groups, moved, before, strict=True):
            for parameter, theta in zip(parameters, thetas, strict=True):
                parameter.copy_(_moved(group, theta, additive=parameter))
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The other optimiser's, with the settings of each group."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both.

        Raises:
            ConfigError: the state of an optimiser that was not wrapped.
        """
        for index, group in enumerate(state_dict["param_groups"]):
            missing = [name for name in (*_RANGES, "initial_eta") if name not in group]
            if missing:
                raise ConfigError(
                    f"state_dict: group {index} has no {', '.join(missing)}; it is of an optimiser that was not "
                    "wrapped: load it into the base before that is wrapped"
                )
        self.base.load_state_dict(state_dict)
        self.param_groups = self.base.param_groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to both optimisers, with settings of their own or those of the whole.

        Raises:
            ConfigError: a setting outside its range; nothing was added then.
        """
        base = self.__dict__.get("base")
        if base is None:  # torch's own constructor
            super().add_param_group(param_group)
            return
        base.add_param_group({**self.defaults, **param_group})
        added = base.param_groups[-1]
        try:
            _check(added)
        except ConfigError:
            base.param_groups.pop()
            raise
        added["initial_eta"] = float(added["lr"])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base}  # torch keeps what it knows of


def _moved(group: dict[str, Any], theta: torch.Tensor, *, additive: torch.Tensor) -> torch.Tensor:
    """The new values; `additive` is the other optimiser's step, -eta m l."""
    eta, blend, eta_out = float(group["lr"]), float(group["blend"]), _present_eta_out(group)
    # (eta_in / eta) times what the other optimiser did; with eta 0 nothing moves, in either rule.
    relative = torch.tanh(additive * (group["eta_in"] / eta if eta else 0.0))
    step = blend * eta_out * theta.abs() * relative + (1 - blend) * additive
    return theta - eta * group["decay"] * theta + torch.where(theta == 0, additive, step)


def _present_eta_out(group: dict[str, Any]) -> float:
    """eta_out as far as lr has fallen or risen since it was wrapped."""
    initial = group.get("initial_eta", 0.0)
    return group["eta_out"] * (float(group["lr"]) / initial if initial else 1.0)


_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "eta_out": ("(0, 1)", lambda value: 0 < value < 1),
    "eta_in": ("(0, inf)", lambda value: value > 0),
    "blend": ("[0, 1]", lambda value: 0 <= value <= 1),
    "decay": ("[0, inf)", lambda value: value >= 0),
}


def _check_gradients(moved: list[list[torch.Tensor]]) -> None:
    """One norm of all, so that a device is waited for once; which it was is looked up only then."""
    gradients = [parameter.grad for parameters in moved for parameter in parameters if parameter.grad is not None]
    if not gradients or bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
        return
    for group, parameters in enumerate(moved):
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is not None and not gradient.isfinite().all():
                odd = float(gradient[~gradient.isfinite()][0])
                raise ConfigError(
                    f"the gradient of a parameter of shape {tuple(parameter.shape)} in group {group} holds {odd}: "
                    "leave this step out, or lower the learning rate"
                )


def _check(group: dict[str, Any]) -> None:
    for name, (allowed, holds) in _RANGES.items():
        value = group[name]
        if not (isinstance(value, int | float) and math.isfinite(value) and holds(value)):
            shown = "weight_decay" if name == "decay" else name
            raise ConfigError(f"{shown} must lie in {allowed}, got {value!r}")
    if group.get("weight_decay"):
        raise ConfigError(
            f"the wrapped optimiser has weight_decay {group['weight_decay']}, which is no part of its gradients' "
            "direction: set it to 0 there and give it to Multiplicative"
        )
    if "lr" not in group or isinstance(group["lr"], torch.Tensor):
        raise ConfigError("the wrapped optimiser must have a number as its lr in every group")
    check_scheduled_lr(group["lr"])
    if not _present_eta_out(group) < 1:
        raise ConfigError(
            f"eta_out {group['eta_out']:g} times lr / initial lr, {group['lr']:g} / {group['initial_eta']:g}, comes to "
            f"{_present_eta_out(group):g}, at which coordinates change their signs: wrap the optimiser at the largest "
            "lr of its schedule, or lower eta_out"
        )
