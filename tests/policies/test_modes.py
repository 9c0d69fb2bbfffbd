"""Two groups of losses are told from one with a tail; the policies that act on it."""

from __future__ import annotations

import numpy as np
import pytest

from sampler_service.policies import Auto, make_policy
from sampler_service.policies.modes import two_modes
from sampler_service.types import NO_CLUSTER, TableView

RNG = np.random.default_rng(0)
ONE = RNG.exponential(size=2000).astype(np.float32)
WRONG = np.arange(2000) % 4 == 0
TWO = np.where(WRONG, 5, 0.5) + RNG.normal(0, 0.3, 2000)


def view_of(loss_n, *, step_n=None, norm: bool = False, epoch_steps: int = 100) -> TableView:
    n = len(loss_n)
    return TableView(
        loss_n=np.asarray(loss_n, np.float32),
        norm_n=np.full(n, 1.0 if norm else np.nan, np.float32),
        step_n=np.full(n, 100) if step_n is None else np.asarray(step_n),
        cluster_n=np.full(n, NO_CLUSTER, np.int32),
        cluster_sse_k=np.empty(0),
        epoch_steps=epoch_steps,
        step=100,
    )


def test_the_best_split_is_that_of_least_variance_inside():
    losses = np.concatenate((np.arange(20), np.arange(100, 130))).astype(np.float32)
    modes = two_modes(losses)
    assert modes is not None
    inside = [np.var(losses[:cut]) * cut + np.var(losses[cut:]) * (50 - cut) for cut in range(1, 50)]
    assert np.argmin(inside) + 1 == 20
    assert (modes.threshold, modes.upper_mean, modes.share) == (19, 114.5, pytest.approx(0.6))
    assert modes.separation == pytest.approx(1 - min(inside) / (50 * np.var(losses)))


@pytest.mark.parametrize(
    ("losses", "two"),
    [
        (TWO, True),
        (ONE, False),
        (RNG.normal(size=2000), False),
        (RNG.uniform(size=2000), False),
        (np.where(np.arange(2000) % 20 == 0, 5, 0.5) + RNG.normal(0, 0.1, 2000), False),  # few: a rare class perhaps
    ],
    ids=["two groups", "exponential", "normal", "uniform", "a small group"],
)
def test_one_group_with_a_tail_is_not_two(losses, two):
    modes = two_modes(np.asarray(losses, np.float32))
    assert modes is not None and modes.two == two


def test_of_few_losses_none_are_two_groups_by_luck():
    found = [two_modes(RNG.exponential(size=32).astype(np.float32)) for _ in range(300)]
    assert not any(modes is not None and modes.two for modes in found)
    assert two_modes(np.ones(1000, np.float32)) is None and two_modes(ONE[:31]) is None


def test_trimmed_loss_leaves_out_the_upper_group_but_looks_at_it_again():
    policy = make_policy("trimmed_loss", {"revisit": 0.25})
    loss_n = TWO.copy()
    loss_n[:8] = np.nan
    rates = policy.rates(view_of(loss_n), progress=0.5)
    expected = np.where(WRONG & np.isfinite(loss_n), 0.25, 1.0)
    assert np.array_equal(rates.keep_n, expected) and (rates.weight_n == 1).all()  # pyright: ignore
    assert policy.aside(view_of(loss_n)) == ""


def test_trimmed_loss_keeps_hard_examples_between_the_groups_and_stands_aside_without_two():
    policy = make_policy("trimmed_loss", {})
    loss_n = np.concatenate((TWO, [3.0]))  # nearer to the upper group than to the lower one
    assert policy.rates(view_of(loss_n), progress=0).keep_n[-1] == 1  # pyright: ignore
    rates = policy.rates(view_of(ONE), progress=0)
    assert (rates.keep_n == 1).all()  # pyright: ignore
    assert "no label looks wrong" in policy.aside(view_of(ONE))
    assert "too few losses" in policy.aside(view_of(ONE[:20]))


def picked(view: TableView, *, candidates: int = 1, sketched: bool = False, noisy: bool = False, **options):
    return Auto(**options).pick(view, candidates=candidates, sketched=sketched, noisy=noisy)


@pytest.mark.parametrize(("prune", "name"), [("no", "shuffle"), ("yes", "trimmed_loss")])
def test_auto_prefers_no_hard_examples_where_labels_look_wrong(prune, name):
    pick = picked(view_of(TWO), candidates=3, sketched=True, prune=prune)
    assert (pick.policy.name, pick.noisy) == (name, True)
    assert "losses of 25% of the examples lie apart" in pick.why


def test_auto_looks_at_the_latest_half_epoch_and_remembers_that_labels_looked_wrong():
    """Early losses blur the groups; later, those that are left out have no others."""
    step_n = np.where(np.arange(2000) % 4 == 1, 100, 20)
    blurred = np.where(step_n == 100, np.where(np.arange(2000) % 16 == 1, 5, 0.5), RNG.normal(2.5, 1, 2000))
    assert picked(view_of(blurred, step_n=step_n), candidates=3).noisy
    assert not picked(view_of(blurred, step_n=np.full(2000, 100)), candidates=3).noisy
    left_out = np.where(WRONG, 20, 100)
    assert not picked(view_of(TWO, step_n=left_out), candidates=3).noisy
    assert picked(view_of(TWO, step_n=left_out), candidates=3, noisy=True).noisy
