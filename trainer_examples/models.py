"""Small models: two classifiers and how good they are, the encoders of a pair's sides, and a language model.

None has BatchNorm, whose statistics would tie an example's gradient to its batch.

Shapes: n images, pairs or texts, c channels, h x w pixels, t subwords or tokens, d features.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

MLP_PIXELS = 28 * 28
"""grey images of at most so many pixels go to the MLP"""
EVALUATED_ROWS = 1024
"""images that are evaluated at once"""


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


class CausalTransformer(nn.Module):
    """A decoder from tokens (n, t) to logits (n, t, vocabulary), normalised before each part, as GPT-2.

    Its attention is made of nn.Linear, whose gradients can be sketched; nn.MultiheadAttention's can't.
    """

    def __init__(self, vocabulary: int, length: int, *, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        # The places of each text, not one row for all: a gradient belongs to an example.
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places(places))))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.before_attention(x))
        return x + self.mlp(self.before_mlp(x))

    def _attention(self, x: Tensor) -> Tensor:
        query, key, value = self.inward(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.outward(seen.transpose(1, 2).flatten(2))


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Share of images (n, c, h, w) with labels (n,) whose class a model finds."""
    images, labels = data.tensors
    logits = logits_of(model, images)
    return (logits.argmax(1) == labels.to(logits.device)).float().mean().item()


def full_loss(model: nn.Module, data: TensorDataset) -> float:
    """Mean loss over a whole set of images (n, c, h, w) with labels (n,)."""
    images, labels = data.tensors
    logits = logits_of(model, images)
    return functional.cross_entropy(logits, labels.to(logits.device)).item()


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """(n, num_classes) where the model is, which is in evaluation mode meanwhile and afterwards as it was."""
    device = next(model.parameters()).device
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return torch.cat([model(part.to(device)) for part in images.split(EVALUATED_ROWS)])
    finally:
        for module in trained:
            module.training = True
