"""Unbiasedness by enumeration, through the planner itself.

Every random choice of the planner is replaced by all its outcomes in turn, with their probabilities:
permutations, keep coins and dealing by listing them, the systematic offset by the intervals between the
points where the outcome can change (fractional parts of batch size times a sum of rates, over all subsets, so
for any order). What comes out is the exact expected coefficient of each example's gradient in the batch mean,
sum(w_i g_i) / b: it must be 1/n.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from math import factorial

import numpy as np
import pytest

from sampler_service.planning import Planner
from sampler_service.planning.randomness import Stream
from sampler_service.policies import POLICIES, make_policy
from sampler_service.types import NO_CLUSTER, Rates, StratifiedDraw, Sweep, TableView, WeightedDraw


class Choices:
    """Walks depth first through every sequence of choices that a function makes."""

    def __init__(self) -> None:
        self._path: list[list[int]] = []  # [chosen, number of options]
        self._depth = 0
        self.probability = 1.0

    def pick(self, probabilities) -> int:
        if self._depth == len(self._path):
            self._path.append([0, len(probabilities)])
        chosen = self._path[self._depth][0]
        self._depth += 1
        self.probability *= probabilities[chosen]
        return chosen

    def runs(self) -> Iterator[None]:
        while True:
            self._depth, self.probability = 0, 1.0
            yield
            while self._path and self._path[-1][0] + 1 == self._path[-1][1]:
                self._path.pop()
            if not self._path:
                return
            self._path[-1][0] += 1


class Enumerated:
    """Stands in for numpy's Generator where the planner asks for one; every draw is a choice."""

    def __init__(self, choices: Choices, stream: Stream, rates: Rates, points: int) -> None:
        self._choices, self._stream, self._rates = choices, stream, rates
        self._vectors = self._matrices = 0
        self._cuts = _cuts(rates, points)

    def _permuted(self, values: np.ndarray) -> np.ndarray:
        count = factorial(len(values))
        chosen = self._choices.pick([1 / count] * count)
        return values[list(next(itertools.islice(itertools.permutations(range(len(values))), chosen, None)))]

    def permutation(self, values) -> np.ndarray:
        return self._permuted(np.arange(values) if isinstance(values, int) else np.asarray(values))

    def permuted(self, values: np.ndarray, axis: int) -> np.ndarray:
        assert axis == 1
        self._matrices += 1
        if isinstance(self._rates, WeightedDraw) and self._matrices == 2:
            return values  # the order inside a batch changes no sum
        return np.array([self._permuted(row) for row in values])

    def _offset(self) -> float:
        lengths = np.diff(self._cuts)
        chosen = self._choices.pick(lengths)
        return (self._cuts[chosen] + self._cuts[chosen + 1]) / 2

    def random(self, size=None):
        if size is None:
            return self._offset()
        if isinstance(size, tuple):  # keys of the order of the strata, batch by batch
            return np.array([np.argsort(self._permuted(np.arange(size[1]))) / size[1] for _ in range(size[0])])
        if self._stream == Stream.KEEP:
            return np.array([self._coin(keep) for keep in self._rates.keep_n])
        self._vectors += 1
        if self._vectors == 1:
            return np.array([self._offset() for _ in range(size)])
        return np.zeros(size)  # the order inside a batch changes no sum

    def _coin(self, keep: float) -> float:
        return 0.0 if keep == 1 or self._choices.pick([keep, 1 - keep]) == 0 else np.nextafter(1, 0)


def _cuts(rates: Rates, points: int) -> np.ndarray:
    """Offsets in [0, 1] at which a point may pass from one example or stratum to the next, in any order."""
    if isinstance(rates, Sweep):
        return np.array([0.0, 1.0])
    rate = rates.probability_n if isinstance(rates, WeightedDraw) else rates.rate_k[rates.rate_k > 0]
    sums = [points * sum(part) for r in range(len(rate) + 1) for part in itertools.combinations(rate, r)]
    return np.unique(np.round(np.concatenate((np.mod(sums, 1), [0, 1])), 12))


def expected_coefficients(
    rates: Rates, monkeypatch, *, num_examples: int, batch: int, steps: int, weigh: Callable = lambda w: w
) -> np.ndarray:
    """(steps, n): the expected coefficient of every example in each batch's mean; for sweeps of the epoch's
    sum / n."""
    choices = Choices()
    points = batch * (steps if isinstance(rates, WeightedDraw) else 1)

    def generator(stream, **_position) -> Enumerated:
        return Enumerated(choices, stream, rates, points)

    monkeypatch.setattr("sampler_service.planning.draws.generator", generator)
    monkeypatch.setattr("sampler_service.planning.sweep.generator", generator)
    sweep = isinstance(rates, Sweep)
    expected = np.zeros((1 if sweep else steps, num_examples))
    total = 0.0
    for _ in choices.runs():
        planner = Planner(num_examples, seed=0, drop_last=False)
        planned = planner.start_epoch(0, rates, batch_size=batch, world=1)
        batches = planner.plan(0, planned if sweep else steps, rates)
        estimate = np.zeros_like(expected)
        for step, (rows,) in enumerate(batches):
            share = weigh(rows.weights) / (num_examples if sweep else len(rows))
            np.add.at(estimate[0 if sweep else step], rows.example_ids, share)
        expected += choices.probability * estimate
        total += choices.probability
    assert total == pytest.approx(1, abs=1e-9), "the enumeration covers everything once"
    return expected


def table(num_examples: int, **columns) -> TableView:
    defaults = {
        "loss_n": np.arange(num_examples, dtype=np.float32) ** 2,
        "norm_n": np.float32([0, 1, 3, 12, 2][:num_examples]),
        "step_n": np.zeros(num_examples, dtype=np.int64),
        "cluster_n": np.int32([0, 1, 1, 1, 1][:num_examples]),
        "cluster_sse_k": np.array([1.0, 5.0]),
        "reference_loss_n": np.zeros(num_examples, dtype=np.float32),
    }
    return TableView(**(defaults | columns))


THREE_STRATA = np.int32([0, 1, NO_CLUSTER, NO_CLUSTER])
CASES = {
    # each: policy, its options, number of examples, batch size, batches planned, columns that differ
    "shuffle": ("shuffle", {}, 4, 3, 1, {}),
    "equal, two batches": ("gradient_clustering", {"alpha": 0.5}, 4, 2, 2, {}),
    "equal, unclustered": ("gradient_clustering", {"alpha": 0.3}, 4, 2, 1, {"cluster_n": THREE_STRATA}),
    "neyman": ("gradient_clustering", {"allocation": "neyman", "alpha": 0.3}, 4, 3, 1, {}),
    "stratum smaller than its share": ("gradient_clustering", {"alpha": 0.1}, 3, 4, 1, {}),
    "importance": ("importance", {"gate": 1}, 4, 2, 2, {}),
    "importance, unknown norm": (
        "importance",
        {"gate": 1, "alpha": 0.2},
        4,
        3,
        1,
        {"norm_n": np.float32([0, np.nan, 1, 7])},
    ),
    "importance, one dominates": ("importance", {"gate": 1, "alpha": 0.1}, 3, 2, 2, {}),
    "infobatch": ("infobatch", {"prune_ratio": 0.4}, 4, 2, 1, {}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_expected_weighted_gradient_is_the_mean_gradient(case, monkeypatch):
    name, options, num_examples, batch, steps, columns = case
    rates = make_policy(name, options).rates(table(num_examples, **columns), progress=0)
    expected = expected_coefficients(rates, monkeypatch, num_examples=num_examples, batch=batch, steps=steps)
    np.testing.assert_allclose(expected, 1 / num_examples, rtol=1e-6)  # weights are float32


def test_every_policy_that_says_unbiased_is_among_the_cases():
    assert {name for name, cls in POLICIES.items() if cls.unbiased} == {case[0] for case in CASES.values()}


@pytest.mark.parametrize("name", ["equal, two batches", "neyman", "importance", "infobatch"])
def test_the_enumeration_can_tell_a_wrong_weight(name, monkeypatch):
    policy, options, num_examples, batch, steps, columns = CASES[name]
    rates = make_policy(policy, options).rates(table(num_examples, **columns), progress=0)
    for wrong in (np.ones_like, lambda w: np.where(w == w.max(), w * 1.01, w)):
        expected = expected_coefficients(
            rates, monkeypatch, num_examples=num_examples, batch=batch, steps=steps, weigh=wrong
        )
        assert not np.allclose(expected, 1 / num_examples, rtol=1e-3)


@pytest.mark.parametrize(("name", "options"), [("selective_backprop", {}), ("rho_loss", {"top_fraction": 0.5})])
def test_the_biased_policies_are_seen_to_be_biased(name, options, monkeypatch):
    policy = make_policy(name, options)
    assert not policy.unbiased
    rates = policy.rates(table(4), progress=0)
    (expected,) = expected_coefficients(rates, monkeypatch, num_examples=4, batch=2, steps=1)
    assert not np.allclose(expected / expected.sum(), 1 / 4, rtol=0.1), "not even in direction"


def test_probabilities_are_the_expected_copies_per_row(monkeypatch):
    for name in ("importance", "gradient_clustering"):
        rates = make_policy(name, {"gate": 1} if name == "importance" else {}).rates(table(4), progress=0)
        copies = expected_coefficients(rates, monkeypatch, num_examples=4, batch=2, steps=1, weigh=np.ones_like)
        if isinstance(rates, StratifiedDraw):
            size_k = np.maximum(np.bincount(rates.stratum_n, minlength=len(rates.rate_k)), 1)
            probability_n = (rates.rate_k / size_k)[rates.stratum_n]
        else:
            probability_n = rates.probability_n
        np.testing.assert_allclose(copies[0], probability_n, rtol=1e-9)
