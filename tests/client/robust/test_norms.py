"""Norms, projections and directions, against their definitions."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch

import sampler_client as sampler
from sampler_client.robust.norms import DUAL, Norm, norm_of, project, prox, steepest

NORMS = get_args(Norm)
FLAT = [norm for norm in NORMS if "2d" not in norm]


def vectors(norm: str, count: int = 20, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    shape = (count, 3, 4) if "2d" in norm else (count, 7)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).flatten(1).sum(1)


def test_norms_of_a_vector_that_can_be_worked_out():
    x = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    expected = {"l1": 7, "l2": 5, "linf": 4, "fourier_l1": (1 + 7) / 2**0.5, "fourier_linf": 7 / 2**0.5}
    for norm, size in expected.items():
        assert norm_of(x, norm).item() == pytest.approx(size)


@pytest.mark.parametrize("norm", NORMS)
def test_the_steepest_direction_reaches_the_dual_norm_and_nothing_in_the_ball_exceeds_it(norm):
    gradient = vectors(norm)
    direction = steepest(gradient, norm)
    assert norm_of(direction, norm).tolist() == pytest.approx([1.0] * len(gradient))
    torch.testing.assert_close(dot(gradient, direction), norm_of(gradient, DUAL[norm]))
    for seed in range(1, 50):
        other = vectors(norm, seed=seed)
        other = other / norm_of(other, norm).reshape(-1, *[1] * (other.ndim - 1))
        assert (dot(gradient, other) <= norm_of(gradient, DUAL[norm]) + 1e-9).all()


@pytest.mark.parametrize(("norm", "radius"), list(product(NORMS, [0.0, 0.5, 2.0, 100.0])))
def test_a_projection_is_the_nearest_point_of_the_ball(norm, radius):
    points = vectors(norm)
    nearest = project(points, norm, radius)
    assert (norm_of(nearest, norm) <= radius + 1e-9).all()
    inside = norm_of(points, norm) <= radius
    torch.testing.assert_close(nearest[inside], points[inside])
    away = points - nearest
    for seed in range(1, 30):  # no point of the ball lies beyond the plane through the nearest one
        other = project(vectors(norm, seed=seed) * 3, norm, radius)
        assert (dot(away, other - nearest) <= 1e-9).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_proximal_step_minimises_what_it_says(norm):
    points, strength = vectors(norm), 0.7
    found = prox(points, norm, strength)

    def value(x: torch.Tensor) -> torch.Tensor:
        return strength * norm_of(x, norm) + dot(x - points, x - points) / 2

    for seed in range(1, 40):
        assert (value(found) <= value(found + 0.1 * vectors(norm, seed=seed)) + 1e-9).all()


def test_a_proximal_step_of_l1_is_the_soft_threshold():
    x = torch.tensor([3.0, -0.5, 1.0, -2.0])
    torch.testing.assert_close(prox(x, "l1", 1.0), torch.tensor([2.0, 0.0, 0.0, -1.0]))


@pytest.mark.parametrize("norm", FLAT)
def test_zero_has_a_projection_and_a_direction_of_numbers(norm):
    zero = torch.zeros(2, 5)
    assert torch.isfinite(steepest(zero, norm)).all()
    assert torch.equal(project(zero, norm, 1.0), zero)


def test_bad_input_is_refused_in_words():
    with pytest.raises(sampler.ConfigError, match=r"norm must be one of .* got 'l3'"):
        norm_of(torch.ones(2), "l3")  # pyright: ignore[reportArgumentType]
    with pytest.raises(sampler.ConfigError, match="radius must be at least 0, got -1"):
        project(torch.ones(2), "l2", -1.0)
    with pytest.raises(sampler.ConfigError, match="strength must be at least 0, got nan"):
        prox(torch.ones(2), "l2", float("nan"))
    with pytest.raises(sampler.ConfigError, match="gradient must be finite; 1 of its 2 values"):
        steepest(torch.tensor([1.0, torch.inf]), "l2")
    with pytest.raises(sampler.ConfigError, match=r"shape \(…, h, w\) for 'fourier_2d_l1', got torch.float32 of shape"):
        norm_of(torch.ones(2), "fourier_2d_l1")
    with pytest.raises(sampler.ConfigError, match=r"got torch.int64 of shape \(2,\)"):
        norm_of(torch.tensor([1, 2]), "l2")
