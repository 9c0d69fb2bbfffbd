"""Steepest descent: its steps by hand, and the margins that it tends to."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import sampler_client as sampler
from sampler_client.robust.margins import adversarial_risk, margin
from sampler_client.robust.steepest import CoordinateDescent, SignGradientDescent


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


def test_the_adversarial_risk_jumps_where_the_margin_of_an_example_ends():
    weight = torch.tensor([2.0, 0.0])
    x, y = torch.tensor([[1.0, 5.0], [-3.0, 1.0], [-0.5, 0.0]]), torch.tensor([1.0, -1.0, 1.0])
    eps = torch.tensor([0.0, 0.99, 1.01, 2.99, 3.01])
    for norm in ("l1", "l2", "linf"):
        assert adversarial_risk(weight, x, y, norm, eps).tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])
        assert margin(weight, x, y, norm) == pytest.approx(-0.5)
    assert margin(torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 1.0]]), torch.ones(1), "linf") == pytest.approx(1)
    assert margin(torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 1.0]]), torch.ones(1), "l1") == pytest.approx(7 / 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SignGradientDescent([torch.nn.Parameter(torch.ones(2))], lr=0.0), "lr must be positive, got 0.0"),
        (lambda: CoordinateDescent(torch.nn.Linear(2, 2).parameters(), lr=1.0), "one weight, got 2 parameters"),
        (lambda: margin(torch.zeros(2), torch.ones(1, 2), torch.ones(1), "l2"), "a weight of norm 0.0 has no margin"),
        (lambda: margin(torch.ones(2), torch.ones(1, 3), torch.ones(1), "l2"), r"got \(2,\), \(1, 3\)"),
        (lambda: margin(torch.ones(2), torch.ones(1, 2), torch.zeros(1), "l2"), r"-1 or \+1, got \[0.0\]"),
        (lambda: margin(torch.ones(2), torch.full((1, 2), torch.nan), torch.ones(1), "l2"), "must be finite"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(sampler.ConfigError, match=words):
        call()
