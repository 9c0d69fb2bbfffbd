"""Hard negatives are the ranks asked for of the whole set, matches left out, whatever the number of shards."""

from __future__ import annotations

import numpy as np
import pytest

from sampler_service.mining import mine
from sampler_service.policies import HardNegative, make_policy
from sampler_service.shards import LocalShards
from sampler_service.types import NO_ROW, ReportBlock

N, E = 90, 6


def embeddings(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    left_ne, right_ne = np.random.default_rng(seed).normal(size=(2, N, E))
    return tuple(side / np.linalg.norm(side, axis=1, keepdims=True) for side in (left_ne, right_ne))


def stored(left_ne: np.ndarray, right_ne: np.ndarray, num_shards: int, ids: np.ndarray | None = None) -> LocalShards:
    shards = LocalShards(N, 2 * E, num_shards, "float32")
    ids = np.arange(N) if ids is None else ids
    shards.update(
        ReportBlock(
            example_ids=ids,
            losses=np.ones(len(ids), np.float32),
            norms=np.full(len(ids), np.nan, np.float32),
            sketches=np.concatenate((left_ne, right_ne), axis=1)[ids].astype(np.float32),
            step=0,
        )
    )
    return shards


def policy(**options: float) -> HardNegative:
    made = make_policy("hard_negative", options)
    assert isinstance(made, HardNegative)
    return made


def test_the_share_of_what_is_composed_rises_once_the_warm_up_is_over():
    assert [policy(begin=0.1, end=0.3).hardness(p) for p in (0, 0.1, 0.2, 0.3, 1)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert [policy(begin=0.2, end=0.2).hardness(p) for p in (0, 0.1, 0.2)] == [0, 0, 1], "all at once"


@pytest.mark.parametrize("num_shards", [1, 4])
@pytest.mark.parametrize("first", [1, 3])
def test_bands_are_the_ranks_of_left_against_right(num_shards, first):
    left_ne, right_ne = embeddings()
    found = mine(
        stored(left_ne, right_ne, num_shards),
        policy(first=first, last=8.0, together=2.0),
        group_n=None,
        seed=1,
        turn=0,
        timeout_s=1.0,
    )
    assert found is not None
    assert len(found.anchor_a) == N // 3 == len(set(found.anchor_a.tolist()))
    for anchor, near_m in zip(found.anchor_a, found.near_am, strict=True):
        similarity_n = right_ne @ left_ne[anchor]
        similarity_n[anchor] = -np.inf
        assert near_m.tolist() == np.argsort(-similarity_n)[first - 1 : 8].tolist()


def test_matches_are_no_negatives_and_the_band_is_filled_from_beyond():
    left_ne, right_ne = embeddings()
    group_n = np.arange(N) // 3  # three captions of one image
    found = mine(
        stored(left_ne, right_ne, 2),
        policy(first=1.0, last=5.0, together=2.0),
        group_n=group_n,
        seed=1,
        turn=0,
        timeout_s=1.0,
    )
    assert found is not None
    for anchor, near_m in zip(found.anchor_a, found.near_am, strict=True):
        similarity_n = right_ne @ left_ne[anchor]
        similarity_n[group_n == group_n[anchor]] = -np.inf
        assert near_m.tolist() == np.argsort(-similarity_n)[:5].tolist()


def test_pairs_without_embeddings_are_no_anchors_and_in_no_band():
    left_ne, right_ne = embeddings()
    known = np.arange(0, N, 9)
    found = mine(
        stored(left_ne, right_ne, 2, known), policy(first=1.0, last=100.0), group_n=None, seed=0, turn=3, timeout_s=1.0
    )
    assert found is None or (set(found.anchor_a.tolist()) <= set(known.tolist()))
    everything = mine(
        stored(left_ne, right_ne, 2, known),
        policy(last=100.0, first=1.0, together=1.0),
        group_n=None,
        seed=0,
        turn=0,
        timeout_s=1,
    )
    assert everything is not None
    near_am = everything.near_am
    assert set(near_am[near_am != NO_ROW].tolist()) <= set(known.tolist())
    assert ((near_am != NO_ROW).sum(axis=1) == len(known) - 1).all()


def test_anchors_are_others_at_each_turn_and_none_without_embeddings():
    shards = stored(*embeddings(), 1)
    first, again, other = (mine(shards, policy(), group_n=None, seed=5, turn=turn, timeout_s=1.0) for turn in (1, 1, 2))
    assert first is not None and again is not None and other is not None
    assert first.anchor_a.tolist() == again.anchor_a.tolist() != other.anchor_a.tolist()
    assert mine(LocalShards(N, 2 * E), policy(), group_n=None, seed=5, turn=1, timeout_s=1.0) is None
