"""FISTA: its steps by hand, the conditions that a minimum satisfies, and the margins that small strengths lead to."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import sampler_client as sampler
from sampler_client.robust.margins import margin, minimum_norm
from sampler_client.robust.norms import DUAL, norm_of
from sampler_client.robust.proximal import Proximal


def parameter(*values: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))


def closure_of(weight, optimizer, loss):
    def closure():
        optimizer.zero_grad()
        value = loss(weight)
        value.backward()
        return value

    return closure


def quadratic(weight):
    return (weight - torch.tensor([3.0, -0.5, 1.0])).square().sum() / 2


def test_a_step_on_a_quadratic_is_the_proximal_step_and_is_done():
    weight = parameter(0, 0, 0)
    optimizer = Proximal([weight], "l1", strength=0.75, lr=1.0, growth=1.0)
    loss = optimizer.step(closure_of(weight, optimizer, quadratic))
    assert weight.tolist() == pytest.approx([2.25, 0, 0.25])
    assert loss == pytest.approx((0.75**2 + 0.5**2 + 0.75**2) / 2)
    assert optimizer.penalty() == pytest.approx(0.75 * 2.5)


def test_the_extrapolation_follows_the_recursion():
    weight = parameter(0, 0, 0)
    optimizer = Proximal([weight], "l2", strength=0.0, lr=0.1, growth=1.0)
    target = torch.tensor([3.0, -0.5, 1.0], dtype=torch.float64)
    now = before = torch.zeros(3, dtype=torch.float64)
    for factor in (0.0, 0.0, 0.281754, 0.434043):  # (t_k - 1) / t_{k+1} with t = 1, 1, 1.618, 2.194, 2.750
        optimizer.step(closure_of(weight, optimizer, quadratic))
        ahead = now + factor * (now - before)
        now, before = ahead - 0.1 * (ahead - target), now
    torch.testing.assert_close(weight.detach(), now, rtol=1e-5, atol=0)


def test_too_large_a_step_is_halved_until_the_bound_holds():
    weight = parameter(0, 0, 0)
    optimizer = Proximal([weight], "l2", strength=0.1, lr=64.0, growth=1.0)
    optimizer.step(closure_of(weight, optimizer, lambda w: 4 * quadratic(w)))
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "fourier_l1"])
def test_at_the_minimum_the_gradient_is_the_strength_in_the_dual_norm(norm):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(20, 6, generator=rng, dtype=torch.float64)
    y = torch.sign(torch.randn(20, generator=rng, dtype=torch.float64))
    weight, strength = parameter(*[0.0] * 6), 0.02
    optimizer = Proximal([weight], norm, strength)
    closure = closure_of(weight, optimizer, lambda w: functional.softplus(-y * (x @ w)).mean())
    for _ in range(300):
        optimizer.step(closure)
    closure()
    # 0 is in the subdifferential: ||g||_* = strength and <g, w> = -strength ||w||.
    assert weight.grad is not None
    assert norm_of(weight.grad, DUAL[norm]).item() == pytest.approx(strength, rel=1e-5)
    assert (weight.grad @ weight).item() == pytest.approx(-optimizer.penalty(), rel=1e-5)


@pytest.mark.parametrize("attack", ["l1", "l2", "linf", "fourier_linf"])
def test_a_small_strength_leads_to_the_largest_margin(attack):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5, 20, generator=rng, dtype=torch.float64)
    y = torch.sign(x.sum(1))
    weight = parameter(*[0.0] * 20)
    optimizer = Proximal([weight], DUAL[attack], strength=1e-6)
    closure = closure_of(weight, optimizer, lambda w: functional.softplus(-y * (x @ w)).mean())
    for _ in range(600):
        optimizer.step(closure)
    assert margin(weight.detach(), x, y, attack) > 0.95 * minimum_norm(x, y, attack).margin


def test_the_state_goes_on_where_it_was_saved():
    def run(saved: bool) -> list[float]:
        weight = parameter(0, 0, 0)
        optimizer = Proximal([weight], "l1", strength=0.1, lr=0.1)
        for step in range(6):
            if saved and step == 3:
                state, optimizer = optimizer.state_dict(), Proximal([weight], "l2", strength=0.5)
                optimizer.load_state_dict(state)
            optimizer.step(closure_of(weight, optimizer, quadratic))
        return weight.tolist()

    assert run(saved=True) == run(saved=False)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Proximal([parameter(1)], "l2", strength=-1.0), "strength must be at least 0, got -1.0"),
        (lambda: Proximal([parameter(1)], "l2", strength=1.0, lr=0.0), "lr must be positive, got 0.0"),
        (lambda: Proximal([parameter(1)], "l2", strength=1.0, growth=0.9), "growth must be at least 1, got 0.9"),
        (lambda: Proximal([parameter(1)], "l3", strength=1.0), "norm must be one of"),  # pyright: ignore[reportArgumentType]
        (lambda: Proximal([parameter(torch.nan)], "l2", strength=1.0), "a parameter must be finite"),
        (lambda: Proximal([parameter(1)], "l2", strength=1.0).step(), r"call step\(closure\)"),
        (lambda: Proximal([parameter(1)], "l2", strength=1.0).step(lambda: torch.tensor(torch.nan)), "the loss is nan"),
        (lambda: Proximal([parameter(1)], "l2", strength=1.0).step(lambda: torch.tensor(1.0)), "must call backward"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(sampler.ConfigError, match=words):
        call()
