"""Batches do not depend on how a server's threads happened to ask for them, nor on where a run was resumed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sampler_service.errors import ConfigError
from sampler_service.planning import Planner
from sampler_service.planning.draws import BLOCK_STEPS
from sampler_service.types import Rates, Rows, StratifiedDraw, Sweep, WeightedDraw

KINDS = ["sweep", "strata", "weighted"]
NUM = 173
STEPS = 3 * BLOCK_STEPS - 4  # with batches of 4; the last block is cut short


def rates_of(kind: str, seed: int, num_examples: int = NUM) -> Rates:
    rng = np.random.default_rng(seed)
    if kind == "sweep":
        return Sweep(keep_n=np.ones(num_examples), weight_n=rng.random(num_examples, dtype=np.float32))
    if kind == "strata":
        stratum_n = np.concatenate((np.arange(7), rng.integers(0, 7, num_examples - 7))).astype(np.int32)
        return StratifiedDraw(stratum_n=stratum_n, rate_k=rng.dirichlet(np.full(7, 3.0)))
    return WeightedDraw(probability_n=rng.dirichlet(np.ones(num_examples)))


def content(steps: list[list[Rows]]) -> list:
    """What the ranks would get, of all steps."""
    return [
        [(rows.example_ids.tolist(), rows.weights.tolist(), rows.probabilities.tolist()) for rows in parts]
        for parts in steps
    ]


def batches(rates_t: list[Rates], edges: set[int], *, skip: int = 0, batch_size: int = 2, seed: int = 3) -> list:
    """All steps, step t with rates_t[t], in calls that end at the edges and wherever the rates change."""
    planner = Planner(NUM, seed=seed, drop_last=False)
    num_steps = planner.start_epoch(1, rates_t[0], batch_size=batch_size, world=2, skip_examples=skip)
    changes = {t for t in range(1, num_steps) if rates_t[t] is not rates_t[t - 1]}
    edges = {0, num_steps} | changes | {edge for edge in edges if edge < num_steps}
    return content(
        [step for low, high in pairwise(sorted(edges)) for step in planner.plan(low, high - low, rates_t[low])]
    )


def changing(kind: str, changes: set[int]) -> list[Rates]:
    """Rates of every step, other ones from each change on."""
    rates_t, rates = [], rates_of(kind, 0)
    for step in range(STEPS):
        if step in changes:
            rates = rates_of(kind, step + 1)
        rates_t.append(rates)
    return rates_t


EDGES = st.sets(st.integers(1, STEPS - 1))
CHANGES = st.sets(st.integers(1, STEPS - 1), max_size=4)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)  # a busy machine is no failure
@given(EDGES, CHANGES)
def test_any_split_into_calls_gives_the_same_batches(kind, edges, changes):
    rates_t = changing(kind, changes)
    assert batches(rates_t, edges) == batches(rates_t, set())


@settings(deadline=None, max_examples=40)  # a busy machine is no failure
@given(EDGES, st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), CHANGES)
def test_also_when_the_kind_of_rates_changes(edges, kinds, changes):
    """A policy that stands aside and comes back, or a stand-in for one that does both kinds of draws."""
    starts = sorted({0} | changes)
    bounds = pairwise([*starts, STEPS])
    rates_t = [rates_of(kinds[i % len(kinds)], i) for i, (low, high) in enumerate(bounds) for _ in range(low, high)]
    # One object from change to change, as the service has it.
    rates_t = [rates_t[max(start for start in starts if start <= step)] for step in range(STEPS)]
    assert batches(rates_t, edges) == batches(rates_t, set())


@pytest.mark.parametrize("kind", ["sweep", "weighted"])
@settings(deadline=None, max_examples=40)  # a busy machine is no failure
@given(st.integers(0, STEPS - 1), EDGES, CHANGES)
def test_a_resumed_run_gets_the_batches_it_would_have_got(kind, done, edges, changes):
    """The rates may change before the resume, but not in the block it falls into, and at any time after it."""
    here = done // BLOCK_STEPS * BLOCK_STEPS
    rates_t = changing(kind, {step for step in changes if step <= here or step > done} if kind == "weighted" else set())
    whole = batches(rates_t, set())
    assume(done < len(whole))  # a sweep's odd row joins its last step, so that it has one step less
    assert batches(rates_t[done:], edges, skip=4 * done) == whole[done:]


@pytest.mark.parametrize("kind", ["sweep", "weighted"])
@settings(deadline=None, max_examples=40)  # a busy machine is no failure
@given(st.integers(1, NUM - 1), st.integers(1, 5))
def test_a_run_resumed_off_the_grid_of_its_batches_can_be_resumed_again(kind, skip, batch_size):
    """First with another batch size, so that the batches begin between the multiples of theirs."""
    rates_t = [rates_of(kind, 0)] * NUM
    once = batches(rates_t, set(), skip=skip, batch_size=batch_size)
    for done in range(1, len(once), 7):
        again = batches(rates_t, set(), skip=skip + 2 * batch_size * done, batch_size=batch_size)
        assert again == once[done:]


def test_equal_rates_in_a_new_object_change_nothing():
    """Reports that move no rate make a new object; runs must not differ by when they came."""
    once, twice = rates_of("weighted", 0), rates_of("weighted", 0)
    rates_t = [once if step % 3 else twice for step in range(STEPS)]
    assert batches(rates_t, set()) == batches([once] * STEPS, set())


def test_other_rates_change_what_is_left_of_a_block_and_nothing_before():
    old, new = rates_of("weighted", 0), rates_of("weighted", 1)
    changed = batches([old] * 5 + [new] * (STEPS - 5), set())
    assert changed[:5] == batches([old] * STEPS, set())[:5]
    only_new = batches([new] * STEPS, set())
    assert all(a != b for a, b in zip(changed[5:BLOCK_STEPS], only_new[5:BLOCK_STEPS], strict=True))
    assert changed[BLOCK_STEPS:] == only_new[BLOCK_STEPS:], "the next block does not depend on the past"


def test_a_second_pass_through_an_epoch_is_like_the_first():
    old, new = rates_of("weighted", 0), rates_of("weighted", 1)
    planner = Planner(NUM, seed=3, drop_last=False)
    passes = []
    for _ in range(2):
        steps = []
        planner.start_epoch(1, old, batch_size=2, world=2)
        for low, rates in ((0, old), (5, new)):
            steps += planner.plan(low, 5, rates)
        passes.append(content(steps))
    assert passes[0] == passes[1]


def test_rates_that_were_refused_leave_the_draws_as_they_were():
    good, bad = rates_of("weighted", 0), WeightedDraw(probability_n=np.full(NUM, 1.0))
    planner = Planner(NUM, seed=3, drop_last=False)
    planner.start_epoch(1, good, batch_size=2, world=2)
    planner.plan(0, 1, good)
    with pytest.raises(ConfigError, match="must sum to 1"):
        planner.plan(1, 1, bad)
    ((first, _),) = planner.plan(1, 1, good)
    np.testing.assert_allclose(first.weights * first.probabilities * NUM, 1, rtol=1e-6)
