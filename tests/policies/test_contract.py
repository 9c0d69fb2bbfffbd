"""What every policy there is, or will be, must keep; see `sampler_service/policies/contract.py`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sampler_service.errors import ConfigError
from sampler_service.policies import POLICIES, Phases, choose, coverage, make_policy
from sampler_service.types import (
    NEVER,
    NO_CLUSTER,
    BestOfSome,
    ByPlace,
    StratifiedDraw,
    Sweep,
    TableView,
    WeightedDraw,
)

COLUMNS = {"loss", "norm", "cluster", "reference_loss", "alignment"}
VARIANTS = [(name, {}) for name in sorted(POLICIES)] + [
    ("gradient_clustering", {"allocation": "neyman", "alpha": 0.1}),
    ("gradient_clustering", {"alpha": 0.0}),
    ("importance", {"gate": 1.0, "alpha": 0.1}),
    ("importance", {"gate": 1.0, "alpha": 0.1, "half_life": 1e-6}),
    ("gradient_clustering", {"alpha": 0.1, "half_life": 0.3}),
    ("infobatch", {"prune_ratio": 0.9, "delta": 1.0}),
    ("selective_backprop", {"beta": 0.0}),
    ("rho_loss", {"top_fraction": 1.0}),
    ("poa", {"attempts": 1.0}),
    ("validation_alignment", {"alpha": 1.0}),
    ("validation_alignment", {"half_life": 1e-6}),
    ("hard_negative", {"begin": 0.0, "end": 0.0}),
    ("phases", {"schedule": "0.3 selective_backprop; 1 shuffle", "protect": 0.0}),
    ("time_budget", {"policy": "importance", "gate": 1.0, "anneal": 0.6}),
    ("phases", {"schedule": "0.3 poa; 0.6 importance; 1 infobatch"}),
]


def view_of(num_examples: int, num_clusters: int = 5, known: float = 0.8, **columns) -> TableView:
    """A random table in which about `known` of the examples were reported; `columns` replace what it has."""
    rng = np.random.default_rng([num_examples, num_clusters])
    known_n = rng.random(num_examples) < known
    table = {
        "loss_n": np.where(known_n, rng.exponential(size=num_examples), np.nan).astype(np.float32),
        "norm_n": np.where(known_n, rng.lognormal(0, 1.5, num_examples), np.nan).astype(np.float32),
        "step_n": np.where(known_n, rng.integers(0, 100, num_examples), NEVER),
        "cluster_n": np.where(known_n, rng.integers(0, num_clusters, num_examples), NO_CLUSTER).astype(np.int32),
        "cluster_sse_k": rng.exponential(size=num_clusters),
        "reference_loss_n": rng.exponential(size=num_examples).astype(np.float32),
        "alignment_n": np.where(known_n, rng.normal(size=num_examples), np.nan).astype(np.float32),
        "group_n": rng.integers(0, 3, num_examples),
        "place_n": rng.random(num_examples),
        "step": 100,
        "epoch_steps": 50,
    }
    return TableView(**(table | columns))


def ones(num_examples: int) -> np.ndarray:
    return np.ones(num_examples, dtype=np.float32)


VIEWS = {
    "some unknown": view_of(60),
    "all known": view_of(60, known=1.0),
    "nothing known": view_of(60, known=0.0),
    "no clusters at all": view_of(60, known=0.0, cluster_sse_k=np.empty(0)),
    "single example": view_of(1, known=1.0),
    "single unknown example": view_of(1, known=0.0),
    "mostly empty clusters": view_of(60, 200),
    "equal norms and losses": view_of(60, known=1.0, norm_n=ones(60), loss_n=ones(60)),
    "zero norms and losses": view_of(60, known=1.0, norm_n=0 * ones(60), loss_n=0 * ones(60)),
    "zero scatter": view_of(60, cluster_sse_k=np.zeros(5)),
    "nothing to compare with": view_of(60, alignment_n=None, place_n=None),
    "all against the held-out examples": view_of(60, alignment_n=-ones(60)),
    "no groups": view_of(60, group_n=None),
    "no reference": view_of(60, reference_loss_n=None),
    "some references": view_of(60, reference_loss_n=np.where(np.arange(60) % 3, 1, np.nan).astype(np.float32)),
}


def permuted(view: TableView, order: np.ndarray) -> TableView:
    rows = {
        field.name: getattr(view, field.name)[order]
        for field in dataclasses.fields(view)
        if field.name.endswith("_n") and getattr(view, field.name) is not None
    }
    return dataclasses.replace(view, **rows)


def per_example(rates) -> np.ndarray:
    """(n, …) all that the rates say of each example."""
    if isinstance(rates, Sweep):
        score_n = np.zeros(len(rates.keep_n)) if rates.score_n is None else rates.score_n
        return np.column_stack((rates.keep_n, rates.weight_n, score_n, ordered_by(rates)))
    if isinstance(rates, WeightedDraw):
        return rates.probability_n
    return rates.rate_k[rates.stratum_n]


def ordered_by(rates: Sweep) -> np.ndarray:
    if isinstance(rates.order, BestOfSome):
        return rates.order.score_n
    return rates.order.place_n if isinstance(rates.order, ByPlace) else np.zeros(len(rates.keep_n))


def check_sweep(rates: Sweep, *, unbiased: bool, num_examples: int) -> None:
    assert rates.keep_n.shape == rates.weight_n.shape == (num_examples,)
    assert (rates.keep_n.dtype, rates.weight_n.dtype) == (np.float64, np.float32)
    assert ((rates.keep_n > 0) & (rates.keep_n <= 1)).all()
    assert (np.isfinite(rates.weight_n) & (rates.weight_n > 0)).all()
    assert 0 < rates.top_fraction <= 1
    if rates.score_n is not None:
        assert rates.score_n.shape == (num_examples,)
        assert not np.isnan(rates.score_n).any()
    assert np.isfinite(ordered_by(rates)).all()
    if unbiased:
        assert rates.score_n is None
        np.testing.assert_allclose(rates.keep_n * rates.weight_n, 1, rtol=1e-6)


def check_draw(rates: StratifiedDraw | WeightedDraw, *, num_examples: int) -> None:
    if isinstance(rates, WeightedDraw):
        assert rates.probability_n.shape == (num_examples,)
        assert (np.isfinite(rates.probability_n) & (rates.probability_n > 0)).all()
        assert rates.probability_n.sum() == pytest.approx(1, abs=1e-12)
        return
    assert rates.stratum_n.shape == (num_examples,)
    size_k = np.bincount(rates.stratum_n, minlength=len(rates.rate_k))
    assert size_k.shape == rates.rate_k.shape, "every stratum has a rate"
    assert np.isfinite(rates.rate_k).all()
    assert ((rates.rate_k > 0) == (size_k > 0)).all(), "empty strata, and only they, have rate 0"
    assert rates.rate_k.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_rates_keep_the_contract_and_ignore_row_order(name, options, view):
    policy = make_policy(name, options)
    for progress in (0.0, 0.5, 1.0):
        rates = policy.rates(view, progress=progress)
        if isinstance(rates, Sweep):
            check_sweep(rates, unbiased=policy.unbiased, num_examples=len(view))
        else:
            assert policy.kind == "draw"
            check_draw(rates, num_examples=len(view))
        # The phases are asked one by one.
        assert isinstance(policy, Phases) or (policy.kind == "draw" and isinstance(rates, Sweep)) <= bool(
            policy.aside(view)
        )

        order = np.random.default_rng(0).permutation(len(view))
        again = policy.rates(permuted(view, order), progress=progress)
        np.testing.assert_allclose(per_example(again), per_example(rates)[order], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_policy_describes_itself(name):
    policy = make_policy(name, {})
    assert policy.name == name
    assert policy.needs <= COLUMNS
    assert policy.kind in ("sweep", "draw")
    assert 0 <= policy.min_coverage <= 1
    assert type(policy).__dataclass_params__.frozen
    assert policy == make_policy(name, {}), "a policy is a value: equal options, equal policies"


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_bounded_weights_of_draws(name, options):
    """With a share alpha of uniform draws no weight exceeds 1 / alpha, however uneven the rest."""
    policy = make_policy(name, options)
    rates = policy.rates(VIEWS["some unknown"], progress=0)
    alpha = getattr(policy, "alpha", 0)
    if isinstance(rates, WeightedDraw) and rates.unbiased and alpha:
        assert 1 / (60 * rates.probability_n.min()) <= 1 / alpha + 1e-9
    if isinstance(rates, StratifiedDraw) and alpha:
        size_k = np.bincount(rates.stratum_n, minlength=len(rates.rate_k))
        assert (size_k / 60 <= rates.rate_k / alpha + 1e-9).all()


def test_an_unknown_policy_is_answered_with_the_choices():
    with pytest.raises(ConfigError, match=r"unknown policy 'gluster'.*gradient_clustering.*shuffle"):
        make_policy("gluster", {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("importance", {"beta": 2.0}, r"no option 'beta' \(= 2.0\); it has \['alpha', 'gate', 'half_life'\]"),
        ("shuffle", {"alpha": 1}, r"no option 'alpha' \(= 1\); it has \[\]"),
        ("importance", {"alpha": 0}, r"'alpha' must lie in \(0, 1\], got 0"),
        ("importance", {"alpha": float("nan")}, r"got nan"),
        ("importance", {"alpha": "half"}, r"'alpha' must be a number, got 'half'"),
        ("importance", {"alpha": True}, r"'alpha' must be a number, got True"),
        ("importance", {"gate": 0.5}, r"'gate' must lie in \[1, inf\), got 0.5"),
        ("importance", {"half_life": 0}, r"'half_life' must lie in \(0, inf\), got 0"),
        ("gradient_clustering", {"half_life": float("inf")}, r"'half_life' must lie in \(0, inf\), got inf"),
        ("gradient_clustering", {"allocation": "even"}, r"one of \('equal', 'neyman'\), got 'even'"),
        ("gradient_clustering", {"allocation": 1.0}, r"'allocation' must be a word, got 1.0"),
        ("gradient_clustering", {"allocation": "neyman", "alpha": 0}, r"'alpha' must lie in \(0, 1\], got 0"),
        ("infobatch", {"prune_ratio": 1.0}, r"'prune_ratio' must lie in \[0, 1\), got 1.0"),
        ("infobatch", {"delta": -0.1}, r"'delta' must lie in \[0, 1\], got -0.1"),
        ("selective_backprop", {"s_min": 0}, r"'s_min' must lie in \(0, 1\], got 0"),
        ("selective_backprop", {"beta": float("inf")}, r"'beta' must lie in \[0, inf\), got inf"),
        ("poa", {"attempts": 0}, r"'attempts' must lie in \[1, 1e9\), got 0"),
        ("poa", {"attempts": 2.5}, r"'attempts' must be a whole number, got 2.5"),
        ("hard_negative", {"first": 9.0, "last": 8.0}, r"'first' \(= 9.0\) is above 'last' \(= 8.0\)"),
        ("hard_negative", {"begin": 0.5}, r"'begin' \(= 0.5\) is above 'end' \(= 0.3\)"),
        ("hard_negative", {"together": 0.0}, r"'together' must lie in \[1, 10000\], got 0.0"),
        ("validation_alignment", {"alpha": 0.0}, r"'alpha' must lie in \(0, 1\], got 0.0"),
        ("validation_alignment", {"half_life": 0.0}, r"'half_life' must lie in \(0, inf\), got 0.0"),
        ("phases", {"schedule": "0.5 shuffle"}, r"the last at 1; they end at \[0.5\]"),
        ("phases", {"schedule": "0.5 shuffle; 0.4 shuffle; 1 shuffle"}, r"they end at \[0.5, 0.4, 1.0\]"),
        ("phases", {"schedule": "0.4 shuffle; 1 rho_loss"}, r"'rho_loss' from 0.4 on leaves examples out on purpose"),
        ("phases", {"schedule": "1 importance alpha=2"}, r"'alpha' must lie in \(0, 1\], got 2.0"),
        ("phases", {"schedule": "half shuffle; 1 shuffle"}, r"'half shuffle' does not read as"),
        ("phases", {"schedule": "1 auto"}, r"'auto' picks policies by itself"),
        ("phases", {"alpha": 1.0}, r"has the options 'schedule', .* and 'protect'"),
        ("phases", {"protect": 2.0}, r"'protect' must lie in \[0, 1\], got 2.0"),
        ("time_budget", {"anneal": 1.5}, r"'anneal' must lie in \[0, 1\], got 1.5"),
        ("time_budget", {"anneal": "late"}, r"'anneal' must be a number, got 'late'"),
        ("time_budget", {"policy": "auto"}, r"'policy' must be one that picks no others, got 'auto'"),
        ("time_budget", {"policy": "importance", "beta": 1.0}, r"'importance' has no option 'beta'"),
        ("rho_loss", {"top_fraction": 1.5}, r"'top_fraction' must lie in \(0, 1\], got 1.5"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(name, options, message):
    with pytest.raises(ConfigError, match=message):
        make_policy(name, options)


def test_coverage_counts_examples_with_every_needed_column_fresh():
    view = view_of(
        4,
        loss_n=np.array([1, np.nan, 1, 1], dtype=np.float32),
        norm_n=np.array([1, 1, np.nan, 1], dtype=np.float32),
        step_n=np.array([90, 95, 100, 50]),
        reference_loss_n=None,
    )
    assert coverage(view, frozenset(), max_age=0) == 1
    assert coverage(view, frozenset({"loss"}), max_age=None) == 0.75
    assert coverage(view, frozenset({"loss"}), max_age=10) == 0.5
    assert coverage(view, frozenset({"loss", "norm"}), max_age=9) == 0
    assert coverage(view, frozenset({"reference_loss"}), max_age=None) == 0


def test_too_few_fresh_columns_fall_back_to_shuffling_and_say_so():
    view = view_of(100, known=1.0, cluster_n=np.repeat(np.int32([0, NO_CLUSTER]), [12, 88]))
    policy = make_policy("gradient_clustering", {})
    rates, reason = choose(policy, view, min_coverage=None, max_age=None, progress=0)
    assert isinstance(rates, Sweep)
    assert reason == "shuffle: 12 % of clustered sketches are fresh, gradient_clustering needs 50 %"
    rates, reason = choose(policy, view, min_coverage=0.1, max_age=None, progress=0)
    assert isinstance(rates, StratifiedDraw)
    assert reason == ""


def test_a_policy_that_stands_aside_says_why():
    even = VIEWS["equal norms and losses"]
    rates, reason = choose(make_policy("importance", {}), even, min_coverage=None, max_age=None, progress=0)
    assert isinstance(rates, Sweep)
    assert reason.startswith("shuffle: tau 1.00 is below the gate 1.41")
    rho = make_policy("rho_loss", {})
    assert choose(rho, VIEWS["no reference"], min_coverage=0, max_age=None, progress=0)[1] == (
        "shuffle: the run has no reference losses"
    )
    assert (
        "0 % of reference losses are fresh"
        in (choose(rho, VIEWS["no reference"], min_coverage=None, max_age=None, progress=0)[1])
    )


@pytest.mark.parametrize("name", ["shuffle", "infobatch", "selective_backprop"])
def test_policies_that_keep_the_unknown_act_from_the_first_step(name):
    view = VIEWS["nothing known"]
    rates, reason = choose(make_policy(name, {}), view, min_coverage=None, max_age=0, progress=0)
    assert reason == ""
    assert (rates.keep_n == 1).all()


def test_a_budget_ends_with_shuffling_and_phases_with_their_last():
    budget = make_policy("time_budget", {"policy": "selective_backprop", "anneal": 0.25})
    assert isinstance(budget, Phases)
    assert [budget.at(progress).policy.name for progress in (0, 0.74, 0.76, 1.0)] == [
        "selective_backprop",
        "selective_backprop",
        "shuffle",
        "shuffle",
    ]
    assert not budget.unbiased and make_policy("time_budget", {}).unbiased
    whole, none = (make_policy("time_budget", {"anneal": anneal}) for anneal in (1.0, 0.0))
    assert isinstance(whole, Phases) and isinstance(none, Phases)
    assert whole.at(0.0).policy.name == "shuffle" and none.at(1.0).policy.name == "infobatch"


FRESH = {"known": 1.0, "step_n": np.full(60, 100)}
RARE = [
    (
        "gradient_clustering alpha=0.01 allocation=neyman",
        view_of(60, cluster_sse_k=np.array([0.0, 1, 1, 1, 1]), **FRESH),
    ),
    ("gradient_clustering alpha=0", view_of(60, 20, cluster_n=np.minimum(np.arange(60), 19).astype(np.int32), **FRESH)),
    ("importance alpha=0.01 gate=1", view_of(60, norm_n=np.append(1000 * ones(1), 0.001 * ones(59)), **FRESH)),
    ("infobatch prune_ratio=0.95", view_of(60, **FRESH)),
]


@pytest.mark.parametrize(("policy", "view"), RARE, ids=[policy for policy, _ in RARE])
def test_early_phases_show_every_example_a_tenth_as_often_as_shuffling_would(policy, view):
    phases = make_policy("phases", {"schedule": f"0.9 {policy}; 1 shuffle", "protect": 0.5})
    early, late = (phases.rates(view, progress=progress) for progress in (0.49, 0.5))
    assert shown(late).min() < 0.099 < 0.1 <= shown(early).min() + 1e-12
    if isinstance(early, Sweep):
        check_sweep(early, unbiased=True, num_examples=60)
        frequent_n = late.keep_n >= 0.1
        np.testing.assert_array_equal(early.keep_n[frequent_n], late.keep_n[frequent_n])
    else:
        check_draw(early, num_examples=60)
        assert np.corrcoef(shown(early), shown(late))[0, 1] > 0.999, "what is preferred stays preferred"


def test_early_phases_leave_rates_alone_that_show_all():
    view = view_of(60, known=1.0)
    phases, alone = make_policy("phases", {}), make_policy("gradient_clustering", {})
    np.testing.assert_array_equal(phases.rates(view, progress=0.2).rate_k, alone.rates(view, progress=0.2).rate_k)


def shown(rates) -> np.ndarray:
    """(n,) how often each example comes, over how often shuffling would show it."""
    if isinstance(rates, Sweep):
        return rates.keep_n
    if isinstance(rates, WeightedDraw):
        return rates.probability_n * len(rates.probability_n)
    size_k = np.bincount(rates.stratum_n, minlength=len(rates.rate_k))
    return (rates.rate_k / np.maximum(size_k, 1))[rates.stratum_n] * len(rates.stratum_n)
