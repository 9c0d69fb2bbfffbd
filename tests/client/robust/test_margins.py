"""Margins, adversarial risk and the largest margin that there is, on examples that can be worked out."""

from __future__ import annotations

import sys

import pytest
import torch

import sampler_client as sampler
from sampler_client.robust.margins import adversarial_risk, margin, minimum_norm
from sampler_client.robust.norms import DUAL, norm_of

NORMS = ["l1", "l2", "linf", "fourier_l1", "fourier_linf"]


def test_the_adversarial_risk_jumps_where_the_margin_of_an_example_ends():
    weight = torch.tensor([2.0, 0.0])
    x, y = torch.tensor([[1.0, 5.0], [-3.0, 1.0], [-0.5, 0.0]]), torch.tensor([1.0, -1.0, 1.0])
    eps = torch.tensor([0.0, 0.99, 1.01, 2.99, 3.01])
    for norm in ("l1", "l2", "linf"):
        assert adversarial_risk(weight, x, y, norm, eps).tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])
        assert margin(weight, x, y, norm) == pytest.approx(-0.5)
    assert margin(torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 1.0]]), torch.ones(1), "linf") == pytest.approx(1)
    assert margin(torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 1.0]]), torch.ones(1), "l1") == pytest.approx(7 / 4)


def separable(shape: tuple[int, ...] = (12,), count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(count, *shape, generator=rng, dtype=torch.float64)
    return x, torch.sign(x.flatten(1).sum(1))


def test_the_largest_margin_of_one_example_is_its_own_norm():
    x = torch.tensor([[3.0, -4.0]])
    for norm in NORMS:
        found = minimum_norm(x, torch.ones(1), norm)
        assert found.margin == pytest.approx(norm_of(x, norm).item(), rel=1e-5)
        assert (x.double() @ found.weight).item() == pytest.approx(1)
    assert minimum_norm(x, torch.ones(1), "linf").weight.tolist() == pytest.approx([0, -1 / 4], abs=1e-6)
    assert minimum_norm(x, torch.ones(1), "l1").weight.tolist() == pytest.approx([1 / 7, -1 / 7])


@pytest.mark.parametrize("norm", [*NORMS, "fourier_2d_linf", "fourier_2d_l1"])
def test_no_other_classifier_has_a_larger_margin(norm):
    x, y = separable((3, 4) if "2d" in norm else (12,))
    found = minimum_norm(x, y, norm)
    assert found.margin == pytest.approx(1 / norm_of(found.weight, DUAL[norm]).item())
    assert margin(found.weight, x, y, norm) == pytest.approx(found.margin)
    assert found.bound == pytest.approx(found.margin, rel=1e-4)
    assert found.bound >= found.margin * (1 - 1e-9)
    rng = torch.Generator().manual_seed(1)
    for _ in range(300):
        other = found.weight + 0.05 * torch.randn(found.weight.shape, generator=rng, dtype=torch.float64)
        assert margin(other, x, y, norm) <= found.margin + 1e-6


def test_a_fourier_margin_is_that_of_the_transformed_examples():
    x, y = separable((4,), 3)
    shifted = x.roll(1, dims=1)  # which leaves all moduli alone
    assert minimum_norm(shifted, y, "fourier_linf").margin == pytest.approx(minimum_norm(x, y, "fourier_linf").margin)
    assert minimum_norm(x, y, "fourier_linf").margin >= minimum_norm(x, y, "l2").margin / 2 - 1e-6


def test_cvxpy_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(sampler.ConfigError, match=r"pip install 'gradient-sampler\[robust\]'"):
        minimum_norm(*separable(), "l2")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: margin(torch.zeros(2), torch.ones(1, 2), torch.ones(1), "l2"), "weight must not be zero"),
        (lambda: margin(torch.full((2,), torch.nan), torch.ones(1, 2), torch.ones(1), "l2"), "weight must be finite"),
        (lambda: margin(torch.ones(2), torch.ones(1, 3), torch.ones(1), "l2"), r"got \(2,\), \(1, 3\)"),
        (lambda: margin(torch.ones(2), torch.ones(1, 2), torch.zeros(1), "l2"), r"-1 or \+1, got \[0.0\]"),
        (lambda: margin(torch.ones(2), torch.full((1, 2), torch.nan), torch.ones(1), "l2"), "x must be finite; 2 of"),
        (lambda: margin(torch.ones(2), torch.ones(1, 2), torch.ones(1), "fourier_2d_l1"), r"\(n, h, w\) for a 2-D"),
        (
            lambda: adversarial_risk(torch.ones(2), torch.ones(1, 2), torch.ones(1), "l2", torch.tensor([-1.0])),
            r"eps must be a vector of sizes, at least 0; got \[-1.0\]",
        ),
        (
            lambda: adversarial_risk(torch.ones(2), torch.ones(1, 2), torch.ones(1), "l2", torch.tensor([torch.inf])),
            "eps must be finite; 1 of its 1 values",
        ),
        (lambda: minimum_norm(torch.ones(2, 3), torch.tensor([1.0, -1.0]), "l1"), "separates these 2 examples .infeas"),
        (lambda: minimum_norm(torch.ones(0, 3), torch.ones(0), "l1"), r"x must be .* got torch.float32 of shape \(0"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(sampler.ConfigError, match=words):
        call()
