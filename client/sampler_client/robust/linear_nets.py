"""Linear networks of several layers: they compute <beta, x>, and their architecture decides which beta is found.

A network of L - 1 full-width circular convolutions and a dense layer has

    F(beta) = F(w_1) * … * F(w_L), elementwise, with F the unitary Fourier transform,

and gradient descent on separable data tends to the separator of the least ||F(beta)||_{2/L}: of the least Fourier-l1
norm for L = 2, which is the one most robust to perturbations bounded in Fourier-linf. A fully connected net keeps the
l2 bias of gradient descent on beta itself.

Source: Gunasekar, Lee, Soudry and Srebro, "Implicit bias of gradient descent on linear convolutional networks", arXiv
1806.00468, section 2 and theorems 1 and 2; Faghri et al., arXiv 2102.08868. Convolutions begin as random
unit vectors times a scale and the last layer at zero, as in the latter's code.

Shapes: n examples, d features.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor, nn

from sampler_client.config import check_whole, check_within
from sampler_client.errors import ConfigError
from sampler_client.robust.norms import Norm, check_examples, check_finite, norm_of


class LinearNet(nn.Module):
    """Layers whose product is a vector `beta`; a call gives the (n,) scores of (n, d) examples.

    Args:
        dim: d, at least 1.
        depth: L layers, at least 2.
        scale: of the random layers, > 0; the smaller, the sooner is the bias of the architecture seen.
        generator: of their values; none: torch's own.

    Raises:
        ConfigError: a value outside its range or, from a call, examples of another shape or not finite.
    """

    attack: ClassVar[Norm]
    """that the network of two layers is most robust to when trained by gradient descent"""

    def __init__(
        self, dim: int, depth: int = 2, *, scale: float = 0.1, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        check_whole("dim", dim, 1)
        check_whole("depth", depth, 2)
        check_within("scale", scale, "(0, inf)")
        layers = [torch.randn(self.layer_shape(dim), generator=generator) for _ in range(depth - 1)]
        self.dim = dim
        self.layers = nn.ParameterList([*(scale * layer / layer.norm() for layer in layers), torch.zeros(dim)])

    def layer_shape(self, dim: int) -> tuple[int, ...]:
        """Of each layer but the last, which is (d,)."""
        raise NotImplementedError

    @property
    def beta(self) -> Tensor:
        """(d,) the vector that the network is; gradients flow to the layers."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ConfigError(f"x must be (n, {self.dim}), got {tuple(x.shape)}")
        scores = x @ self.beta
        if not bool(scores.isfinite().all()):  # n numbers, made already; scores of layers that diverged pass
            check_finite("x", x)
        return scores

    @torch.no_grad()
    def step_size(self, x: Tensor) -> float:
        """An `lr` that cannot overshoot now, for `log_exponential_loss`: as the layers grow it falls, so ask anew.

        It bounds the curvature by Cauchy and Schwarz, layer by layer; ten times as much usually does well.

        Args:
            x: (n, d).

        Raises:
            ConfigError: x of another shape, not finite, or all zero.
        """
        check_examples(x, self.attack)
        reach = float(norm_of(x, self.attack).max())
        if reach == 0:
            raise ConfigError(f"x must not be all zero, as all {len(x)} examples are")
        sizes = [float(layer.norm()) for layer in self.layers]
        depth = len(sizes)
        # |d score / d layer| is at most the reach of x times the product of the others' sizes; so for pairs of layers.
        slope = sum(math.prod(sizes[:i] + sizes[i + 1 :]) ** 2 for i in range(depth))
        bend = max(math.prod(rest) for rest in combinations(sizes, depth - 2)) * (depth - 1)
        return 1 / (reach**2 * slope + reach * bend)


class ConvolutionalNet(LinearNet):
    """Circular convolutions as wide as the input, h_l[i] = sum_k w_l[k] h_{l-1}[i + k] / sqrt(d), and a dense layer."""

    attack = "fourier_linf"

    def layer_shape(self, dim: int) -> tuple[int, ...]:
        return (dim,)

    @property
    def beta(self) -> Tensor:
        transformed = torch.fft.fft(torch.stack([*self.layers]), norm="ortho")
        return torch.fft.ifft(transformed.prod(0), norm="ortho").real


class FullyConnectedNet(LinearNet):
    """Dense layers of d units each and one output, without biases: beta = W_1 … W_{L-1} w_L."""

    attack = "l2"

    def layer_shape(self, dim: int) -> tuple[int, ...]:
        return (dim, dim)

    @property
    def beta(self) -> Tensor:
        *matrices, vector = self.layers
        for matrix in reversed(matrices):
            vector = matrix @ vector
        return vector
