"""Exact look-ahead: how far one real optimiser step on each of some batches would lower a target's loss.

Costs a step and two passes over the target for each candidate. It is the reference that the policy `poa` of the service
approximates from sketches, without steps.

Source: Simionescu, "Deep Learning Training Procedure Augmentations", arXiv 2211.14395, and the authors' code
("MaxLossDelta"). Their static target was drawn from the test set; take held-out training examples.

Shapes: r candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sampler_client.errors import ConfigError

Loss = Callable[[nn.Module, Any], Tensor]
"""from a model and a batch to the mean loss of the batch"""


def lookahead_drops(
    model: nn.Module,
    optimizer: Optimizer,
    loss: Loss,
    candidates: Sequence[Any],
    target: Any = None,
    *,
    relative: bool = False,
) -> Tensor:
    """Drop of the target's loss by a step on each candidate; model and optimiser are afterwards as before.

    Args:
        model: in evaluation mode meanwhile, so that no batch statistics move.
        optimizer: of the model, or of some of its parameters; its state makes the steps, momentum and all.
        loss: of a batch.
        candidates: batches, r of them.
        target: batch whose loss is watched; None: the candidate itself.
        relative: drops over the losses before; of a loss that was 0, the drop itself.

    Returns:
        (r,) float64, on the CPU.

    Raises:
        ConfigError: no candidates, an optimiser of other parameters than the model's, or a loss that is no finite
            number.
    """
    if not len(candidates):
        raise ConfigError(f"candidates must hold one batch or more to look ahead with, got {candidates!r}")
    _check_optimizer(model, optimizer)
    drops = []
    with _tried(model, optimizer) as take_back:
        for candidate in candidates:
            watched = candidate if target is None else target
            before = _value(model, loss, watched)
            optimizer.zero_grad(set_to_none=True)
            _checked(loss(model, candidate)).backward()
            optimizer.step()
            drop = before - _value(model, loss, watched)
            drops.append(drop / before if relative and before else drop)
            take_back()
    return torch.tensor(drops, dtype=torch.float64)


@contextmanager
def _tried(model: nn.Module, optimizer: Optimizer) -> Iterator[Callable[[], None]]:
    """Evaluation mode, in which steps can be taken back; afterwards both are as before, gradients and modes too."""
    weights, state = deepcopy(model.state_dict()), deepcopy(optimizer.state_dict())
    gradients = [parameter.grad for parameter in model.parameters()]
    training = [(module, module.training) for module in model.modules()]  # some may be frozen, as by fine-tuning

    def take_back() -> None:
        model.load_state_dict(weights)
        optimizer.load_state_dict(deepcopy(state))

    model.eval()
    try:
        yield take_back
    finally:
        take_back()
        for module, mode in training:
            module.training = mode
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient


def _check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    own = set(model.parameters())
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strange = sum(parameter not in own for parameter in held)
    if strange:
        raise ConfigError(
            f"optimizer must be of the model's parameters, but {strange} of its {len(held)} are of something else; its "
            "steps there would stay"
        )


@torch.no_grad()
def _value(model: nn.Module, loss: Loss, batch: Any) -> float:
    return float(_checked(loss(model, batch)))


def _checked(value: Tensor) -> Tensor:
    if value.numel() != 1 or not torch.isfinite(value):
        raise ConfigError(f"loss must give one finite number for a batch, got {value}")
    return value
