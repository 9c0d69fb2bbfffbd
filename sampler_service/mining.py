"""Hard negatives: the pairs of the whole set that are near to some of them, by their embeddings.

The row of pair i is (l_i, r_i), its two embeddings side by side, so that the inner product of (0, l_i) with row j is
<l_i, r_j>: one search of the index that sketches are searched with.

Shapes: n pairs, a anchors, q anchors of one search, e numbers of an embedding, d = 2e, m ranks.
"""

from __future__ import annotations

import numpy as np

from sampler_service.policies import HardNegative
from sampler_service.policies.hard_negative import largest_group
from sampler_service.shards import Shards
from sampler_service.types import NO_ROW, Int64, Nearby

QUERIES = 128
"""anchors of one search: reports are served between two"""


def mine(
    shards: Shards, policy: HardNegative, *, group_n: Int64 | None, seed: int, turn: int, timeout_s: float
) -> Nearby | None:
    """The rank bands of some anchors, as many as can be followed by pairs in an epoch; None without embeddings.

    Args:
        shards: where the embeddings are.
        policy: its band, and how many pairs follow an anchor.
        group_n: (n,) pairs of one group match one another and are no negatives; None: each is its own.
        seed, turn: of the choice of anchors, another one at each turn.
        timeout_s: of each call to the shards.

    Raises:
        Unavailable: a shard is away.
    """
    rng = np.random.default_rng([turn, seed])
    count = -(-shards.num_examples // (1 + int(policy.together)))
    anchor_a = rng.permutation(shards.num_examples)[:count]
    spare = 1 if group_n is None else largest_group(group_n)  # the anchor itself, or all that match it
    bands: list[Int64] = []
    known: list[Int64] = []
    for start in range(0, count, QUERIES):
        anchor_q = anchor_a[start : start + QUERIES]
        row_qd = shards.rows(anchor_q, timeout_s)
        seen_q = np.isfinite(row_qd).all(axis=1)
        anchor_q, row_qd = anchor_q[seen_q], row_qd[seen_q]
        if not len(anchor_q):
            continue
        half = shards.dim // 2
        query_qd = np.concatenate((np.zeros_like(row_qd[:, :half]), row_qd[:, :half]), axis=1)
        found = shards.nearest(query_qd, int(policy.last) + spare, "dot", timeout_s)
        bands.append(_band(found.example_ids_qk, anchor_q, group_n, int(policy.first), int(policy.last)))
        known.append(anchor_q)
    if not known:
        return None
    return Nearby(anchor_a=np.concatenate(known), near_am=np.concatenate(bands))


def _band(near_qk: Int64, anchor_q: Int64, group_n: Int64 | None, first: int, last: int) -> Int64:
    """(q, last - first + 1) ranks first … last of those that are no match of the anchor."""
    match_qk = near_qk == anchor_q[:, None]
    if group_n is not None:
        match_qk |= group_n[np.maximum(near_qk, 0)] == group_n[anchor_q][:, None]
    match_qk |= near_qk == NO_ROW
    order_qk = np.argsort(match_qk, axis=1, kind="stable")  # matches last, the others as they were
    ranked_qk = np.take_along_axis(np.where(match_qk, NO_ROW, near_qk), order_qk, axis=1)
    return ranked_qk[:, first - 1 : last]
