"""The models whose steps `benchmarks.sketching` times, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10


def mlp() -> nn.Module:
    widths = [784, 1024, 1024, 1024]
    hidden = [part for i, o in pairwise(widths) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(1024, CLASSES))


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


class Block(nn.Module):
    """The basic residual block of He et al. (2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = norm(outputs), norm(outputs)
        short = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if short else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet(norm: Callable[[int], nn.Module], blocks: int = 2) -> nn.Module:
    """ResNet-(6 blocks + 2) of CIFAR width: so many blocks in each of the stages 16, 32, 64; ResNet-14 by default."""
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), norm(16), nn.ReLU()]
    body: list[nn.Module] = []
    for before, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        body.append(Block(before, width, stride, norm))
        body += [Block(width, width, 1, norm) for _ in range(blocks - 1)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


class Encoder(nn.Module):
    """One pre-norm transformer encoder layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, 2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def transformer() -> nn.Module:
    return nn.Sequential(Encoder(512, 8), Encoder(512, 8), nn.LayerNorm(512), Pool(), nn.Linear(512, CLASSES))


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int


CASES = (
    Case("mlp", mlp, (784,), 128),
    Case("resnet_group_norm", lambda: resnet(group_norm), (3, 32, 32), 64),
    Case("resnet_batch_norm", lambda: resnet(nn.BatchNorm2d), (3, 32, 32), 64),
    Case("transformer", transformer, (64, 512), 8),
)


def examples(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noisy copies of one prototype per class, so that gradients are alike within a class."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (case.batch,), generator=generator)
    prototypes = torch.randn(CLASSES, *case.shape, generator=generator)
    inputs = prototypes[labels] + torch.randn(case.batch, *case.shape, generator=generator)
    return inputs.to(device), labels.to(device)
