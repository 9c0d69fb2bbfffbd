"""Embeddings of pairs: hinges over the hardest negatives, recall, and a warm-up that does not collapse.

A batch holds b matched pairs (left_i, right_i), such as captions in two languages or images and captions. With s the
cosine of a left and a right embedding, the hinges of pair i are

    [margin - s(i, i) + s(i, j)]+ over the rights j of other pairs, and [margin - s(i, i) + s(j, i)]+ over their lefts.

Summed they are the usual ranking loss; the largest of each kind alone, that of VSE++.

Source: Faghri, Fleet, Kiros and Fidler, "VSE++", BMVC 2018, arXiv 1707.05612, equations 4 to 6. The warm-up and the
detector of collapse are ours: alone, the largest hinges can leave an untrained model where all similarities are equal.

Shapes: b pairs, d numbers of an embedding, n pairs of a whole set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sampler_client.config import check_whole, check_within
from sampler_client.errors import ConfigError


class MaxOfHinges(nn.Module):
    """Per-pair losses between the sum of hinges and the largest ones.

    Args:
        margin: by which a pair's own similarity must exceed the others', > 0; of cosines, which lie in [-1, 1].
        hardness: share of the largest hinges, in [0, 1]: 0 is the sum of hinges, 1 VSE++'s. It may be set anew at any
            step, as by `warm_up`.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(self, margin: float = 0.2, hardness: float = 1.0) -> None:
        super().__init__()
        check_within("margin", margin, "(0, inf)")
        self.margin = margin
        self.hardness = hardness

    @property
    def hardness(self) -> float:
        return self._hardness

    @hardness.setter
    def hardness(self, value: float) -> None:
        check_within("hardness", value, "[0, 1]")
        self._hardness = value

    def forward(self, left: Tensor, right: Tensor, group: Tensor | None = None) -> Tensor:
        """Losses of the pairs, their two kinds of hinges added.

        Args:
            left, right: (b, d) embeddings of the same pairs in the same order; their lengths do not matter.
            group: (b,) whole numbers; pairs of one group are equivalent and no negatives of one another, such as
                captions of one image. Absent: each pair is a group of its own.

        Returns:
            (b,) losses, at least 0. Their sum is the papers' loss; `batch.weighted_mean` takes them as they are.

        Raises:
            ConfigError: shapes that do not fit one another, no pairs, groups that are no whole numbers, or embeddings
                that are not finite, but for float16: one would be the hardest negative of all others.
        """
        _check_sides(left, right, group)
        similarity = functional.normalize(left, dim=1) @ functional.normalize(right, dim=1).T
        own = similarity.diagonal()
        # b numbers, made already. In half precision they may overflow, for which a GradScaler leaves the step out.
        if own.dtype != torch.float16 and not bool(own.isfinite().all()):
            _check_finite(left, right)
        same = torch.eye(len(left), dtype=torch.bool, device=left.device)
        if group is not None:
            same = group.unsqueeze(0) == group.unsqueeze(1)
        of_rights = (self.margin - own.unsqueeze(1) + similarity).clamp(min=0).masked_fill(same, 0.0)
        of_lefts = (self.margin - own.unsqueeze(0) + similarity).clamp(min=0).masked_fill(same, 0.0)
        hardest = of_rights.amax(1) + of_lefts.amax(0)
        if self._hardness == 1:
            return hardest
        summed = of_rights.sum(1) + of_lefts.sum(0)
        return self._hardness * hardest + (1 - self._hardness) * summed


class PairSketches:
    """The embeddings of a batch's pairs as their sketches, for the policy `hard_negative`.

    `batch.report(losses, PairSketches(left, right))`, in a run attached with `sketch_dim` twice that of an embedding,
    or twice `dim`.

    Args:
        left, right: (b, e) embeddings; of lengths other than 1 only the direction counts. Pairs that are not finite
            are counted as unusable, as a sketcher's are, and not sent.
        dim: numbers that each is projected to, at most e, by a random matrix that is the same for all: cheaper to send
            and to search, with products that are off by about 1 / sqrt(dim). None: as they are.

    Raises:
        ConfigError: shapes that do not fit one another, no pairs, or a dim that is none.
    """

    def __init__(self, left: Tensor, right: Tensor, dim: int | None = None) -> None:
        _check_sides(left, right)
        if dim is not None:
            check_whole("dim", dim, 1)
            if dim > left.shape[1]:
                raise ConfigError(f"dim must be 1 to {left.shape[1]}, the length of an embedding, got {dim}")
        units = [functional.normalize(side.detach().float(), dim=1) for side in (left, right)]
        if dim is not None:
            units = [unit @ _projection(left.shape[1], dim).to(unit) for unit in units]
        self.sketches: NDArray[np.float16] = torch.cat(units, dim=1).half().cpu().numpy()
        """(b, 2e)"""
        self.norms = None
        self.usable = np.asarray(np.isfinite(self.sketches).all(axis=1))
        """(b,)"""

    def take(self, coefficients: object = None, /) -> PairSketches:  # noqa: ARG002 - a sketcher's face
        """Itself: embeddings need no backward pass."""
        return self


@cache
def _projection(length: int, dim: int) -> Tensor:
    """(length, dim) normal numbers that keep inner products, in the mean (Johnson and Lindenstrauss, 1984)."""
    generator = torch.Generator().manual_seed(length)
    return torch.randn(length, dim, generator=generator) / math.sqrt(dim)


def warm_up(progress: float, *, begin: float = 0.1, end: float = 0.3) -> float:
    """Hardness at a share of the training: 0 up to `begin`, then rising evenly to 1 at `end`.

    The largest hinges alone can leave an untrained model on a plateau where all similarities are equal.

    Raises:
        ConfigError: not 0 <= begin <= end <= 1, or a progress that is no share.
    """
    for name, value in (("progress", progress), ("begin", begin), ("end", end)):
        check_within(name, value, "[0, 1]")
    if begin > end:
        raise ConfigError(f"warm_up needs begin <= end, got begin {begin} and end {end}")
    if progress >= end:
        return 1.0
    return 0.0 if progress <= begin else (progress - begin) / (end - begin)


class CollapseDetector:
    """Notices when the largest hinges have stood at twice the margin for a while: all similarities are equal.

    Args:
        margin: of the hinges.
        tolerance: relative distance from twice the margin that still counts, > 0.
        patience: batches in a row, at least 1.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(self, margin: float = 0.2, *, tolerance: float = 0.01, patience: int = 50) -> None:
        check_within("margin", margin, "(0, inf)")
        check_within("tolerance", tolerance, "(0, inf)")
        check_whole("patience", patience, 1)
        self._plateau, self._tolerance, self._patience = 2 * margin, tolerance, patience
        self._still = 0

    def collapsed(self, hardest: float) -> bool:
        """Whether it has, taking in a batch's mean loss at hardness 1.

        Raises:
            ConfigError: the loss is not finite.
        """
        if not math.isfinite(hardest):
            raise ConfigError(f"hardest must be a finite loss, got {hardest}: training has diverged")
        near = abs(hardest - self._plateau) <= self._tolerance * self._plateau
        self._still = self._still + 1 if near else 0
        return self._still >= self._patience


@torch.no_grad()
def recall_at_k(
    left: Tensor,
    right: Tensor,
    *,
    ks: Sequence[int] = (1, 5, 10),
    group: Tensor | None = None,
    items: tuple[Tensor, Tensor] | None = None,
    rows: int = 1024,
) -> dict[str, dict[int, float]]:
    """Share of the items whose partner, or an equivalent one, is among the k most similar of the whole other side.

    Args:
        left, right: (n, d) embeddings of the same pairs in the same order.
        ks: each 1 … n.
        group: (n,) as in `MaxOfHinges`.
        items: (n,) and (n,) numbers of the pairs' left and right items, where one is in several pairs, such as an image
            with five captions: pairs with the same number have the same row. Each item is asked about, and found, once.
            None: every pair has its own.
        rows: compared at a time with all; n x rows similarities are held.

    Returns:
        {"left_to_right": {k: share}, "right_to_left": {k: share}}, shares in 0 … 1.

    Raises:
        ConfigError: shapes that do not fit, no pairs, groups that are no whole numbers, a k or rows outside their
            range, or embeddings that are not finite.
    """
    _check_sides(left, right, group)
    check_whole("rows", rows, 1)
    if not isinstance(ks, Iterable):
        raise ConfigError(f"ks must hold one k or more, such as ({ks!r},), got {ks!r}")
    for k in ks:
        check_whole("each of ks", k, 1)
    if not ks or max(ks) > len(left):
        raise ConfigError(f"ks must lie in 1 … {len(left)}, the number of pairs, got {tuple(ks)}")
    firsts = _firsts(items, len(left), left.device)
    _check_finite(left, right)
    group = torch.arange(len(left), device=left.device) if group is None else group
    one, other = (
        (functional.normalize(side[first].float(), dim=1), group[first])
        for side, first in zip((left, right), firsts, strict=True)
    )
    return {"left_to_right": _recalls(one, other, ks, rows), "right_to_left": _recalls(other, one, ks, rows)}


def _firsts(items: tuple[Tensor, Tensor] | None, pairs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(i,) of either side, the first pair of each item."""
    if items is None:
        return torch.arange(pairs, device=device), torch.arange(pairs, device=device)
    found: list[Tensor] = []
    for name, item_n in zip(("left", "right"), items, strict=True):
        if item_n.shape != (pairs,):
            raise ConfigError(
                f"items need one {name} number for each of {pairs} pairs, got shape {tuple(item_n.shape)}"
            )
        _check_numbers(f"items of the {name}", item_n)
        number_n = item_n.unique(return_inverse=True)[1].to(device)
        first = torch.full((int(number_n.max()) + 1,), pairs, device=device)
        found.append(first.scatter_reduce(0, number_n, torch.arange(pairs, device=device), "amin"))
    return found[0], found[1]


def _check_sides(left: Tensor, right: Tensor, group: Tensor | None = None) -> None:
    """Raise ConfigError unless these are the embeddings of some pairs, and a group for each of them."""
    if not (left.is_floating_point() and right.is_floating_point()):
        raise ConfigError(f"left and right must be floating point, got {left.dtype} and {right.dtype}")
    if left.ndim != 2 or left.shape != right.shape or not len(left):
        raise ConfigError(
            f"left and right must both have shape (pairs, dim), of one pair or more; got {tuple(left.shape)} and "
            f"{tuple(right.shape)}"
        )
    if group is not None and group.shape != left.shape[:1]:
        raise ConfigError(f"group needs one number for each of {len(left)} pairs, got shape {tuple(group.shape)}")
    if group is not None:
        _check_numbers("group", group)


def _check_numbers(name: str, number_n: Tensor) -> None:
    """Raise ConfigError for numbers of things that are not whole: a NaN is like nothing, itself included."""
    if number_n.is_floating_point() or number_n.is_complex():
        raise ConfigError(f"{name} must hold whole numbers, got {number_n.dtype}; make it .long()")


def _check_finite(left: Tensor, right: Tensor) -> None:
    """Raise ConfigError for a side with embeddings that are not finite."""
    for name, side in (("left", left), ("right", right)):
        odd = int((~side.isfinite()).any(1).sum())
        if odd:
            raise ConfigError(f"{name} must be finite; {odd} of its {len(side)} embeddings hold NaN or infinity")


def _recalls(
    asked: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], ks: Sequence[int], rows: int
) -> dict[int, float]:
    """Of the items that are asked about: embeddings and groups, on either side."""
    query, query_group = asked
    key, key_group = others
    found = dict.fromkeys(ks, 0)
    for start in range(0, len(query), rows):
        part = slice(start, start + rows)
        nearest = (query[part] @ key.T).topk(min(max(ks), len(key)), dim=1).indices
        right = key_group[nearest] == query_group[part].unsqueeze(1)
        for k in ks:
            found[k] += int(right[:, :k].any(1).sum())
    return {k: count / len(query) for k, count in found.items()}
