"""Cascading sum augmentation: training on sums of K images and their labels, with K falling to 1 on the way.

A batch of b examples is cut into K groups of m = b // K; mixed example j is sum_k v_k x_(k, j) with target
sum_k v_k onehot(y_(k, j)), trained by binary cross-entropy of each class. At the start all K weights v are equal; stage
by stage the last group fades out, evenly within its stage and to the others alike, until one group is left: plain
training.

Source: Simionescu, "Deep Learning Training Procedure Augmentations", arXiv 2211.14395, and its authors' code. Their
in-stage transfer moves 1 / (K - 1)^2 of the last group's weight and then jumps; here it moves all of it (`methods.md`
4.2).

Shapes: b examples of a batch, K groups, m mixed examples, c classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sampler_client.errors import ConfigError


def group_weights(progress: float, groups: int) -> list[float]:
    """(K,) weights of the groups at a share of the cascade, summing to 1; from 1/K each to one of 1.

    Raises:
        ConfigError: fewer than one group, or a progress that is no share.
    """
    if groups < 1:
        raise ConfigError(f"groups must be at least 1, got {groups}")
    if not 0 <= progress <= 1:
        raise ConfigError(f"progress must lie in [0, 1], got {progress}")
    if groups == 1 or progress == 1:
        return [1.0] + [0.0] * (groups - 1)
    at = progress * (groups - 1)
    gone = int(at)  # whole stages
    active, faded = groups - gone, at - gone
    last = (1 - faded) / active
    return [(1 - last) / (active - 1)] * (active - 1) + [last] + [0.0] * gone


@dataclass(frozen=True, slots=True)
class Mixed:
    """What is trained on."""

    inputs: Tensor
    """(m, …)"""
    targets: Tensor
    """(m, c) multi-hot, each row summing to 1"""
    loss_weights: Tensor
    """(m,) factors on the losses: the mean of those of the examples that each is mixed of, by their share"""


class CascadingSum:
    """Mix batches on the trainer's side; what the sampler chose stays its business.

    Args:
        groups: K at the start, at least 1; an even batch is a multiple of it.
        num_classes: c, at least 2.
    """

    def __init__(self, groups: int, num_classes: int) -> None:
        if groups < 1:
            raise ConfigError(f"groups must be at least 1, got {groups}")
        if num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, got {num_classes}; sums of labels need classes")
        self.groups = groups
        self.num_classes = num_classes

    def __call__(self, inputs: Tensor, labels: Tensor, progress: float, weights: Tensor | None = None) -> Mixed:
        """Mix a batch; its order decides what is mixed with what, and what is left over of b / K is dropped.

        Once a group has no weight its place is taken by others, so that later stages use each example: with a groups
        left, b // a mixed examples come of the batch.

        Args:
            inputs: (b, …) floating point.
            labels: (b,) whole numbers 0 … c - 1.
            progress: share of the cascade, in [0, 1]; at 1 the batch comes as it is.
            weights: (b,) factors on the losses, such as `batch.weights`; absent: ones.

        Raises:
            ConfigError: labels that are no classes, shapes that do not fit, or fewer examples than groups.
        """
        if labels.ndim != 1 or len(inputs) != len(labels) or labels.is_floating_point():
            raise ConfigError(
                f"labels must be whole numbers, one for each of {len(inputs)} examples, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}; targets of a regression can't be mixed into classes"
            )
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= self.num_classes):
            raise ConfigError(
                f"labels must lie in 0 … {self.num_classes - 1}, got {int(labels.min())} … {int(labels.max())}"
            )
        shares = [share for share in group_weights(progress, self.groups) if share > 0]
        size = len(labels) // len(shares)
        if size == 0:
            raise ConfigError(f"{len(labels)} examples are fewer than the {len(shares)} groups that are mixed")
        hot = functional.one_hot(labels, self.num_classes).to(inputs.dtype)
        factors = inputs.new_ones(len(labels)) if weights is None else weights.to(inputs)
        return Mixed(*(_sum(each, shares, size) for each in (inputs, hot, factors)))


def mixed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """(m,) losses of mixed examples: binary cross-entropy, summed over the classes.

    Args:
        logits: (m, c).
        targets: (m, c) in [0, 1].

    Raises:
        ConfigError: shapes that differ.
    """
    if logits.shape != targets.shape or logits.ndim != 2:
        raise ConfigError(
            f"logits and targets must both have shape (examples, classes), got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}"
        )
    return functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").sum(1)


def _sum(values: Tensor, shares: list[float], size: int) -> Tensor:
    return torch.stack([share * values[k * size : (k + 1) * size] for k, share in enumerate(shares)]).sum(0)
