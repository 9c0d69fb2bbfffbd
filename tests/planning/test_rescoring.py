"""Which examples are scored next: the formula, its edges, and what it is worth against going through them in order."""

from __future__ import annotations

import numpy as np

from sampler_service.planning.rescoring import SMOOTHING, benefits, most_beneficial

ALL = np.ones(4, bool)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_the_benefit_is_the_weight_times_what_the_age_costs_until_the_next_turn():
    score_n, age_n = floats(1, 2, 3), np.array([4, 1, 2])
    size_n = np.array([1, 2, 3]) + SMOOTHING * 2
    chance_n = 0.5 * size_n / size_n.sum() + 0.5 / 3
    np.testing.assert_allclose(benefits(score_n, age_n), size_n**2 / chance_n * np.array([10, 1, 3]), rtol=1e-6)


def test_older_and_larger_scores_come_first_and_fresh_ones_never():
    assert most_beneficial(benefits(floats(1, 1, 1, 1), np.array([3, 0, 9, -2])), ALL, 4, rng()).tolist() == [2, 0]
    assert most_beneficial(benefits(floats(1, 3, 2, 4), np.full(4, 5)), ALL, 3, rng()).tolist() == [3, 1, 2]


def test_examples_without_a_score_come_before_all_others_in_random_order():
    score_n = np.full(200, np.nan, np.float32)
    score_n[:100] = np.linspace(1, 1000, 100)
    benefit_n = benefits(score_n, np.full(200, 50))
    first = most_beneficial(benefit_n, np.ones(200, bool), 100, rng())
    assert set(first) == set(range(100, 200))
    assert first.tolist() != sorted(first)
    assert set(most_beneficial(benefit_n, np.ones(200, bool), 150, rng())[100:]) <= set(range(100))


def test_without_any_score_all_are_alike():
    for nothing in (np.full(5, np.nan, np.float32), np.zeros(5, np.float32)):
        benefit_n = benefits(nothing, np.ones(5, np.int64))
        assert (benefit_n > 0).all() and len(set(benefit_n)) == 1
    seen = np.concatenate([most_beneficial(np.ones(50), np.ones(50, bool), 5, rng(seed)) for seed in range(40)])
    assert len(set(seen)) > 45, "those of equal benefit are taken at random, not by their ids"


def test_what_is_not_due_is_left_out_whatever_its_benefit():
    due_n = np.array([True, False, True, False])
    assert most_beneficial(np.array([1.0, 9, 2, 8]), due_n, 4, rng()).tolist() == [2, 0]
    assert len(most_beneficial(np.ones(4), np.zeros(4, bool), 4, rng())) == 0


def test_a_score_of_zero_is_looked_at_again_sooner_or_later():
    score_n, seen = floats(0, 1, 1, 1), 0
    age_n = np.ones(4, np.int64)
    for _ in range(60):
        (chosen,) = most_beneficial(benefits(score_n, age_n), ALL, 1, rng())
        seen += chosen == 0
        age_n += 1
        age_n[chosen] = 0
    assert 2 <= seen < 12


def excess(order: str, steps: int = 400, n: int = 300, per_step: int = 10) -> float:
    """Variance that drawing by scores of some age costs, on average over the steps of a random walk of log norms."""
    walk, total = rng(1), 0.0
    level_n = walk.normal(0, 1.5, n)  # the walk stays about each example's own
    log_n = level_n.copy()
    score_n, age_n = np.exp(log_n).astype(np.float32), np.zeros(n, np.int64)
    for step in range(steps):
        log_n = log_n + walk.normal(0, 0.2, n) - 0.02 * (log_n - level_n)
        age_n += 1
        if order == "benefit":
            chosen = most_beneficial(benefits(score_n, age_n), np.ones(n, bool), per_step, rng(step))
        else:
            chosen = (step * per_step + np.arange(per_step)) % n
        score_n[chosen], age_n[chosen] = np.exp(log_n[chosen]), 0
        true_n = np.exp(log_n)
        moments = [(true_n**2 / p).sum() for p in (_mixed(score_n), _mixed(true_n))]
        total += moments[0] / moments[1] - 1
    return total / steps


def _mixed(score_n: np.ndarray) -> np.ndarray:
    return 0.5 * score_n / score_n.sum() + 0.5 / len(score_n)


def test_the_same_number_of_scores_leaves_less_variance_than_going_round_in_order():
    by_benefit, in_order = excess("benefit"), excess("order")
    assert 0 < by_benefit < 0.5 * in_order, (by_benefit, in_order)
