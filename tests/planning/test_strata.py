"""Cursors inside strata: without replacement, uniform, and remembered across new strata."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sampler_service.planning.strata import StrataCursors


def cursors_of(stratum_n, seed=0) -> StrataCursors:
    cursors = StrataCursors(len(stratum_n))
    cursors.restratify(np.int32(stratum_n), max(stratum_n) + 1, np.random.default_rng(seed))
    return cursors


@st.composite
def blocks(draw):
    """Strata, and several blocks of counts that fill batches of one size."""
    sizes = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    stratum_n = np.repeat(np.arange(len(sizes)), sizes)
    batch = draw(st.integers(1, 12))
    count = st.lists(st.integers(0, len(sizes) - 1), min_size=batch, max_size=batch)
    batches = draw(st.lists(st.lists(count, min_size=1, max_size=4), min_size=1, max_size=5))
    return stratum_n, [np.array([np.bincount(b, minlength=len(sizes)) for b in block]) for block in batches]


@settings(deadline=None)  # a busy machine is no failure
@given(blocks(), st.integers(0, 5))
def test_counts_are_kept_and_members_are_drawn_equally_often(case, seed):
    stratum_n, counts = case
    cursors, rng = cursors_of(stratum_n, seed), np.random.default_rng(seed)
    copies_n = np.zeros(len(stratum_n), dtype=int)
    for count_sk in counts:
        id_sb = cursors.take(count_sk, rng)
        for ids, count_k in zip(id_sb, count_sk, strict=True):
            np.testing.assert_array_equal(np.bincount(stratum_n[ids], minlength=len(count_k)), count_k)
            for k in np.flatnonzero(count_sk.max(axis=0) <= np.bincount(stratum_n)):
                mine = ids[stratum_n[ids] == k]
                assert len(set(mine)) == len(mine), "no repeat within a batch that the stratum can fill"
        np.add.at(copies_n, id_sb.ravel(), 1)
        for k in range(stratum_n.max() + 1):
            copies = copies_n[stratum_n == k]
            assert copies.max() - copies.min() <= 1, "every member once before any member twice"
            np.testing.assert_array_equal(
                cursors.seen_n[stratum_n == k] | (copies.max() == copies.min()), copies == copies.max()
            )


def test_members_are_uniform_in_every_place_of_the_stream():
    """Each of the first seven draws from a stratum of five, past the end of its cycle, is uniform."""
    counts = np.zeros((7, 5))
    rng = np.random.default_rng(3)
    stratum_n = np.int32([0, 1, 1, 1, 1, 1])
    for _ in range(4000):
        cursors = StrataCursors(6)
        cursors.restratify(stratum_n, 2, rng)
        for place, ids in enumerate(cursors.take(np.tile([0, 1], (7, 1)), rng)):
            counts[place, ids[0] - 1] += 1
    assert min(chisquare(row).pvalue for row in counts) > 0.001


def test_new_strata_go_on_with_the_unseen():
    cursors, rng = cursors_of([0] * 6 + [1] * 6), np.random.default_rng(0)
    first = set(cursors.take(np.array([[2, 4]]), rng).ravel())
    cursors.restratify(np.int32([0, 1] * 6), 2, rng)
    unseen = [[i for i in range(k, 12, 2) if i not in first] for k in (0, 1)]
    drawn = cursors.take(np.array([[len(unseen[0]), len(unseen[1])]]), rng).ravel()
    assert sorted(drawn) == sorted(unseen[0] + unseen[1])
    again = cursors.take(np.array([[6, 6]]), rng).ravel()
    assert sorted(again) == list(range(12)), "then every stratum starts a new cycle"


def test_new_strata_at_every_batch_still_visit_everything():
    """The seen bits alone carry the state: twelve batches of five from one stratum are five cycles."""
    cursors, rng = StrataCursors(12), np.random.default_rng(0)
    copies_n = np.zeros(12, dtype=int)
    for _ in range(12):
        cursors.restratify(np.zeros(12, dtype=np.int32), 1, rng)
        np.add.at(copies_n, cursors.take(np.array([[5]]), rng).ravel(), 1)
    assert (copies_n == 5).all()


def test_many_strata_and_a_tiny_one_among_large_ones():
    """So many strata that their codes take more than 16 bits, and a stratum of one asked for 500 at once."""
    rng = np.random.default_rng(0)
    stratum_n = np.concatenate((rng.integers(1, 40_000, 100_000), [0])).astype(np.int32)
    cursors = StrataCursors(len(stratum_n))
    cursors.restratify(stratum_n, 40_000, rng)
    count_sk = np.zeros((3, 40_000), dtype=np.int64)
    count_sk[:, 0] = 500
    count_sk[np.arange(3), stratum_n[:3]] = 1
    id_sb = cursors.take(count_sk, rng)
    assert (np.sum(id_sb == 100_000, axis=1) == 500).all()
    assert cursors.seen_n[100_000]
