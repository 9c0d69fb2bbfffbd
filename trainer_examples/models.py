"""Small models: two classifiers, and the encoders of a pair's sides.

None has BatchNorm, whose statistics would tie an example's gradient to its batch.

Shapes: n images or pairs, c channels, h x w pixels, t subwords, d features.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

MLP_PIXELS = 28 * 28
"""grey images of at most so many pixels go to the MLP"""


def make_model(image_shape: tuple[int, int, int], num_classes: int, *, width: int = 128) -> nn.Module:
    """A model from images (n, c, h, w) to logits (n, num_classes): an MLP for small grey ones, else a CNN."""
    c, h, w = image_shape
    if c == 1 and h * w <= MLP_PIXELS:
        return mlp(h * w, num_classes, width=width)
    return cnn(c, num_classes)


def mlp(num_inputs: int, num_classes: int, *, width: int = 128, hidden: int = 1) -> nn.Module:
    """`hidden` layers of `width` units under ReLU, and a linear one."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in [num_inputs] + [width] * (hidden - 1):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def cnn(channels: int, num_classes: int, *, width: int = 32) -> nn.Sequential:
    """Three convolutions, each halving the image, with GroupNorm; any image size from 8 x 8 on."""
    sizes = [channels, width, 2 * width, 4 * width]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(sizes[-1], num_classes))


class Pixels(nn.Module):
    """A first layer that turns pixels of 0 … 1 into normalised images, so that attacks on a model are of pixels.

    Args:
        images: (n, c, h, w) normalised ones of which some have the darkest and the brightest value of each channel.
    """

    low: Tensor
    high: Tensor

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", images.amin((0, 2, 3), keepdim=True))
        self.register_buffer("high", images.amax((0, 2, 3), keepdim=True))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.low + pixels * (self.high - self.low)

    def of(self, images: Tensor) -> Tensor:
        """The pixels of such images."""
        return ((images - self.low) / (self.high - self.low)).clamp(0, 1)


def encoder(inputs: Tensor, dim: int, *, width: int = 128) -> nn.Module:
    """A model from one side of pairs to embeddings (n, dim): of captions when `inputs` are whole numbers.

    Args:
        inputs: training rows; (n, t) numbers of subwords or (n, d) features.
        width: numbers of a subword.
    """
    if inputs.is_floating_point():
        return nn.Linear(inputs.shape[1], dim)
    return nn.Sequential(BagOfSubwords(int(inputs.max()) + 1, width), nn.Linear(width, dim))


class BagOfSubwords(nn.Module):
    """The mean of a caption's subwords, from (n, t) numbers, 0 where there is none, to (n, width)."""

    def __init__(self, subwords: int, width: int) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(subwords, width, mode="mean")

    def forward(self, numbers: Tensor) -> Tensor:
        there = numbers > 0
        lengths = there.sum(1)
        return self.bag(numbers[there], lengths.cumsum(0) - lengths)
