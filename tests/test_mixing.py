"""The share of uniform draws that fresh scores ask for."""

from __future__ import annotations

import numpy as np
import pytest

from sampler_service.mixing import ALPHAS, MEMORY, MixTuner

N = 400


def adapted(old_n: np.ndarray, fresh_n: np.ndarray, *, alpha: float = 0.0, reports: int = 4 * MEMORY) -> float:
    """alpha after reports of fresh norms, proposed by the old ones."""
    rng = np.random.default_rng(0)
    tuner = MixTuner(alpha)
    for _ in range(reports):
        probability_n = (1 - tuner.alpha) * old_n / old_n.mean() + tuner.alpha
        drawn = rng.choice(N, 64, p=probability_n / N)
        weight_r, norm_r = (column[drawn].astype(np.float32) for column in (1 / probability_n, fresh_n))
        tuner.add(probability_n[drawn], weight_r, norm_r, alpha=tuner.alpha)
    return tuner.alpha


def best(old_n: np.ndarray, fresh_n: np.ndarray) -> float:
    """The alpha of least second moment, by the formula over all examples."""
    share_n = old_n / old_n.mean()
    return min(ALPHAS, key=lambda a: float((fresh_n**2 / ((1 - a) * share_n + a)).mean()))


@pytest.mark.parametrize("staleness", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_alpha_rises_with_the_age_of_what_is_known(staleness):
    rng = np.random.default_rng(1)
    old_n = rng.lognormal(0, 1.5, N)
    fresh_n = old_n * np.exp(staleness * rng.standard_normal(N))
    alpha, ideal = adapted(old_n, fresh_n), best(old_n, fresh_n)
    assert abs(ALPHAS.index(alpha) - ALPHAS.index(ideal)) <= 1


def test_fresh_scores_ask_for_little_and_worthless_ones_for_much():
    rng = np.random.default_rng(2)
    old_n = rng.lognormal(0, 1.5, N)
    assert adapted(old_n, old_n) == ALPHAS[0]
    assert adapted(old_n, rng.permutation(old_n)) >= 0.7


def test_an_alpha_that_was_asked_for_stays():
    rng = np.random.default_rng(3)
    old_n = rng.lognormal(0, 1.5, N)
    assert adapted(old_n, old_n, alpha=0.5) == 0.5


def test_a_report_that_is_not_finite_changes_nothing():
    tuner = MixTuner()
    for _ in range(MEMORY):
        tuner.add(np.ones(4), np.ones(4, np.float32), np.full(4, np.nan, np.float32), alpha=0.3)
    assert tuner.alpha == 0.3
