"""Scores are held against what was trained on: those that measure something else are found out, right ones are not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.evidence import evidence_of
from sampler_client.pytorch.two_stage.choose import choose
from sampler_service.types import Evidence
from sampler_service.witness import FEWEST_ROWS, FEWEST_STEPS, MOST_ROWS, Witness

B, CANDIDATES = 64, 3
LOSS_N = np.random.default_rng(0).lognormal(-2.0, 1.5, 5000)
"""with a heavy tail"""
NORM_N = 1 - np.exp(-LOSS_N)  # 1 - p of the label, as softmax cross-entropy has it


def told(witness: Witness, scores: str, *, by_norms: bool, steps: int, seed: int, floor: float = 0.0) -> list[bool]:
    """Whether it doubts, after each of so many batches chosen by right or by random scores."""
    rng = np.random.default_rng(seed)
    doubts = []
    for _ in range(steps):
        ids = rng.integers(len(LOSS_N), size=CANDIDATES * B)
        score_c = NORM_N[ids] if scores == "right" else rng.random(len(ids)) ** 8
        choice = choose(score_c, np.ones(len(ids)), B, mix=0.3, rng=rng)
        kept = ids[choice.index]
        said = evidence_of(
            pb.Stage(uniform=choice.moments.uniform, chosen=choice.moments.chosen),
            choice.weights,
            loss_r=LOSS_N[kept].astype(np.float32) + floor,
            norm_r=NORM_N[kept].astype(np.float32) if by_norms else None,
        )
        assert said is not None
        fields = ("rows", "uniform", "chosen", "by_norms", "scored_uniform", "scored_chosen")
        witness.add(Evidence(**{name: getattr(said, name) for name in fields}))
        doubts.append(witness.doubts)
    return doubts


@pytest.mark.parametrize("by_norms", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_random_scores_with_a_heavy_tail_are_found_out_and_right_ones_are_not(by_norms, seed):
    witness = Witness()
    doubts = told(witness, "random", by_norms=by_norms, steps=40, seed=seed)
    assert not any(doubts[: FEWEST_ROWS // B - 1]), "not before there is enough to tell"
    assert doubts[-1] and witness.ratio > 1.5
    assert ("gradient norms" if by_norms else "losses") in witness.finding
    assert "measure something else" in witness.finding
    right = Witness()
    assert not any(told(right, "right", by_norms=by_norms, steps=200, seed=seed))
    assert right.ratio < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_what_is_added_to_all_losses_alike_raises_no_doubts(seed):
    """As by smoothed labels, whose loss stays where there is no gradient any more."""
    assert not any(told(Witness(), "right", by_norms=False, steps=100, seed=seed, floor=2.0))


def test_doubts_are_given_up_for_as_much_evidence_as_they_took():
    witness = Witness()
    told(witness, "random", by_norms=False, steps=40, seed=0)
    witness.forget()
    assert witness.doubts and not witness.heard_enough and math.isnan(witness.ratio)
    doubts = told(witness, "right", by_norms=False, steps=witness.steps_needed, seed=1)
    assert doubts == [True] * (witness.steps_needed - 1) + [False]


def test_norms_are_preferred_and_tell_how_much_the_scores_flatter():
    witness = Witness()
    told(witness, "random", by_norms=False, steps=20, seed=0)
    assert witness.flattery == 1.0, "losses tell which way it goes, and not how far"
    told(witness, "right", by_norms=True, steps=20, seed=0)
    assert not witness.doubts
    assert witness.flattery == pytest.approx(1.0, abs=0.2), "right scores do not"
    random = Witness()
    told(random, "random", by_norms=True, steps=20, seed=0)
    assert random.flattery > 3


PLAIN = Evidence(rows=64, uniform=1.0, chosen=1.5, by_norms=False, scored_uniform=1.0, scored_chosen=0.5)


def test_evidence_that_scatters_too_much_is_none():
    witness = Witness()
    for chosen in [0.2] * (MOST_ROWS // 64 - 1) + [30.0]:
        witness.add(replace(PLAIN, chosen=chosen))
    assert witness.ratio > 1.5 and not witness.doubts


def test_it_looks_back_on_the_latest_rows():
    witness = Witness()
    for chosen in [9.0] * 50 + [0.5] * (MOST_ROWS // 64):
        witness.add(replace(PLAIN, chosen=chosen))
    assert witness.ratio == 0.5
    large = Witness()
    for chosen in [9.0] * 50 + [0.5] * FEWEST_STEPS:
        large.add(replace(PLAIN, chosen=chosen, rows=8 * MOST_ROWS))
    assert large.ratio == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
@pytest.mark.parametrize("name", ["uniform", "chosen", "scored_uniform", "scored_chosen"])
def test_what_is_no_number_is_left_out(name, value):
    witness = Witness()
    for _ in range(50):
        witness.add(replace(PLAIN, **{name: value}))
        witness.add(replace(PLAIN, rows=0))
    assert not witness.heard_enough and not witness.doubts
