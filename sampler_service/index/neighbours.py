"""Nearest rows of a sketch: the redundant neighbours of an example, over one shard and over many.

Shapes: q queries, n rows, d sketch length, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sampler_service.errors import ConfigError
from sampler_service.index import kernels
from sampler_service.types import NO_ROW, Float32, Int64, freeze

_BLOCK = 1 << 16

_LEAST_SQUARE = 1e-20
"""of a length: the squares of numbers that make up smaller ones may underflow"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The k nearest examples of each query, nearest first."""

    example_ids_qk: Int64
    """NO_ROW (-1) where there are fewer than k."""
    distance_qk: Float32
    """Squared L2 distance, 1 - cosine similarity (0 … 2), or less the inner product; infinite where there is no row."""

    def __post_init__(self) -> None:
        freeze(self)


def nearest(
    rows: Callable[[Int64], Float32], row_n: Int64, id_n: Int64, query_qd: Float32, k: int, metric: str = "l2"
) -> Neighbours:
    """Search rows block by block, so that a shard of float16 rows is never held twice.

    Args:
        rows: gives the sketches (b, d) float32 of row numbers (b,).
        row_n: (n,) int64, the rows to search.
        id_n: (n,) int64, their example ids.
        query_qd: (q, d), finite.
        k: at least 1; more than n leaves NO_ROW.
        metric: "l2", "cosine" (of direction alone; a zero sketch is at distance 1 from everything), or "dot" (the
            inner product).

    Raises:
        ConfigError: k < 1 or an unknown metric.
    """
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    if metric not in ("l2", "cosine", "dot"):
        raise ConfigError(f"metric must be 'l2', 'cosine' or 'dot', got {metric!r}")
    query_qd = np.asarray(query_qd, np.float32)
    found = [_none(len(query_qd), k)]
    for start in range(0, len(row_n), _BLOCK):
        block_n = row_n[start : start + _BLOCK]
        distance_qb, index_qb = _search(query_qd, rows(block_n), min(k, len(block_n)), metric)
        found.append(Neighbours(example_ids_qk=id_n[start : start + _BLOCK][index_qb], distance_qk=distance_qb))
    return merge(found, k)


def merge(parts: Sequence[Neighbours], k: int) -> Neighbours:
    """The k nearest over several shards' answers to the same queries; the lower id wins a tie. Pure."""
    id_qm = np.concatenate([part.example_ids_qk for part in parts], axis=1)
    distance_qm = np.concatenate([part.distance_qk for part in parts], axis=1)
    order_qk = np.lexsort((id_qm, distance_qm), axis=1)[:, :k]
    return Neighbours(
        example_ids_qk=np.take_along_axis(id_qm, order_qk, axis=1),
        distance_qk=np.take_along_axis(distance_qm, order_qk, axis=1),
    )


def _search(query_qd: Float32, row_bd: Float32, k: int, metric: str) -> tuple[Float32, Int64]:
    if metric == "l2":
        distance_qk, index_qk = kernels.knn(query_qd, row_bd, k)
        return np.maximum(distance_qk, 0.0), index_qk
    if metric == "dot":
        product_qk, index_qk = kernels.knn(query_qd, row_bd, k, metric="inner_product")
        return -product_qk, index_qk
    cosine_qk, index_qk = kernels.knn(_unit(query_qd), _unit(row_bd), k, metric="inner_product")
    return (1.0 - cosine_qk).astype(np.float32), index_qk


def _unit(row_nd: Float32) -> Float32:
    """Rows of length 1; a zero row stays zero."""
    square_n = np.einsum("nd,nd->n", row_nd, row_nd)
    if ((square_n > _LEAST_SQUARE) & np.isfinite(square_n)).all():  # as nearly always: a pass less than below
        return row_nd * (1.0 / np.sqrt(square_n))[:, None]
    largest_n1 = np.abs(row_nd).max(axis=1, keepdims=True, initial=0.0)  # first, so that no square underflows
    row_nd = row_nd / np.where(largest_n1 > 0.0, largest_n1, 1.0).astype(np.float32)
    length_n1 = np.linalg.norm(row_nd, axis=1, keepdims=True)
    return (row_nd / np.where(length_n1 > 0.0, length_n1, 1.0)).astype(np.float32)


def _none(queries: int, k: int) -> Neighbours:
    return Neighbours(
        example_ids_qk=np.full((queries, k), NO_ROW, np.int64),
        distance_qk=np.full((queries, k), np.inf, np.float32),
    )
