"""Cascading sum augmentation: training on sums of K images and their labels, with K falling to 1 on the way.

A batch of b examples is cut into K groups of m = b // K; mixed example j is sum_k v_k x_(k, j) with target
sum_k v_k onehot(y_(k, j)), trained by binary cross-entropy of each class. At the start all K weights v are equal; stage
by stage the last group fades out, evenly within its stage and to the others alike, until one group is left: plain
training.

Source: Simionescu, "Deep Learning Training Procedure Augmentations", arXiv 2211.14395, and its authors' code. Their
in-stage transfer moves 1 / (K - 1)^2 of the last group's weight and then jumps; here it moves all of it, by our
choice. What they do besides, halving the learning rate at each stage or going on from the best model so far, is left
to the training loop. `tuple_order`, by which the sampler's clusters decide who is mixed with whom, is ours.

A mixed loss is no example's: it can't be reported as one. Reports, and with them the clusters, come of passes over the
examples themselves, such as those of scorers or of a second stage.

Shapes: b examples of a batch, K groups, m mixed examples, c classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sampler_client.config import check_whole, check_within
from sampler_client.errors import ConfigError

WARNED_AFTER = 1000
"""batches in a row without any kinds, more than the first epoch of most runs, in which nobody has a cluster yet"""


def group_weights(progress: float, groups: int) -> list[float]:
    """(K,) weights of the groups at a share of the cascade, summing to 1; from 1/K each to one of 1.

    Raises:
        ConfigError: groups that are no whole number from 1 on, or a progress that is no share.
    """
    check_whole("groups", groups, 1)
    check_within("progress", progress, "[0, 1]")
    if groups == 1 or progress == 1:
        return [1.0] + [0.0] * (groups - 1)
    at = progress * (groups - 1)
    gone = int(at)  # whole stages
    active, faded = groups - gone, at - gone
    last = (1 - faded) / active
    return [(1 - last) / (active - 1)] * (active - 1) + [last] + [0.0] * gone


def tuple_order(kinds: Any, groups: int, tuples: Literal["different", "same"]) -> Tensor:
    """(b,) places of a batch's examples, in the order in which its K slices hold tuples of different or same kinds.

    Example j of each slice is one tuple: of different kinds as far as no kind has more than b // K examples, of the
    same kind as far as its examples come in multiples of K; what is left over is put together as it comes. Among equals
    the batch's own order decides, and the last b % K, which no tuple needs, stay last.

    Args:
        kinds: (b,) whole numbers, such as `batch.cluster_ids`, or labels; a negative one is unknown and like no other.
        groups: K.
        tuples: of what.

    Raises:
        ConfigError: kinds that are no vector of whole numbers, groups below 1, or `tuples` that are neither.
    """
    check_whole("groups", groups, 1)
    kinds = _kinds(kinds)
    if tuples not in ("different", "same"):
        raise ConfigError(f"tuples must be 'different' or 'same', got {tuples!r}")
    size = len(kinds) // groups
    place = torch.arange(len(kinds), device=kinds.device)
    used, rest = place[: size * groups], place[size * groups :]
    _, kind = torch.where(kinds < 0, -1 - place, kinds)[: len(used)].unique(return_inverse=True)
    # Kinds follow one another as they first appear: by their numbers, the same ones would always meet.
    first = torch.full_like(used, len(used)).scatter_reduce(0, kind, used, "amin")
    ordered = first[kind].argsort(stable=True)
    if tuples == "different":  # members of a kind lie side by side, so that a stride of `size` passes over them
        return torch.cat([ordered, rest])
    counts = torch.bincount(kind, minlength=len(used))[kind[ordered]]
    nth = used - torch.searchsorted(first[kind][ordered], first[kind][ordered])  # of its kind
    whole = nth < counts // groups * groups
    ordered = torch.cat([ordered[whole], ordered[~whole]])
    return torch.cat([ordered.reshape(size, groups).T.flatten(), rest])


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
        tuples: whether examples of different or of the same kinds are mixed (`tuple_order`); None: as the batch has
            them. Of one class the labels stay whole; of different clusters the gradients differ most.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(self, groups: int, num_classes: int, *, tuples: Literal["different", "same"] | None = None) -> None:
        check_whole("groups", groups, 1)
        check_whole("num_classes", num_classes, 2)
        if tuples not in (None, "different", "same"):
            raise ConfigError(f"tuples must be 'different', 'same' or None, got {tuples!r}")
        self.groups = groups
        self.num_classes = num_classes
        self.tuples: Literal["different", "same"] | None = tuples
        self._without_kinds = 0  # batches in a row

    def active(self, progress: float) -> int:
        """Groups that still have weight at a share of the cascade: so many examples make one that is trained on."""
        return len(self._shares(progress))

    def __call__(
        self, inputs: Tensor, labels: Tensor, progress: float, weights: Any = None, kinds: Any = None
    ) -> Mixed:
        """Mix a batch; what is left over of b / K is dropped.

        Once a group has no weight its place is taken by others, so that later stages use each example: with a groups
        left, b // a mixed examples come of the batch.

        Args:
            inputs: (b, …) floating point.
            labels: (b,) whole numbers 0 … c - 1.
            progress: share of the cascade, in [0, 1]; at 1 the batch comes as it is.
            weights: (b,) factors on the losses, at least 0, such as `batch.weights`; absent: ones.
            kinds: (b,) as in `tuple_order`, such as `batch.cluster_ids` or the labels; for tuples by kind.

        Raises:
            ConfigError: labels that are no classes, shapes that do not fit, values that are not finite, fewer examples
                than groups, or no kinds where tuples need them.
        """
        shares = self._shares(progress)
        self._check_batch(inputs, labels, len(shares))
        factors = inputs.new_ones(len(labels)) if weights is None else _tensor("weights", weights).to(inputs)
        if factors.shape != labels.shape or not (factors.isfinite() & (factors >= 0)).all():
            raise ConfigError(
                f"weights must be {len(labels)} finite numbers of at least 0, got {tuple(factors.shape)} with "
                f"{_odd(factors)}"
            )
        hot = functional.one_hot(labels.long(), self.num_classes).to(inputs.dtype)
        if self.tuples is not None:
            kinds = None if kinds is None else _kinds(kinds)
            if kinds is None or len(kinds) != len(labels):
                raise ConfigError(
                    f"kinds must be {len(labels)}, one for each example, got {None if kinds is None else len(kinds)}: "
                    f"tuples={self.tuples!r} needs batch.cluster_ids or labels"
                )
            self._heed(kinds)
            order = tuple_order(kinds, len(shares), self.tuples).to(inputs.device)
            inputs, hot, factors = inputs[order], hot[order], factors[order]
        size = len(labels) // len(shares)
        mixed, targets, loss_weights = (_sum(each, shares, size) for each in (inputs, hot, factors))
        return Mixed(mixed, targets.clamp(max=1), loss_weights)  # shares of one class may sum to a bit more by rounding

    def _heed(self, kinds: Tensor) -> None:
        self._without_kinds = self._without_kinds + 1 if (kinds < 0).all() else 0
        if self._without_kinds == WARNED_AFTER:
            warnings.warn(
                f"tuples={self.tuples!r} has had no effect for {WARNED_AFTER} batches: none of their examples is of a "
                "kind. Clusters come of sketches under policy 'gradient_clustering', from scorers or a second stage, "
                "since mixed examples have none of their own; or give labels as kinds",
                stacklevel=3,
            )

    def _shares(self, progress: float) -> list[float]:
        return [share for share in group_weights(progress, self.groups) if share > 0]

    def _check_batch(self, inputs: Tensor, labels: Tensor, groups: int) -> None:
        for name, values in (("inputs", inputs), ("labels", labels)):
            if not isinstance(values, Tensor):
                raise ConfigError(f"{name} must be a tensor, got {type(values).__name__}: torch.as_tensor makes one")
        if labels.ndim != 1 or len(inputs) != len(labels) or labels.is_floating_point():
            raise ConfigError(
                f"labels must be whole numbers, one for each of {len(inputs)} examples, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}; targets of a regression can't be mixed: cascading sums need classes"
            )
        if len(labels) < groups:
            raise ConfigError(f"{len(labels)} examples are fewer than the {groups} groups that are mixed")
        if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
            raise ConfigError(
                f"labels must lie in 0 … {self.num_classes - 1}, got {int(labels.min())} … {int(labels.max())}"
            )
        if not inputs.is_floating_point():
            raise ConfigError(f"inputs must be floating point to be summed by shares, got {inputs.dtype}")
        if not inputs.isfinite().all():
            raise ConfigError(f"inputs must be finite, got {_odd(inputs)}; one such example spoils all of its tuple")


def mixed_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """(m,) losses of mixed examples: binary cross-entropy, summed over the classes.

    Args:
        logits: (m, c); where they are NaN, since training diverged, so are the losses, as torch's own are.
        targets: (m, c) in [0, 1].

    Raises:
        ConfigError: shapes that differ, or targets that are no shares of classes, such as those of a regression.
    """
    if logits.shape != targets.shape or logits.ndim != 2:
        raise ConfigError(
            f"logits and targets must both have shape (examples, classes), got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if not ((targets >= 0) & (targets <= 1)).all():
        raise ConfigError(
            f"targets must lie in [0, 1], got {float(targets.min())} … {float(targets.max())}: they are the shares of "
            "classes that CascadingSum makes of labels, and no regression's"
        )
    return functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").sum(1)


def _kinds(values: Any) -> Tensor:
    """(b,) whole numbers, or ConfigError."""
    kinds = _tensor("kinds", values)
    if kinds.ndim != 1 or kinds.is_floating_point():
        raise ConfigError(f"kinds must be a vector of whole numbers, got {kinds.dtype} of shape {tuple(kinds.shape)}")
    return kinds


def _tensor(name: str, values: Any) -> Tensor:
    """A batch's arrays are read-only, which tensors can't be: those are copied."""
    try:
        return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except TypeError:
        raise ConfigError(f"{name} must be numbers, got {values!r}") from None


def _odd(values: Tensor) -> str:
    """What the first value is that is not finite, or the least."""
    odd = values[~values.isfinite()]
    return f"{float(odd[0])}" if len(odd) else f"a least of {float(values.min())}"


def _sum(values: Tensor, shares: list[float], size: int) -> Tensor:
    return torch.stack([share * values[k * size : (k + 1) * size] for k, share in enumerate(shares)]).sum(0)
