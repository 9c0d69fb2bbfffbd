"""Attacks on any differentiable classifier: steepest ascent of the loss and projection, in every norm.

    delta <- project(delta + step steepest(gradient), eps)

with the direction and the projection of `norms.py`. For Fourier-linf the direction is F^H(u / |u|), u = F gradient, and
the projection clips the modulus of each Fourier coefficient. A linear classifier is attacked exactly by the first step
of size eps.

Source: Madry et al., arXiv 1706.06083, for linf and l2; Faghri et al., arXiv 2102.08868, for Fourier-linf.
Theirs runs in AutoAttack's schedule of steps; here the steps shrink evenly, and the best perturbation of all is kept.

Shapes: b examples, c channels or classes, d features, h x w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sampler_client.config import check_whole, check_within
from sampler_client.errors import ConfigError
from sampler_client.robust.norms import Norm, check_finite, check_norm, check_vectors, norm_of, project, steepest

Losses = Callable[[Tensor, Tensor], Tensor]
"""from outputs (b, …) and labels (b,) to the (b,) losses that the attack makes large"""


def score_gap(outputs: Tensor, y: Tensor) -> Tensor:
    """(b,) by how much wrong answers outweigh the right ones; at least 0 exactly where the classifier errs.

    Unlike cross-entropy it has a gradient however sure the classifier is.

    Args:
        outputs: (b,) scores of a binary classifier, or (b, c) logits.
        y: (b,) of -1 and +1, or of classes 0 … c - 1.

    Raises:
        ConfigError: shapes or labels that do not fit, no rows, or outputs that give NaN, which would pass for right
            answers.
    """
    if outputs.ndim not in (1, 2) or y.shape != outputs.shape[:1] or not len(y):
        raise ConfigError(
            f"outputs must be (b,) or (b, c) and y (b,), of one row or more, got {tuple(outputs.shape)} and "
            f"{tuple(y.shape)}; other models need a loss of their own"
        )
    if outputs.ndim == 1:
        if not (y.abs() == 1).all():
            raise ConfigError(f"y must be -1 or +1 for scores (b,), got {sorted(set(y.tolist()))[:5]}")
        return _gap(-y * outputs)
    num_classes = outputs.shape[1]
    if num_classes < 2 or y.is_floating_point() or int(y.min()) < 0 or int(y.max()) >= num_classes:
        raise ConfigError(f"y must hold classes 0 … {num_classes - 1}, got {sorted(set(y.tolist()))[:5]}")
    own = nn.functional.one_hot(y, num_classes).bool()
    return _gap(outputs.masked_fill(own, -math.inf).amax(1) - outputs[own])


def _gap(gap: Tensor) -> Tensor:
    odd = int(gap.isnan().sum())
    if odd:
        raise ConfigError(f"outputs must have a gap between answers; {odd} of {len(gap)} examples have NaN for one")
    return gap


def attack(  # noqa: PLR0913 - keyword-only
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    norm: Norm,
    eps: float,
    *,
    steps: int = 20,
    bounds: tuple[float, float] | None = None,
    loss: Losses = score_gap,
) -> Tensor:
    """Perturbed examples with ||x' - x|| <= eps that the model errs on, as far as projected gradient ascent finds them.

    It starts at x and does not draw; what it fails to find is no proof that there is none, but for linear models. The
    model is evaluated as it is: set `eval()` before. Gradients of its parameters are left alone.

    Args:
        model: from (b, …) to outputs that `loss` takes, each example by itself.
        x: (b, d) vectors or (b, c, h, w) images. The norm is of each example as one vector but for 2-D ones, which
            are of each channel of h x w pixels: every channel may change by eps.
        y: (b,) labels.
        norm: of perturbations.
        eps: at least 0.
        steps: at least 1; the first is of size eps, the last `steps` times smaller. In l1 a step moves one value: with
            bounds give several times as many as values can change.
        bounds: least and largest value of a pixel; perturbations are shrunk to fit. None: there are none.
        loss: see `score_gap`.

    Returns:
        Of the shape of x: for each example what had the largest loss, x itself included.

    Raises:
        ConfigError: shapes that do not fit, a value outside its range, or a model whose gradients are not finite.
    """
    _check(x, y, norm, eps, steps, bounds)
    delta = torch.zeros_like(x)
    best, highest = x.clone(), x.new_full((len(x),), -math.inf)
    for step in range(steps + 1):
        moved = (x + delta if bounds is None else (x + delta).clamp(*bounds)).requires_grad_()
        losses, gradient = _slope(model, moved, y, loss)
        better = losses > highest
        best[better], highest[better] = moved.detach()[better], losses[better].to(highest)
        if step < steps:
            if bounds is not None:  # what is at its bound can't go on: in l1 a step would be spent on it
                gradient = gradient.where((moved + gradient.sign()).clamp(*bounds) != moved, 0)
            size = eps * (1 - step / steps)
            delta = _within(x, delta + size * _each(gradient, norm, steepest), norm, eps, bounds)
    return best


def _slope(model: Callable[[Tensor], Tensor], moved: Tensor, y: Tensor, loss: Losses) -> tuple[Tensor, Tensor]:
    """(b,) losses, and their gradients, of the shape of `moved`."""
    with torch.enable_grad():
        losses = loss(model(moved), y)
        if losses.shape != y.shape:
            raise ConfigError(f"loss must give one number for each of {len(y)} examples, got {tuple(losses.shape)}")
        (gradient,) = torch.autograd.grad(losses.sum(), moved)
    check_finite("the model's gradient", gradient)
    return losses.detach(), gradient


def _within(x: Tensor, delta: Tensor, norm: Norm, eps: float, bounds: tuple[float, float] | None) -> Tensor:
    """The perturbation in the ball and, if there are bounds, such that x + delta is within them."""
    delta = _each(delta, norm, lambda vectors, norm: project(vectors, norm, eps))
    if bounds is None:
        return delta
    delta = (x + delta).clamp(*bounds) - x
    # Clipping may leave a Fourier ball. What is nearer to x stays within the bounds, as x is.
    return _each(delta, norm, lambda vectors, norm: vectors * _shrink(vectors, norm, eps))


def _shrink(vectors: Tensor, norm: Norm, eps: float) -> Tensor:
    sizes = norm_of(vectors, norm).clamp(min=torch.finfo(vectors.dtype).tiny)
    factors = (eps / sizes).clamp(max=1)
    return factors[..., None, None] if norm.startswith("fourier_2d") else factors[..., None]


def _each(values: Tensor, norm: Norm, change: Callable[[Tensor, Norm], Tensor]) -> Tensor:
    """Change examples as vectors or, for a 2-D norm, channels as images."""
    vectors = values if norm.startswith("fourier_2d") else values.flatten(1)
    return change(vectors, norm).reshape(values.shape)


def _check(x: Tensor, y: Tensor, norm: Norm, eps: float, steps: int, bounds: tuple[float, float] | None) -> None:
    check_norm(norm)
    if x.ndim < 2 or y.shape != x.shape[:1]:
        raise ConfigError(f"x must be (b, …) and y (b,), got {tuple(x.shape)} and {tuple(y.shape)}")
    if norm.startswith("fourier_2d") and x.ndim < 3:
        raise ConfigError(f"x must be images (b, …, h, w) for {norm!r}, got {tuple(x.shape)}")
    check_vectors("x", x, norm)
    check_within("eps", eps, "[0, inf)")
    check_whole("steps", steps, 1)
    if bounds is not None and not bounds[0] <= float(x.min()) <= float(x.max()) <= bounds[1]:
        raise ConfigError(
            f"bounds must hold x, which lies in [{float(x.min()):g}, {float(x.max()):g}]; got {bounds}. They are in "
            "the units of x, which may be normalised pixels"
        )
