"""Unbiasedness by enumeration, through the planner itself.

Every random choice of the planner is replaced by all its outcomes in turn, with their probabilities:
permutations, keep coins and dealing by listing them (of a long block's dealing one shift of all rows, see
`Enumerated.permuted`), the systematic offset by the intervals between the
points where the outcome can change (fractional parts of batch size times a sum of rates, over all subsets, so
for any order). What comes out is the exact expected coefficient of each example's gradient in the batch mean,
sum(w_i g_i) / b: it must be 1/n.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from math import factorial

import numpy as np
import pytest

from sampler_client.pytorch.two_stage.choose import chances
from sampler_service.datasets import Dataset
from sampler_service.planning import Planner, draws
from sampler_service.planning.randomness import Stream
from sampler_service.policies import POLICIES, make_policy
from sampler_service.types import (
    NO_CLUSTER,
    NO_ROW,
    Batch,
    Nearby,
    Rates,
    Rows,
    StratifiedDraw,
    Sweep,
    TableView,
    WeightedDraw,
)
from tests.choices import expected_coefficients_of_choice


class Choices:
    """Walks depth first through every sequence of choices that a function makes."""

    def __init__(self) -> None:
        self._path: list[list[int]] = []  # [chosen, number of options]
        self._depth = 0
        self.probability = 1.0
        self.made: dict[tuple, list[int]] = {}
        """What each generator of the present run has chosen so far: made again, it chooses the same."""

    def pick(self, probabilities) -> int:
        if self._depth == len(self._path):
            self._path.append([0, len(probabilities)])
        chosen = self._path[self._depth][0]
        self._depth += 1
        self.probability *= probabilities[chosen]
        return chosen

    def runs(self) -> Iterator[None]:
        while True:
            self._depth, self.probability, self.made = 0, 1.0, {}
            yield
            while self._path and self._path[-1][0] + 1 == self._path[-1][1]:
                self._path.pop()
            if not self._path:
                return
            self._path[-1][0] += 1


class Enumerated:
    """Stands in for numpy's Generator where the planner asks for one; every draw is a choice."""

    def __init__(self, choices: Choices, key: tuple, rates: Rates, cuts: np.ndarray) -> None:
        self._choices, self._stream, self._rates, self._cuts = choices, key[0], rates, cuts
        self._made, self._picks = choices.made.setdefault(key, []), 0
        self._vectors = self._matrices = 0

    def _pick(self, probabilities) -> int:
        if self._picks == len(self._made):
            self._made.append(self._choices.pick(probabilities))
        self._picks += 1
        return self._made[self._picks - 1]

    def _permuted(self, values: np.ndarray) -> np.ndarray:
        count = factorial(len(values))
        chosen = self._pick([1 / count] * count)
        return values[list(next(itertools.islice(itertools.permutations(range(len(values))), chosen, None)))]

    def permutation(self, values) -> np.ndarray:
        return self._permuted(np.arange(values) if isinstance(values, int) else np.asarray(values))

    def permuted(self, values: np.ndarray, axis: int) -> np.ndarray:
        assert axis == 1
        self._matrices += 1
        if isinstance(self._rates, WeightedDraw) and self._matrices == 2:
            return values  # the order inside a batch changes no sum
        if values.shape[1] > 2 and isinstance(self._rates, WeightedDraw):
            # 16! dealings of every row are too many to list. An expected sum over the rows needs each row's own
            # distribution alone, and under a random shift, too, each batch gets each place equally often.
            places = values.shape[1]
            return np.roll(values, self._pick([1 / places] * places), axis=1)
        return np.array([self._permuted(row) for row in values])

    def _offset(self) -> float:
        lengths = np.diff(self._cuts)
        chosen = self._pick(lengths)
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
        return 0.0 if keep == 1 or self._pick([keep, 1 - keep]) == 0 else np.nextafter(1, 0)


def _cuts(rates: Rates, batch: int) -> np.ndarray:
    """Offsets in [0, 1] at which a point may pass from one example or stratum to the next, in any order."""
    points = batch * (draws.BLOCK_STEPS if isinstance(rates, WeightedDraw) else 1)
    return _cuts_of(rates, points)


def _cuts_of(rates: Rates, points: int) -> np.ndarray:
    if isinstance(rates, Sweep):
        return np.array([0.0, 1.0])
    rate = rates.probability_n if isinstance(rates, WeightedDraw) else rates.rate_k[rates.rate_k > 0]
    sums = [points * sum(part) for r in range(len(rate) + 1) for part in itertools.combinations(rate, r)]
    return np.unique(np.round(np.concatenate((np.mod(sums, 1), [0, 1])), 12))


def enumerate_choices(monkeypatch, choices: Choices, rates: Rates, cuts: np.ndarray) -> None:
    """Let the planner's generators walk through `choices`."""

    def generator(stream, **position) -> Enumerated:
        return Enumerated(choices, (stream, *position.items()), rates, cuts)

    monkeypatch.setattr("sampler_service.planning.draws.generator", generator)
    monkeypatch.setattr("sampler_service.planning.sweep.generator", generator)


def expected_coefficients(
    rates: Rates,
    monkeypatch,
    *,
    num_examples: int,
    batch: int,
    steps: int,
    weigh: Callable = lambda w: w,
    candidates: int = 1,
    keep: Callable | None = None,
    world: int = 1,
) -> np.ndarray:
    """(steps, n): the expected coefficient of every example in each batch's mean over the ranks; for sweeps of the
    epoch's sum / n. `keep` maps the rows of a rank's step to their expected coefficients after a second stage."""
    choices = Choices()
    enumerate_choices(monkeypatch, choices, rates, _cuts(rates, batch * world * candidates))
    sweep = isinstance(rates, Sweep)
    expected = np.zeros((1 if sweep else steps, num_examples))
    total = 0.0
    for _ in choices.runs():
        planner = Planner(num_examples, seed=0, drop_last=False)
        planned = planner.start_epoch(0, rates, batch_size=batch, world=world)
        batches = planner.plan(0, planned if sweep else steps, rates, candidates=candidates)
        estimate = np.zeros_like(expected)
        for step, rows in ((step, rows) for step, parts in enumerate(batches) for rows in parts):
            share = weigh(rows.weights) / (num_examples if sweep else len(rows)) if keep is None else keep(rows)
            np.add.at(estimate[0 if sweep else step], rows.example_ids, share / world)
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
AGED = {"step": 3, "epoch_steps": 2, "step_n": np.arange(4)}
NEARBY = Nearby(anchor_a=np.array([3, 0]), near_am=np.array([[1, 2], [4, NO_ROW]]))
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
    "equal, aged": ("gradient_clustering", {"half_life": 1}, 4, 2, 2, AGED),
    "importance, aged": ("importance", {"gate": 1, "half_life": 1}, 4, 2, 2, AGED),
    "auto, by norms": ("auto", {}, 4, 2, 2, {}),
    "auto, of which nothing is known": ("auto", {}, 4, 3, 1, {"norm_n": np.full(4, np.nan, np.float32)}),
    "infobatch": ("infobatch", {"prune_ratio": 0.4}, 4, 2, 1, {}),
    # Orders say when an example comes, not how often: theirs are as they fall out.
    "poa": ("poa", {"attempts": 2}, 5, 2, 1, {"alignment_n": np.float32([3, -1, 2, np.nan, 0])}),
    "balanced_order": ("balanced_order", {}, 4, 3, 1, {"place_n": np.array([0.3, 0.1, 0.9, 0.5])}),
    "hard_negative": ("hard_negative", {"begin": 0, "end": 0, "together": 1}, 5, 2, 1, {"nearby": NEARBY}),
    "time_budget": ("time_budget", {"prune_ratio": 0.4}, 4, 2, 1, {}),
    "two_stage": ("two_stage", {"alpha": 0.2, "propose": "norm"}, 4, 2, 2, {}),
    "two_stage, aged": ("two_stage", {}, 4, 2, 1, AGED),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_expected_weighted_gradient_is_the_mean_gradient(case, monkeypatch):
    name, options, num_examples, batch, steps, columns = case
    rates = make_policy(name, options).rates(table(num_examples, **columns), progress=0)
    expected = expected_coefficients(rates, monkeypatch, num_examples=num_examples, batch=batch, steps=steps)
    np.testing.assert_allclose(expected, 1 / num_examples, rtol=1e-6)  # weights are float32


LEFT = {
    # each: policy, its options, batch size; of four examples the second is deleted
    "shuffle": ("shuffle", {}, 3),
    "equal": ("gradient_clustering", {"alpha": 0.5}, 2),
    "neyman": ("gradient_clustering", {"allocation": "neyman", "alpha": 0.3}, 3),
    "importance": ("importance", {"gate": 1, "alpha": 0.2}, 2),
    "infobatch": ("infobatch", {"prune_ratio": 0.4}, 2),
}
GONE = Dataset((4,)).without("data", np.array([1]))


@pytest.mark.parametrize("case", LEFT.values(), ids=LEFT.keys())
def test_without_deleted_examples_it_is_the_mean_gradient_of_the_others(case, monkeypatch):
    name, options, batch = case
    population = GONE.population(4)
    rates = population.spread(make_policy(name, options).rates(population.view(table(4)), progress=0))
    expected = expected_coefficients(rates, monkeypatch, num_examples=4, batch=batch, steps=1)
    share = 1 / 4 if isinstance(rates, Sweep) else 1 / 3  # of a sweep the epoch's sum over 4, see above
    np.testing.assert_allclose(expected, [[share, 0, share, share]], rtol=1e-6)


@pytest.mark.parametrize("case", [case for case in LEFT.values() if case[0] in ("importance", "gradient_clustering")])
def test_a_batch_that_was_planned_before_a_deletion_is_unbiased_after_it(case, monkeypatch):
    """Rows of the deleted example are taken out, and the sum over the others is divided by the rows that were drawn."""
    name, options, batch = case
    rates, population = make_policy(name, options).rates(table(4), progress=0), GONE.population(4)

    def left_of(rows: Rows) -> np.ndarray:
        planned = Batch(
            batch_id=1,
            epoch=0,
            step=0,
            table_version=0,
            policy=name,
            rows=rows,
            cluster_ids=np.zeros(len(rows), np.int32),
            lease_deadline=0.0,
            lead=0,
            global_batch_size=len(rows),
            world_size=1,
            size=4,
            alive=4,
            drawn=True,
        )
        left = population.left_of(planned)
        assert left is not None
        share_r = np.zeros(len(rows))
        kept_r = rows.example_ids != 1
        if kept_r.any():
            assert left.rows.example_ids.tolist() == rows.example_ids[kept_r].tolist()
            share_r[kept_r] = left.rows.weights / planned.global_batch_size
        else:
            assert not left.rows.weights.any()
        return share_r

    expected = expected_coefficients(rates, monkeypatch, num_examples=4, batch=batch, steps=1, keep=left_of)
    np.testing.assert_allclose(expected, [[1 / 3, 0, 1 / 3, 1 / 3]], rtol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES.values() if case[0] == "importance"])
def test_every_dealing_of_a_short_block_is_unbiased_too(case, monkeypatch):
    """The cases above have blocks of the length that the service plans; here every dealing is listed."""
    name, options, num_examples, batch, steps, columns = case
    monkeypatch.setattr(draws, "BLOCK_STEPS", 2)
    rates = make_policy(name, options).rates(table(num_examples, **columns), progress=0)
    expected = expected_coefficients(rates, monkeypatch, num_examples=num_examples, batch=batch, steps=steps)
    np.testing.assert_allclose(expected, 1 / num_examples, rtol=1e-6)


@pytest.mark.parametrize("length", [2, 3])
def test_rates_made_from_the_block_they_change_leave_it_unbiased(length, monkeypatch):
    """The second step's rates favour what the first one drew, as reports of large norms make them. With the
    randomness of the first step's block, the second step would weigh 44 % too much in a block of two."""
    monkeypatch.setattr(draws, "BLOCK_STEPS", length)
    even, choices = WeightedDraw(probability_n=np.full(3, 1 / 3)), Choices()

    favouring = [WeightedDraw(probability_n=np.where(np.arange(3) == drawn, 0.6, 0.2)) for drawn in range(3)]
    both = (even, favouring[0])
    cuts = np.unique(np.concatenate([_cuts_of(rates, points) for rates in both for points in range(1, length + 1)]))
    enumerate_choices(monkeypatch, choices, even, cuts)
    expected = np.zeros((2, 3))
    for _ in choices.runs():
        planner, rates = Planner(3, seed=0, drop_last=False), even
        planner.start_epoch(0, even, batch_size=1, world=1)
        estimate = np.zeros_like(expected)
        for step in range(2):
            ((rows,),) = planner.plan(step, 1, rates)
            estimate[step, rows.example_ids] = rows.weights
            rates = favouring[rows.example_ids[0]]
        expected += choices.probability * estimate
    np.testing.assert_allclose(expected, 1 / 3, rtol=1e-6)


def chosen_by(fresh_n: np.ndarray, keep: int) -> Callable:
    """The trainer's choice of `keep` among the rows it gets, by scores that the service knew nothing of."""

    @cache
    def expected(ids: tuple[int, ...], weights: tuple[float, ...]) -> np.ndarray:
        return expected_coefficients_of_choice(fresh_n[list(ids)], np.array(weights), keep, mix=0.2)

    return lambda rows: expected(tuple(rows.example_ids.tolist()), tuple(rows.weights.astype(np.float64).tolist()))


EVEN, DOMINATED = np.array([0.1, 9.0, 1.0]), np.array([1.0, 1000.0, 2.0])


@pytest.mark.parametrize("propose", ["norm", "cluster", "both"])
@pytest.mark.parametrize(
    ("fresh_n", "batch", "world", "candidates"),
    [
        (EVEN, 1, 1, 3),
        (DOMINATED, 2, 1, 2),  # of four rows, those of one example are kept for certain
        (EVEN, 1, 2, 2),  # each of two ranks keeps one of two
    ],
)
def test_both_stages_together_are_unbiased(fresh_n, batch, world, candidates, propose, monkeypatch):
    """Every outcome of the service's proposals, and for each every outcome of the trainers' choices, whose scores have
    nothing to do with what the service knew."""
    view = table(3, step=3, epoch_steps=2, step_n=np.arange(3))
    rates = make_policy("two_stage", {"propose": propose}).rates(view, progress=0)
    shape = {"num_examples": 3, "batch": batch, "world": world, "candidates": candidates}
    keep = chosen_by(fresh_n, batch)
    expected = expected_coefficients(rates, monkeypatch, steps=2 if batch * world == 1 else 1, keep=keep, **shape)
    np.testing.assert_allclose(expected, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("wrong", ["the proposal's weight", "the largest scores"])
def test_the_enumeration_can_tell_a_wrong_second_stage(wrong, monkeypatch):
    """Weights that forget the choice, and the largest scores taken for certain with the weights of a fair choice."""

    def keep(rows: Rows) -> np.ndarray:
        weight_c, chance_c = rows.weights.astype(np.float64), chances(EVEN[rows.example_ids], rows.weights, 1, mix=0.2)
        if wrong == "the proposal's weight":
            return chance_c * weight_c
        largest_c = np.zeros(len(rows))
        largest_c[np.argmax(EVEN[rows.example_ids])] = 1
        return largest_c * weight_c / (len(rows) * chance_c)

    rates = make_policy("two_stage", {"alpha": 0.2, "propose": "norm"}).rates(table(3), progress=0)
    expected = expected_coefficients(rates, monkeypatch, num_examples=3, batch=1, steps=1, candidates=3, keep=keep)
    assert not np.allclose(expected, 1 / 3, rtol=1e-2)


def test_a_dominating_candidate_is_kept_for_certain():
    assert chances(DOMINATED[[0, 1, 2, 2]], np.ones(4), 2, mix=0.2)[1] == 1


@pytest.mark.parametrize(("length", "world"), [(2, 1), (3, 1), (2, 2)])
def test_a_second_step_that_follows_from_the_first_is_unbiased(length, world, monkeypatch):
    """What the first step's candidates show decides how many the second one has, and how evenly they are proposed."""
    monkeypatch.setattr(draws, "BLOCK_STEPS", length)
    view = table(3, norm_n=np.float32([0, 0, 5]))

    def proposals(alpha: float) -> WeightedDraw:
        rates = make_policy("two_stage", {"alpha": alpha, "propose": "norm"}).rates(view, progress=0)
        assert isinstance(rates, WeightedDraw)
        return rates

    first = proposals(0.6)
    # By the lowest example among the candidates: another share of uniform proposals, more candidates, or both.
    then = {0: (proposals(0.3), 2), 1: (first, 3), 2: (proposals(0.3), 3)}
    cuts = np.unique(np.round(np.arange(11) / 10, 12))
    for rates, points in itertools.product((first, proposals(0.3)), range(1, 3 * length * world + 1)):
        assert np.isin(_cuts_of(rates, points), cuts).all(), "finer than any"
    choices, keep = Choices(), chosen_by(EVEN, 1)
    enumerate_choices(monkeypatch, choices, first, cuts)
    expected = np.zeros((2, 3))
    for _ in choices.runs():
        planner = Planner(3, seed=0, drop_last=False)
        planner.start_epoch(0, first, batch_size=1, world=world)
        rates, candidates, estimate = first, 2, np.zeros_like(expected)
        for step in range(2):
            (parts,) = planner.plan(step, 1, rates, candidates=candidates)
            for rows in parts:
                np.add.at(estimate[step], rows.example_ids, keep(rows) / world)
            rates, candidates = then[min(int(rows.example_ids.min()) for rows in parts)]
        expected += choices.probability * estimate
    np.testing.assert_allclose(expected, 1 / 3, rtol=1e-6)


def test_every_policy_that_says_unbiased_is_among_the_cases():
    assert {name for name in POLICIES if make_policy(name, {}).unbiased} == {case[0] for case in CASES.values()}


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
