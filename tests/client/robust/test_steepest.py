"""Steepest descent: its steps by hand, and the margins that it tends to."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional

import sampler_client as sampler
from sampler_client.robust.margins import margin
from sampler_client.robust.steepest import CoordinateDescent, SignGradientDescent, log_exponential_loss, step_size


def stepped(optimizer, gradient) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.zeros(len(gradient)))
    weight.grad = torch.tensor(gradient)
    optimizer([weight]).step()
    return weight.detach()


def test_a_step_of_sign_gradient_descent():
    assert stepped(lambda p: SignGradientDescent(p, lr=0.1), [1.0, -2.0, 0.0]).tolist() == pytest.approx([-0.3, 0.3, 0])


def test_a_step_of_coordinate_descent_takes_all_that_tie():
    assert stepped(lambda p: CoordinateDescent(p, lr=0.1), [1.0, -3.0, 3.0]).tolist() == pytest.approx([0, 0.3, -0.3])


@pytest.mark.parametrize(
    ("make", "norm"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.5), "l2"),
        (lambda p: CoordinateDescent(p, lr=0.5), "linf"),
        (lambda p: SignGradientDescent(p, lr=0.05), "l1"),
    ],
    ids=["gradient descent", "coordinate descent", "sign gradient descent"],
)
def test_each_resists_the_attack_that_the_theory_names_best(make, norm):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(8, 40, generator=rng, dtype=torch.float64)
    y = torch.sign(x @ torch.randn(40, generator=rng, dtype=torch.float64))

    def trained(optimizer) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))
        steps = optimizer([weight])
        for _ in range(4000):
            steps.zero_grad()
            functional.softplus(-y * (x @ weight)).mean().backward()
            steps.step()
        return weight.detach()

    optimizers = {
        "l2": lambda p: torch.optim.SGD(p, lr=0.5),
        "linf": lambda p: CoordinateDescent(p, lr=0.5),
        "l1": lambda p: SignGradientDescent(p, lr=0.05),
    }
    margins = {name: margin(trained(optimizer), x, y, norm) for name, optimizer in optimizers.items()}
    assert max(margins, key=margins.__getitem__) == norm
    assert margin(trained(make), x, y, norm) == pytest.approx(margins[norm])


def test_the_log_exponential_loss_divides_the_gradient_of_the_exponential_loss_by_it():
    y = torch.tensor([1.0, -1.0, 1.0])
    scores = torch.tensor([0.3, -0.7, -1.2], requires_grad=True)
    loss = log_exponential_loss(scores, y)
    (gradient,) = torch.autograd.grad(loss, scores)
    exponential = torch.exp(-y * scores).mean()
    (plain,) = torch.autograd.grad(exponential, scores)
    assert loss.item() == pytest.approx(exponential.log().item())
    torch.testing.assert_close(gradient, plain / exponential.detach())
    assert log_exponential_loss(torch.tensor([2000.0]), torch.ones(1)).item() == -2000  # where exp(-2000) is 0


@pytest.mark.parametrize(
    ("make", "norm", "size"),
    [
        (torch.optim.SGD, "l2", 1 / 25),
        (CoordinateDescent, "linf", 1 / 16),
        (SignGradientDescent, "l1", 1 / 49),
    ],
)
def test_the_step_size_never_raises_the_loss(make, norm, size):
    x, y = torch.tensor([[3.0, -4.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([1.0, -1.0])
    assert step_size(x, norm) == pytest.approx(size)
    weight = torch.nn.Parameter(torch.tensor([5.0, 5.0], dtype=torch.float64))
    optimizer = make([weight], lr=step_size(x, norm))
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = log_exponential_loss(x @ weight, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(later <= now for now, later in pairwise(losses))
    assert losses[-1] < 0 < losses[0]


def deep() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SignGradientDescent([torch.nn.Parameter(torch.ones(2))], lr=0.0), "lr must be positive, got 0.0"),
        (lambda: SignGradientDescent([{"params": deep(), "lr": -1.0}], lr=1.0), "lr must be positive, got -1.0"),
        (lambda: CoordinateDescent([{"params": deep()[:1], "lr": torch.nan}], lr=1.0), "lr must be positive, got nan"),
        (lambda: CoordinateDescent(torch.nn.Linear(2, 2).parameters(), lr=1.0), "needs a linear model .* got 2"),
        (lambda: CoordinateDescent([{"params": [p]} for p in deep()], lr=1.0), "one weight and no bias, got 2"),
        (lambda: stepped(lambda p: SignGradientDescent(p, lr=1.0), [1.0, torch.nan]), "gradient must be finite; 1 of"),
        (lambda: stepped(lambda p: CoordinateDescent(p, lr=1.0), [1.0, torch.inf]), "gradient must be finite; 1 of"),
        (lambda: log_exponential_loss(torch.ones(2), torch.ones(3)), r"both be \(n,\), got \(2,\) and \(3,\)"),
        (lambda: log_exponential_loss(torch.ones(1), torch.zeros(1)), r"y must be -1 or \+1, got \[0.0\]"),
        (lambda: log_exponential_loss(torch.full((1,), torch.nan), torch.ones(1)), "scores must be finite"),
        (lambda: step_size(torch.zeros(3, 2), "l2"), "all zero, as all 3 examples"),
        (lambda: step_size(torch.ones(3), "l2"), r"x must be \(n, d\).* got shape \(3,\)"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(sampler.ConfigError, match=words):
        call()


@pytest.mark.parametrize("make", [CoordinateDescent, SignGradientDescent])
def test_a_rate_that_a_schedule_has_spoilt_moves_nothing(make):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = make([weight], lr=1.0)
    weight.grad = torch.ones(2)
    for lr in (torch.nan, torch.inf, -1.0):
        optimizer.param_groups[0]["lr"] = lr
        with pytest.raises(sampler.ConfigError, match=rf"lr must lie in \[0, inf\) at every step, got {lr}"):
            optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.0  # where one ends
    optimizer.step()
    assert weight.tolist() == [1, 1]
