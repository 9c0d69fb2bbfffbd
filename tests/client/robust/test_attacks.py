"""Attacks: exact on linear models, within their ball and the pixels' range, and stronger than chance on deep nets."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

import sampler_client as sampler
from sampler_client.robust.attacks import attack, score_gap
from sampler_client.robust.margins import adversarial_risk
from sampler_client.robust.norms import DUAL, Norm, norm_of

NORMS = get_args(Norm)


def images(count: int = 30) -> torch.Tensor:
    return torch.rand(count, 2, 6, 5, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3))


def sizes(change: torch.Tensor, norm: Norm) -> torch.Tensor:
    """(b,), or (b, c) of each channel for 2-D norms."""
    return norm_of(change if "2d" in norm else change.flatten(1), norm)


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_score_falls_by_the_dual_norm_times_eps(norm):
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 6, 5, generator=rng)
    x, y = images(), torch.sign(torch.randn(30, generator=rng))

    def model(x):
        return (x * weight).sum((1, 2, 3))

    found = attack(model, x, y, norm, 0.7)
    fall = y * (model(x) - model(found))
    expected = 0.7 * sizes(weight[None], DUAL[norm]).sum()
    torch.testing.assert_close(fall, expected.expand(30), rtol=1e-4, atol=1e-4)
    assert (sizes(found - x, norm) <= 0.7 + 1e-4).all()


def test_on_linear_models_the_share_of_errors_is_the_exact_risk():
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(50, 8, generator=rng), torch.randn(8, generator=rng)
    y = torch.sign(x @ weight)
    for norm in ("l1", "l2", "linf", "fourier_linf"):
        for eps in (0.2, 0.5):
            wrong = y * (attack(lambda x: x @ weight, x, y, norm, eps) @ weight) <= 0
            risk = adversarial_risk(weight, x, y, norm, torch.tensor([eps])).item()
            assert 0 < risk < 1
            assert wrong.double().mean().item() == pytest.approx(risk)


@pytest.mark.parametrize("norm", NORMS)
def test_deep_nets_are_fooled_within_the_ball_and_the_range_of_pixels(norm):
    model, x = net(), images()
    y = model(x).argmax(1)  # right on all of them
    eps = {"l1": 12.0, "l2": 2.0, "linf": 0.4, "fourier_2d_l1": 12.0, "fourier_l1": 12.0}.get(norm, 1.0)
    found = attack(model, x, y, norm, eps, steps=60 if norm == "l1" else 20, bounds=(0.0, 1.0))
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert (sizes(found - x, norm) <= eps * (1 + 1e-4)).all()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    size = sizes(noise, norm)
    noise = eps * noise / size.reshape(*size.shape, *[1] * (4 - size.ndim))
    by_chance = score_gap(model((x + noise).clamp(0, 1)), y)
    assert (score_gap(model(found), y) > by_chance).double().mean() > 0.9
    assert (model(found).argmax(1) != y).double().mean() > 2 * (
        model((x + noise).clamp(0, 1)).argmax(1) != y
    ).double().mean()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_l1_attack_goes_on_to_other_pixels_where_one_is_at_its_bound():
    x, weight = torch.full((1, 4), 0.5), torch.tensor([1.0, 2.0, -3.0, 0.5])
    found = attack(lambda x: x @ weight, x, torch.ones(1), "l1", 1.25, steps=40, bounds=(0.0, 1.0))
    assert found.tolist() == [pytest.approx([0.25, 0.0, 1.0, 0.5], abs=0.05)]


def test_more_steps_never_find_less_than_the_examples_themselves_and_no_room_changes_nothing():
    model, x = net(), images()
    y = model(x).argmin(1)
    assert torch.equal(attack(model, x, y, "l2", 0.0), x)
    assert (score_gap(model(attack(model, x, y, "fourier_2d_linf", 1e-3, steps=3)), y) >= score_gap(model(x), y)).all()


def test_the_score_gap_is_positive_where_the_answer_is_wrong():
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    assert score_gap(logits, torch.tensor([1, 2])).tolist() == [-2, 2]
    assert score_gap(torch.tensor([3.0, 3.0]), torch.tensor([1.0, -1.0])).tolist() == [-3, 3]


def test_a_loss_of_ones_own_is_what_the_attack_raises():
    x, y = torch.zeros(1, 2), torch.zeros(1)
    found = attack(lambda x: x, x, y, "linf", 0.5, loss=lambda outputs, _: outputs[:, 0] - outputs[:, 1])
    assert found.tolist() == [[0.5, -0.5]]


ONES, YES = torch.ones(1, 2), torch.ones(1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: attack(lambda x: x.sum(1), ONES, YES, "l2", -1.0), "eps must be at least 0, got -1.0"),
        (lambda: attack(lambda x: x.sum(1), ONES, YES, "l2", 1.0, steps=0), "steps must be at least 1, got 0"),
        (
            lambda: attack(lambda x: x.sum(1), ONES, YES, "l2", 1.0, bounds=(0, 0.5)),
            r"lies in \[1, 1\]; got \(0, 0.5\)",
        ),
        (lambda: attack(lambda x: x.sum(1), ONES, torch.ones(2), "l2", 1.0), r"got \(1, 2\) and \(2,\)"),
        (lambda: attack(lambda x: x.sum(1), ONES, YES, "fourier_2d_linf", 1.0), "must be images"),
        (lambda: attack(lambda x: x.sum(1), ONES * torch.nan, YES, "l2", 1.0), "x must be finite"),
        (lambda: attack(lambda x: x.sum(1), ONES, YES, "l2", 1.0, steps=1.5), "steps must be a whole number, got 1.5"),  # pyright: ignore[reportArgumentType]
        (lambda: attack(lambda x: x.sum(1) * torch.nan, ONES, YES, "l2", 1.0), "1 of 1 examples have NaN"),
        (lambda: attack(lambda x: x.sum(1).sqrt(), 0 * ONES, YES, "l2", 1.0), "the model's gradient must be finite"),
        (lambda: score_gap(torch.tensor([1.0, torch.nan]), torch.ones(2)), "outputs .* 1 of 2 examples have NaN"),
        (lambda: score_gap(torch.tensor([[1.0, torch.nan]]), torch.tensor([0])), "outputs .* 1 of 1 examples have NaN"),
        (lambda: attack(lambda x: x.sum(1), ONES, YES, "l4", 1.0), "norm must be one of"),  # pyright: ignore[reportArgumentType]
        (lambda: attack(lambda x: x, ONES, YES, "l2", 1.0, loss=lambda o, _: o.sum()), "one number for each of 1"),
        (lambda: score_gap(torch.ones(2, 3), torch.tensor([0, 3])), r"classes 0 … 2, got \[0, 3\]"),
        (lambda: score_gap(torch.ones(0, 3), torch.ones(0).long()), r"one row or more, got \(0, 3\) and \(0,\)"),
        (lambda: score_gap(torch.ones(2), torch.tensor([0.0, 1.0])), r"-1 or \+1 for scores"),
        (lambda: score_gap(torch.ones(2, 3, 4), torch.ones(2)), r"outputs must be \(b,\) or \(b, c\)"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(sampler.ConfigError, match=words):
        call()
