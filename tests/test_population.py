"""Policies see what was not deleted; rates and batches are made of it. Shapes: n examples, b rows of a batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sampler_service.datasets import Dataset
from sampler_service.planning import Planner
from sampler_service.policies import POLICIES, make_policy
from sampler_service.population import Population
from sampler_service.telemetry import effective_sample_ratio, expected_draws, stratum_sizes
from sampler_service.types import (
    NO_CLUSTER,
    NO_ROW,
    Batch,
    Nearby,
    Rows,
    StratifiedDraw,
    Sweep,
    TableView,
    WeightedDraw,
)

N = 40
GONE = np.array([0, 7, 8, 31])
LEFT = np.setdiff1d(np.arange(N), GONE)


def population(gone=GONE, size: int = N) -> Population:
    return Dataset((N,)).without("data", np.array(gone)).population(size)


def view(ids: np.ndarray) -> TableView:
    """What is known of these examples, a function of each alone."""
    return TableView(
        loss_n=(ids % 7).astype(np.float32),
        norm_n=(1 + ids % 5).astype(np.float32),
        step_n=ids.astype(np.int64),
        gradient_step_n=ids.astype(np.int64),
        cluster_n=(ids % 3).astype(np.int32),
        cluster_sse_k=np.ones(3),
        reference_loss_n=(ids % 2).astype(np.float32),
        alignment_n=np.sin(ids).astype(np.float32),
        group_n=ids % 4,
        place_n=ids / N,
        nearby=Nearby(anchor_a=np.array([7, 9]), near_am=np.array([[8, 1], [0, NO_ROW]])),
        step=N,
        epoch_steps=10,
    )


OPTIONS = {"importance": {"gate": 1}, "hard_negative": {"begin": 0, "end": 0}, "rho_loss": {"top_fraction": 0.5}}


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_rates_are_those_of_a_data_set_that_never_had_the_deleted_examples(name):
    policy, there = make_policy(name, OPTIONS.get(name, {})), population()
    alone = policy.rates(view(LEFT), progress=0.5)
    rates = there.spread(policy.rates(there.view(view(np.arange(N))), progress=0.5))
    assert rates.over == alone.over == len(LEFT)
    sizes, sizes_alone = stratum_sizes(rates), stratum_sizes(alone)
    expected = expected_draws(alone, sizes_alone, np.arange(len(LEFT)), 8)
    np.testing.assert_allclose(expected_draws(rates, sizes, LEFT, 8), expected)
    assert effective_sample_ratio(rates, sizes) == pytest.approx(effective_sample_ratio(alone, sizes_alone))
    if isinstance(rates, WeightedDraw):
        assert not rates.probability_n[GONE].any()
        assert rates.probability_n.sum() == pytest.approx(1)
    elif isinstance(rates, StratifiedDraw):
        assert set(rates.stratum_n[GONE]) == {len(rates.rate_k) - 1}
        assert rates.rate_k[-1] == 0
    else:
        assert not rates.keep_n[GONE].any()


def test_where_nothing_was_deleted_nothing_is_copied():
    there, whole = Dataset((N,)).population(N), view(np.arange(N))
    rates = make_policy("shuffle", {}).rates(whole, progress=0)
    assert there.view(whole) is whole
    assert there.spread(rates) is rates
    assert there.without(np.arange(N)) is None
    assert there.deleted_n is None


def test_an_epoch_of_fewer_examples_sees_the_first_of_a_longer_table():
    assert len(population(GONE, size=20).view(view(np.arange(N)))) == 20 - 3
    assert len(Dataset((N,)).population(20).view(view(np.arange(N)))) == 20


def batch_of(ids: list[int], **changes) -> Batch:
    rows = Rows(
        example_ids=np.array(ids),
        weights=np.full(len(ids), 0.5, np.float32),
        probabilities=np.full(len(ids), 2 / N),
    )
    settings = {
        "batch_id": 1,
        "epoch": 0,
        "step": 0,
        "table_version": 0,
        "policy": "importance",
        "rows": rows,
        "cluster_ids": np.array(ids, np.int32),
        "lease_deadline": 0.0,
        "lead": 0,
        "global_batch_size": len(ids),
        "world_size": 1,
        "size": N,
        "alive": N,
        "drawn": True,
    }
    return Batch(**(settings | changes))


def test_weights_of_draws_are_for_as_many_as_are_left_and_rows_go_together():
    left = population().left_of(batch_of([5, 7, 31, 2]))
    assert left is not None
    assert left.rows.example_ids.tolist() == left.cluster_ids.tolist() == [5, 2]
    np.testing.assert_allclose(left.rows.weights, 1 / (len(LEFT) * left.rows.probabilities))
    assert left.rows.weights.dtype == np.float32
    assert (left.global_batch_size, left.alive) == (4, len(LEFT)), "what the trainer divides by stays"
    assert population().left_of(left) is left, "once is enough"
    others = population().left_of(batch_of([5, 6]))
    assert others is not None
    np.testing.assert_allclose(others.rows.weights, 0.5 * N / len(LEFT), err_msg="of a batch that lost none, too")


def test_in_a_sweep_each_example_counts_as_it_did():
    left = population().left_of(batch_of([5, 7, 2], drawn=False))
    assert left is not None
    assert left.rows.example_ids.tolist() == [5, 2]
    assert left.rows.weights.tolist() == [0.5, 0.5]


def test_a_part_that_lost_all_its_rows_takes_its_step_with_one_that_counts_nothing():
    left = population().left_of(batch_of([0, 7], keep=1))
    assert left is not None
    assert (left.rows.example_ids.tolist(), left.rows.weights.tolist()) == ([1], [0.0]), "the first that there is"
    assert left.rows.probabilities.tolist() == [1 / len(LEFT)]
    assert (left.cluster_ids.tolist(), left.keep) == ([NO_CLUSTER], 1)
    nothing = replace(population(), deleted_n=np.ones(N, bool), alive=0)
    assert nothing.left_of(batch_of([5])) is None
    assert nothing.first == NO_ROW


@pytest.mark.parametrize(("ids", "keep", "kept"), [([1, 2, 3, 7, 5, 6], 2, 2), ([1, 7, 8, 31], 2, 1)])
def test_candidates_that_are_left_stand_for_all_that_were_proposed(ids, keep, kept):
    """The trainer's choice of `kept` among c rows has the expected coefficient kept / (c B) for each of them; of the
    keep / (c B) that it had for the c that were drawn, weights make up for both."""
    batch = batch_of(ids, keep=keep, global_batch_size=keep)
    left = population().left_of(batch)
    assert left is not None
    assert left.keep == kept
    coefficient = left.rows.weights * left.keep / len(left.rows)
    np.testing.assert_allclose(coefficient, 0.5 * N / len(LEFT) * keep / len(ids))


def test_orders_of_a_sweep_pass_over_what_was_deleted():
    for name in ("poa", "balanced_order", "hard_negative"):
        policy, there = make_policy(name, OPTIONS.get(name, {})), population()
        rates = there.spread(policy.rates(there.view(view(np.arange(N))), progress=0.5))
        assert isinstance(rates, Sweep)
        assert rates.order is not None
        planner = Planner(N, seed=1, drop_last=False)
        steps = planner.start_epoch(0, rates, batch_size=5, world=1)
        ids = [i for (rows,) in planner.plan(0, steps, rates) for i in rows.example_ids.tolist()]
        assert sorted(ids) == LEFT.tolist()
