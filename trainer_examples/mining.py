"""Batches in which pairs meet the hardest negatives of the whole set.

A batch drawn at random holds negatives about as hard as the nearest of 128. Here an anchor and pairs near to it, of
all, share a batch, and the largest hinge does the rest. The very nearest are often equivalent in truth, though not in
name, so ranks are taken from a band.

Source: a reconstruction after VSE++ (Faghri et al., arXiv 1707.05612) and what retrieval by text does with ranks.

Shapes: n pairs, a anchors, k ranks, d numbers of an embedding.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mining:
    """What pairs meet."""

    negatives: int = 7
    """per anchor"""
    band: tuple[int, int] = (5, 100)
    """first and last rank that is taken; 1 is the most similar of the pairs that are not equivalent"""


@torch.no_grad()
def near(left: Tensor, right: Tensor, group: Tensor, anchors: Tensor, band: tuple[int, int], rows: int = 512) -> Rows:
    """(a, k) pairs whose rights have the band's ranks by cosine to the anchors' lefts, nearest first.

    Args:
        left, right: (n, d) embeddings.
        group: (n,) numbers; pairs of the anchor's own have no rank.
        anchors: (a,) pairs.
        rows: anchors compared at a time with all.
    """
    left, right = functional.normalize(left[anchors], dim=1), functional.normalize(right, dim=1)
    first, last = band[0] - 1, min(band[1], len(right) - 1)
    found: list[Tensor] = []
    for start in range(0, len(anchors), rows):
        part = slice(start, start + rows)
        similarity = left[part] @ right.T
        similarity.masked_fill_(group[anchors[part]].unsqueeze(1) == group, -torch.inf)
        found.append(similarity.topk(last, dim=1).indices[:, first:])
    return torch.cat(found).numpy() if found else np.empty((0, last - first), np.int64)


def compose(
    near_ak: Rows, anchors: Rows, pairs: int, *, negatives: int, size: int, rng: np.random.Generator
) -> list[Rows]:
    """Batches of at most `size` that hold every pair once, an anchor beside the nearest pairs that are still free.

    An anchor that another one took is none any more; pairs that nobody took fill the batches at random.
    """
    free = np.ones(pairs, bool)
    cliques: list[Rows] = []
    for anchor, near_k in zip(anchors, near_ak, strict=True):
        if free[anchor]:
            free[anchor] = False
            clique = np.append(anchor, near_k[free[near_k]][:negatives])
            free[clique] = False
            cliques.append(clique)
    # Each clique goes where most room is, so that batches are alike; one that fits nowhere is filled in piecemeal.
    batches: list[list[int]] = [[] for _ in range(-(-pairs // size))]
    sizes = [len(part) for part in np.array_split(np.arange(pairs), len(batches))]
    room = [(-size, b) for b, size in enumerate(sizes)]
    heapq.heapify(room)
    for clique in cliques:
        left, b = room[0]
        if -left < len(clique):
            free[clique] = True
            continue
        batches[b].extend(clique.tolist())
        heapq.heapreplace(room, (left + len(clique), b))
    rest = iter(rng.permutation(np.flatnonzero(free)).tolist())
    return [
        np.array([*batch, *(next(rest) for _ in range(size - len(batch)))])
        for batch, size in zip(batches, sizes, strict=True)
    ]
