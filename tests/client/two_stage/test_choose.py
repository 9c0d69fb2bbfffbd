"""The choice among candidates: exact chances, no bias, and strata where gradients are alike."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sampler_client.pytorch.two_stage.choose import chances, choose, similar_together
from tests.choices import expected_coefficients_of_choice

CASES = {
    "one dominates": ([100.0, 1, 1, 1, 1], [1.0, 1, 1, 1, 1], 2),
    "several certain": ([50.0, 40, 30, 1, 1], [1.0, 1, 1, 1, 1], 4),
    "weights matter": ([1.0, 2, 3, 4], [4.0, 3, 2, 1], 2),
    "zero scores": ([0.0, 0, 0, 0], [1.0, 2, 3, 4], 2),
    "some zero": ([0.0, 0, 5, 0], [1.0, 1, 1, 1], 3),
    "all kept": ([1.0, 5, 2], [1.0, 1, 2], 3),
}


@pytest.mark.parametrize("mix", [0.1, 1.0])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_choice_keeps_the_estimate_of_all_candidates(case, mix):
    score_c, weight_c, keep = np.array(case[0]), np.array(case[1]), case[2]
    expected = expected_coefficients_of_choice(score_c, weight_c, keep, mix=mix)
    np.testing.assert_allclose(expected, weight_c / len(weight_c), rtol=1e-9)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_does_so_in_every_order_by_itself(case):
    """Neighbours in an order of likeness are no matter of chance: nothing may depend on an average over orders."""
    score_c, weight_c, keep = np.array(case[0]), np.array(case[1]), case[2]
    for order in itertools.permutations(range(len(score_c))):
        expected = expected_coefficients_of_choice(score_c, weight_c, keep, mix=0.2, orders=[order])
        np.testing.assert_allclose(expected, weight_c / len(weight_c), rtol=1e-9)


def test_chances_follow_the_scores_are_capped_and_sum_to_the_batch():
    chance_c = chances(np.array([1.0, 2, 3, 94]), np.ones(4), 2, mix=1e-9)
    np.testing.assert_allclose(chance_c, [1 / 6, 2 / 6, 3 / 6, 1], rtol=1e-6)


def test_the_mix_bounds_every_weight():
    rng = np.random.default_rng(0)
    score_c, weight_c = rng.pareto(0.5, 60), rng.uniform(0.3, 3, 60)
    for mix in (0.1, 0.5):
        weights = [choose(score_c, weight_c, 20, mix=mix, rng=rng) for _ in range(50)]
        assert max(float((choice.weights / weight_c[choice.index]).max()) for choice in weights) <= 1 / mix + 1e-6


def test_the_choice_is_a_function_of_its_generator_and_its_order_is_random():
    score_c, weight_c = np.arange(1.0, 31), np.ones(30)
    first, again, other = (
        choose(score_c, weight_c, 10, mix=0.3, rng=np.random.default_rng(seed)).index for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)
    assert (np.diff(first) < 0).any(), "kept examples do not stand in the order of the candidates"


def test_moments_are_those_of_the_draws():
    """`chosen` b is the second moment of the whole two-stage estimate where gradients are orthogonal."""
    rng = np.random.default_rng(3)
    population = rng.exponential(size=40) ** 2
    share = 0.5 * population**0.5 / (population**0.5).sum() + 0.5 / 40
    uniform, proposed, chosen, square = [], [], [], []
    for _ in range(20_000):
        candidate = rng.choice(40, 12, p=share)
        weight_c = 1 / (40 * share[candidate])
        choice = choose(population[candidate], weight_c, 4, mix=0.2, rng=rng)
        uniform.append(choice.moments.uniform)
        proposed.append(choice.moments.proposed)
        chosen.append(choice.moments.chosen)
        size = choice.weights * population[candidate][choice.index]
        square.append(float((size**2).mean()))
    assert np.mean(uniform) == pytest.approx((population**2).mean(), rel=0.02)
    assert np.mean(proposed) == pytest.approx((population**2 / (40 * share)).mean(), rel=0.02)
    assert np.mean(chosen) == pytest.approx(np.mean(square), rel=0.02)


def test_like_candidates_stand_together_and_are_seldom_kept_together():
    rng = np.random.default_rng(0)
    centre_k = 10 * rng.standard_normal((6, 8))
    group_c = np.repeat(np.arange(6), 4)
    rng.shuffle(group_c)
    sketch_cd = centre_k[group_c] + 0.01 * rng.standard_normal((24, 8))
    order = similar_together(sketch_cd, leaf=4)
    assert sorted(order) == list(range(24))
    assert np.count_nonzero(np.diff(group_c[order])) <= 8, "6 groups need 5 borders"
    error = {}
    for name, order_c in (("random", None), ("similar", order)):
        means = [
            sketch_cd[choose(np.ones(24), np.ones(24), 6, mix=1.0, rng=rng, order_c=order_c).index].mean(0)
            for _ in range(300)
        ]
        error[name] = float(np.square(np.array(means) - sketch_cd.mean(0)).sum(1).mean())
    assert error["similar"] < 0.3 * error["random"]


def test_identical_sketches_can_be_ordered():
    assert sorted(similar_together(np.ones((9, 3)), leaf=2)) == list(range(9))
