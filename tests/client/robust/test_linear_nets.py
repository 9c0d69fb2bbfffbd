"""Linear nets: the vector that they are, and the bias of their architecture."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import sampler_client as sampler
from sampler_client.robust.linear_nets import ConvolutionalNet, FullyConnectedNet
from sampler_client.robust.margins import margin, minimum_norm
from sampler_client.robust.steepest import log_exponential_loss


def filled(net):
    rng = torch.Generator().manual_seed(3)
    for layer in net.layers:
        layer.data = torch.randn(layer.shape, generator=rng, dtype=torch.float64)
    return net


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_a_convolutional_net_is_the_convolutions_of_its_definition(depth):
    net = filled(ConvolutionalNet(7, depth))
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *kernels, dense = (layer.detach() for layer in net.layers)
    hidden = x
    for kernel in kernels:
        hidden = torch.stack([hidden.roll(-i, dims=1) @ kernel for i in range(7)], dim=1) / 7**0.5
    torch.testing.assert_close(net(x).detach(), hidden @ dense)


def test_a_fully_connected_net_is_the_product_of_its_layers():
    net = filled(FullyConnectedNet(5, 4))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden = x
    for layer in net.layers:
        hidden = hidden @ layer.detach()
    torch.testing.assert_close(net(x).detach(), hidden)


@pytest.mark.parametrize("kind", [ConvolutionalNet, FullyConnectedNet])
@pytest.mark.parametrize("depth", [2, 3])
def test_the_step_size_never_raises_the_loss(kind, depth):
    x, y, net = trained(kind, depth, steps=0)
    losses = []
    for _ in range(300):
        losses.append(descend(net, x, y, factor=1.0))
    assert all(later <= now + 1e-12 for now, later in pairwise(losses))
    assert losses[-1] < losses[0]


def test_each_architecture_resists_its_own_attack_best():
    margins = {}
    for kind in (ConvolutionalNet, FullyConnectedNet):
        x, y, net = trained(kind, 2, steps=2000)
        for attack in ("fourier_linf", "l2"):
            margins[kind, attack] = margin(net.beta.detach(), x, y, attack) / minimum_norm(x, y, attack).margin
    assert margins[ConvolutionalNet, "fourier_linf"] > 0.95 > margins[FullyConnectedNet, "fourier_linf"]
    assert margins[FullyConnectedNet, "l2"] > 0.95 > margins[ConvolutionalNet, "l2"]


def trained(kind, depth, steps):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4, 30, generator=rng, dtype=torch.float64)
    y = torch.sign(x.sum(1))
    net = kind(30, depth, generator=rng).double()
    for _ in range(steps):
        descend(net, x, y, factor=10.0)
    return x, y, net


def descend(net, x, y, factor) -> float:
    optimizer = torch.optim.SGD(net.parameters(), lr=factor * net.step_size(x))
    loss = log_exponential_loss(net(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ConvolutionalNet(0), "dim must be at least 1, got 0"),
        (lambda: ConvolutionalNet(4, 1), "depth must be at least 2, got 1"),
        (lambda: ConvolutionalNet(4, 2.5), "depth must be a whole number, got 2.5"),  # pyright: ignore[reportArgumentType]
        (lambda: ConvolutionalNet(2)(torch.full((3, 2), torch.nan)), "x must be finite; 6 of its 6 values"),
        (lambda: FullyConnectedNet(4, scale=0.0), "scale must be positive, got 0.0"),
        (lambda: ConvolutionalNet(4)(torch.ones(2, 3)), r"x must be \(n, 4\), got \(2, 3\)"),
        (lambda: ConvolutionalNet(2).step_size(torch.zeros(3, 2)), "all zero, as all 3 examples"),
        (lambda: ConvolutionalNet(2).step_size(torch.full((3, 2), torch.nan)), "x must be finite"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(sampler.ConfigError, match=words):
        call()
