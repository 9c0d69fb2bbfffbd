"""Orders are permutations of the epoch, and put together or first what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service.planning import Planner
from sampler_service.types import NO_ROW, BestOfSome, ByPlace, Nearby, NearTogether, Sweep


def sweep(num_examples: int, order, keep: float = 1.0) -> Sweep:
    ones = np.ones(num_examples, np.float32)
    return Sweep(keep_n=np.full(num_examples, keep), weight_n=ones, order=order)


def batches_of(rates: Sweep, *, batch: int, world: int = 1, seed: int = 3, epoch: int = 0) -> list[list[np.ndarray]]:
    """Ids of each step and rank."""
    planner = Planner(len(rates.keep_n), seed=seed, drop_last=False)
    steps = planner.start_epoch(epoch, rates, batch_size=batch, world=world)
    return [[part.example_ids for part in parts] for parts in planner.plan(0, steps, rates)]


def flat(batches: list[list[np.ndarray]]) -> list[int]:
    return [int(i) for parts in batches for part in parts for i in part]


def bands(num_examples: int, anchors: int, width: int, seed: int = 0) -> Nearby:
    rng = np.random.default_rng(seed)
    anchor_a = rng.permutation(num_examples)[:anchors]
    near_am = np.array([rng.permutation(np.delete(np.arange(num_examples), a))[:width] for a in anchor_a])
    near_am[rng.random(near_am.shape) < 0.1] = NO_ROW
    return Nearby(anchor_a=anchor_a, near_am=near_am.reshape(anchors, -1))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 150), st.integers(1, 20), st.integers(1, 3), st.floats(0, 1), st.floats(0.4, 1))
def test_an_ordered_epoch_has_every_kept_example_once(num_examples, batch, world, share, keep):
    if num_examples < world:
        return
    rng = np.random.default_rng(num_examples)
    nearby = bands(num_examples, max(1, num_examples // 4), min(9, num_examples - 1))
    plain = sorted(flat(batches_of(sweep(num_examples, None), batch=batch, world=world)))
    for order in (
        ByPlace(place_n=rng.random(num_examples)),
        BestOfSome(score_n=rng.normal(size=num_examples).astype(np.float32), attempts=4),
        NearTogether(nearby=nearby, together=3, share=share),
    ):
        found = flat(batches_of(sweep(num_examples, order), batch=batch, world=world))
        assert sorted(found) == plain
        assert found == flat(batches_of(sweep(num_examples, order), batch=batch, world=world)), "a function of the seed"
        if keep < 1 and num_examples > 50:
            kept = sorted(flat(batches_of(sweep(num_examples, None, keep), batch=batch)))
            assert sorted(flat(batches_of(sweep(num_examples, order, keep), batch=batch))) == kept


def test_places_are_the_order():
    place_n = np.random.default_rng(1).random(40)
    assert flat(batches_of(sweep(40, ByPlace(place_n=place_n)), batch=7)) == np.argsort(place_n).tolist()


def means(score_n: np.ndarray, attempts: int, epoch: int = 0) -> np.ndarray:
    rates = sweep(len(score_n), BestOfSome(score_n=score_n, attempts=attempts))
    return np.array([score_n[parts[0]].mean() for parts in batches_of(rates, batch=8, epoch=epoch)])


def test_the_best_of_all_batches_comes_first_and_of_one_any():
    score_n = np.random.default_rng(2).normal(size=320).astype(np.float32)
    best_first = means(score_n, attempts=40)
    assert (np.diff(best_first) <= 0).all()
    alone = means(score_n, attempts=1)
    np.testing.assert_allclose(np.sort(alone), np.sort(best_first), rtol=1e-5, err_msg="the same batches")
    assert (np.diff(alone) > 0).any()
    assert not np.array_equal(means(score_n, attempts=1, epoch=1), alone), "each epoch is shuffled anew"


def test_the_best_of_some_is_as_likely_as_it_should_be():
    """Of 10 batches and 3 candidates the best is among those of the first step in 3 of 10 cases, exactly."""
    score_n = np.repeat(np.arange(10), 8).astype(np.float32)
    score_n[:] = np.random.default_rng(0).normal(size=80)
    firsts = np.array([means(score_n, 3, epoch)[0] == means(score_n, 3, epoch).max() for epoch in range(400)])
    assert firsts.mean() == pytest.approx(0.3, abs=0.08)


def test_anchors_meet_pairs_of_their_bands_in_their_batch():
    num_examples, together = 240, 5
    nearby = bands(num_examples, num_examples // (1 + together), 30)
    near = {int(a): set(row[row != NO_ROW].tolist()) for a, row in zip(nearby.anchor_a, nearby.near_am, strict=True)}

    def met(share: float, world: int = 1) -> float:
        """Mean number of an anchor's band that are in its rank's part."""
        order = NearTogether(nearby=nearby, together=together, share=share)
        parts = [part for parts in batches_of(sweep(num_examples, order), batch=24, world=world) for part in parts]
        return float(
            np.mean([len(near[int(i)] & set(part.tolist())) for part in parts for i in part if int(i) in near])
        )

    by_chance = met(0.0)
    assert met(1.0) > by_chance + 1.5
    assert by_chance < met(0.5) < met(1.0)
    assert met(1.0, world=2) > by_chance + 1.5, "each rank's part is composed by itself"


def test_hard_batches_come_all_through_the_epoch():
    """With fewer anchors than would fill all batches, random ones are not left for the end."""
    nearby = bands(400, 20, 30)
    order = NearTogether(nearby=nearby, together=3, share=1.0)
    anchors = set(nearby.anchor_a.tolist())
    steps = batches_of(sweep(400, order), batch=20)
    counts = np.array([sum(int(i) in anchors for i in parts[0]) for parts in steps])
    where = np.concatenate([np.repeat(step, count) for step, count in enumerate(counts)])
    spread = [np.mean(where)]
    for epoch in range(1, 12):
        steps = batches_of(sweep(400, order), batch=20, epoch=epoch)
        spread.append(np.mean([step for step, parts in enumerate(steps) for i in parts[0] if int(i) in anchors]))
    assert np.mean(spread) == pytest.approx(9.5, abs=2.5)
