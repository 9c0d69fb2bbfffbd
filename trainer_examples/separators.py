"""Linear classifiers of separable data: the data, the ways to train them, and how far each is from the best there is.

Shapes: n examples, d features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from sampler_client.robust.linear_nets import ConvolutionalNet, FullyConnectedNet, LinearNet
from sampler_client.robust.margins import MinimumNorm, minimum_norm
from sampler_client.robust.norms import DUAL, Norm
from sampler_client.robust.proximal import Proximal
from sampler_client.robust.steepest import CoordinateDescent, SignGradientDescent, log_exponential_loss, step_size
from trainer_examples.data import ImageData

ATTACKS: tuple[Norm, ...] = ("l2", "linf", "l1", "fourier_linf")

OPTIMISERS: dict[str, tuple[Norm, Callable[..., torch.optim.Optimizer]]] = {
    "gradient descent": ("l2", torch.optim.SGD),
    "coordinate descent": ("linf", CoordinateDescent),
    "sign gradient descent": ("l1", SignGradientDescent),
}
"""on the weight itself: the attack that each resists best, and its class"""

NETS: dict[str, type[LinearNet]] = {"convolutional net": ConvolutionalNet, "fully connected net": FullyConnectedNet}
"""trained by gradient descent; `attack` is what each resists best"""

PENALTIES: dict[str, Norm] = {f"{DUAL[attack]} penalty": attack for attack in ATTACKS}
"""explicit regularisation, and the attack against which each is to help"""

THEORY: dict[str, Norm] = {
    **{name: attack for name, (attack, _) in OPTIMISERS.items()},
    **{name: kind.attack for name, kind in NETS.items()},
    **PENALTIES,
}
"""the attack that the theory says each is most robust to"""

STRENGTH = 1e-10
"""of penalties: what is short of the limit falls as slowly as 1 / log(1 / strength)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Examples that a linear classifier separates, and what the best ones would resist."""

    name: str
    x: Tensor
    """(n, d) double"""
    y: Tensor
    """(n,) of -1 and +1"""
    best: dict[Norm, float]
    """largest margin, by the norm of the attack"""
    direction: Tensor
    """(d,) of the largest l2 margin"""
    unseen: tuple[Tensor, Tensor] | None = None
    """other examples of the same kind and their labels"""


def synthetic(ratio: int, seed: int, *, dim: int = 100) -> Problem:
    """The paper's family: x ~ N(0, I), y = +1 with probability sigmoid(<w, x> / T), T = 1e-4, and d / n as given."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(dim // ratio, dim, generator=rng, dtype=torch.float64)
    weight = F.normalize(torch.randn(dim, generator=rng, dtype=torch.float64), dim=0)
    chance = torch.sigmoid(x @ weight / 1e-4)
    y = (torch.rand(len(x), generator=rng, dtype=torch.float64) < chance).double() * 2 - 1
    return _problem(f"d/n = {ratio}", x, y)


def pair(images: ImageData, classes: tuple[int, int], *, examples: int) -> Problem:
    """A linear probe on the pixels: one class against another, on that many training images at most."""
    (x, y), unseen = (_of_classes(part, classes) for part in (images.train, images.test))
    return _problem(f"{images.name} {classes[0]} against {classes[1]}", x[:examples], y[:examples], unseen)


def descend(problem: Problem, name: str, *, steps: int) -> Tensor:
    """(d,) by an optimiser on the log of the exponential loss, which is to divide the steps by the loss."""
    attack, optimizer = OPTIMISERS[name]
    weight = nn.Parameter(torch.zeros(problem.x.shape[1], dtype=torch.float64))
    return _minimised(
        weight,
        optimizer([weight], lr=step_size(problem.x, attack)),
        lambda: log_exponential_loss(problem.x @ weight, problem.y),
        steps,
    )


def descend_plainly(problem: Problem, name: str, *, steps: int, factor: float) -> Tensor:
    """(d,) by an optimiser on the logistic loss, at that factor times the lr that its curvature calls for."""
    attack, optimizer = OPTIMISERS[name]
    weight = nn.Parameter(torch.zeros(problem.x.shape[1], dtype=torch.float64))
    return _minimised(
        weight,
        optimizer([weight], lr=4 * factor * step_size(problem.x, attack)),
        lambda: F.softplus(-problem.y * (problem.x @ weight)).mean(),
        steps,
    )


def descend_through_layers(problem: Problem, name: str, *, steps: int, seed: int) -> Tensor:
    """(d,) that a linear net of two layers is after gradient descent, its steps ten times those of the bound."""
    net = NETS[name](problem.x.shape[1], generator=torch.Generator().manual_seed(seed)).double()
    optimizer = torch.optim.SGD(net.parameters())
    for _ in range(steps):
        optimizer.param_groups[0]["lr"] = 10 * net.step_size(problem.x)
        optimizer.zero_grad()
        log_exponential_loss(net(problem.x), problem.y).backward()
        optimizer.step()
    return net.beta.detach()


def regularise(problem: Problem, name: str, *, steps: int) -> Tensor:
    """(d,) of the least logistic loss plus a small penalty on the norm that is dual to the attack's."""
    weight = nn.Parameter(torch.zeros(problem.x.shape[1], dtype=torch.float64))
    optimizer = Proximal([weight], DUAL[PENALTIES[name]], STRENGTH)
    return _minimised(weight, optimizer, lambda: F.softplus(-problem.y * (problem.x @ weight)).mean(), steps)


def _minimised(
    weight: nn.Parameter, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], steps: int
) -> Tensor:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)  # pyright: ignore[reportCallIssue, reportArgumentType] - torch says float, and takes tensors
    return weight.detach()


def _problem(name: str, x: Tensor, y: Tensor, unseen: tuple[Tensor, Tensor] | None = None) -> Problem:
    found: dict[Norm, MinimumNorm] = {attack: minimum_norm(x, y, attack) for attack in ATTACKS}
    best: dict[Norm, float] = {attack: each.margin for attack, each in found.items()}
    return Problem(name=name, x=x, y=y, best=best, direction=found["l2"].weight, unseen=unseen)


def _of_classes(part: TensorDataset, classes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    images, labels = part.tensors
    mine = (labels == classes[0]) | (labels == classes[1])
    x = images[mine].flatten(1).double()
    return x, (labels[mine] == classes[0]).double() * 2 - 1
