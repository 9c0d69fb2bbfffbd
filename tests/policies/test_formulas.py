"""Each policy's rates against its paper's formula, on tables small enough to work out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sampler_service.policies import make_policy
from sampler_service.policies.freshness import aged_norms, freshness
from sampler_service.policies.gradient_clustering import GradientClustering
from sampler_service.policies.importance import Importance
from sampler_service.types import NEVER, NO_CLUSTER, Sweep, TableView


def table(
    num_examples, *, loss=None, norm=None, cluster=None, sse=(), scatter=np.nan, reference=None, age=0
) -> TableView:
    """Reported `age` steps ago, of 10 to the epoch."""

    def column(values, dtype=np.float32):
        return np.full(num_examples, np.nan, dtype) if values is None else np.array(values, dtype)

    return TableView(
        loss_n=column(loss),
        norm_n=column(norm),
        step_n=1000 - np.broadcast_to(age, num_examples),
        cluster_n=np.full(num_examples, NO_CLUSTER, np.int32) if cluster is None else column(cluster, np.int32),
        cluster_sse_k=np.array(sse, dtype=np.float64),
        cluster_scatter=scatter,
        reference_loss_n=None if reference is None else column(reference),
        epoch_steps=10,
        step=1000,
    )


def rates_of(name, view, progress=0.0, **options):
    return make_policy(name, options).rates(view, progress=progress)


def test_equal_draws_share_half_the_batch_evenly_and_half_by_size():
    view = table(8, cluster=[0, 0, 0, 0, 0, 0, 2, 2], sse=[1, 0, 1])
    rates = rates_of("gradient_clustering", view, alpha=0.5)
    assert_allclose(rates.rate_k, [0.25 + 0.5 * 6 / 8, 0, 0.25 + 0.5 * 2 / 8, 0])


def test_neyman_draws_go_by_size_times_standard_deviation():
    # N = (4, 4), V = SSE / N = (1, 9): N sqrt(V) = 4 : 12.
    view = table(8, cluster=[0] * 4 + [1] * 4, sse=[4, 36])
    rates = rates_of("gradient_clustering", view, alpha=0.5, allocation="neyman")
    assert_allclose(rates.rate_k, [0.5 * 0.25 + 0.25, 0.5 * 0.75 + 0.25, 0])


def test_neyman_without_any_scatter_is_proportional():
    view = table(8, cluster=[0] * 6 + [1] * 2, sse=[0, 0])
    rates = rates_of("gradient_clustering", view, allocation="neyman")
    assert_allclose(rates.rate_k, [0.75, 0.25, 0])


@pytest.mark.parametrize("allocation", ["equal", "neyman"])
def test_unclustered_examples_are_a_stratum_with_their_proportion(allocation):
    view = table(10, cluster=[-1, -1, -1, 0, 0, 1, 1, 1, 1, 1], sse=[1, 2])
    rates = rates_of("gradient_clustering", view, allocation=allocation)
    assert rates.rate_k[2] == pytest.approx(0.3)
    assert rates.stratum_n.tolist() == [2, 2, 2, 0, 0, 1, 1, 1, 1, 1]
    assert rates.rate_k.sum() == pytest.approx(1)


def test_strata_of_old_sketches_go_toward_their_proportions_and_bound_the_weights_all_the_same():
    # Equal shares (1/2, 1/2), proportions (3/4, 1/4); of the second stratum one half-life has passed.
    view = table(8, cluster=[0] * 6 + [1] * 2, sse=[1, 1], age=[0] * 6 + [20, 20])
    rates = rates_of("gradient_clustering", view, alpha=0.5, half_life=2)
    trusted = np.array([1 / 2, 1 / 2 * 1 / 2 + 1 / 2 * 1 / 4])
    assert_allclose(rates.rate_k[:2], 0.5 * trusted / trusted.sum() + 0.5 * np.array([0.75, 0.25]))


@pytest.mark.parametrize("allocation", ["equal", "neyman"])
def test_very_old_sketches_leave_proportional_draws(allocation):
    view = table(8, cluster=[0] * 6 + [1] * 2, sse=[1, 9], age=900)
    rates = rates_of("gradient_clustering", view, allocation=allocation, half_life=1)
    assert_allclose(rates.rate_k, [0.75, 0.25, 0])


def test_the_predicted_ratio_is_the_scatter_inside_the_strata_against_that_over_all():
    # N = (6, 2), SSE = (3, 1), so V = 1/2 in both, and q = (5/8, 3/8): (36/64 / (5/8) + 4/64 / (3/8)) / 2 over 40 / 8.
    view = table(8, cluster=[0] * 6 + [1] * 2, sse=[3, 1], scatter=40.0)
    ratio = GradientClustering(alpha=0.5).predicted_ratio(view)
    assert ratio == pytest.approx((36 / 64 / (5 / 8) + 4 / 64 / (3 / 8)) / 2 / 5)
    assert np.isnan(GradientClustering().predicted_ratio(table(8)))


def test_importance_mixes_norm_and_uniform_and_gives_unknown_norms_the_mean():
    view = table(4, norm=[1, 3, np.nan, np.nan])  # the unknown count as 2 each, so the sum is 8
    rates = rates_of("importance", view, alpha=0.5, gate=1)
    assert_allclose(rates.probability_n, [0.5 * s / 8 + 0.125 for s in (1, 3, 2, 2)])


def test_old_norms_are_shrunk_and_mixed_with_more_uniform_draws():
    # f = (1, 1/2): their mean is 3/4, and that of the norms by freshness (1 + 3/2) / (3/2).
    view = table(2, norm=[1, 3], age=[0, 20])
    rates = rates_of("importance", view, alpha=0.5, gate=1, half_life=2)
    score = np.array([1, 3 / 2 + 1 / 2 * 5 / 3])
    sharp = 0.5 * 3 / 4
    assert_allclose(rates.probability_n, sharp * score / score.sum() + (1 - sharp) / 2)


def test_an_old_norm_is_shrunk_toward_the_fresh_mean_of_its_cluster():
    # Cluster 0 has one fresh norm of 4, cluster 1 one of 2; each mean takes in one more of the overall 3.
    view = table(4, norm=[4, 9, 2, 9], cluster=[0, 0, 1, 1], sse=[1, 1], age=[0, 900, 0, 900])
    assert_allclose(aged_norms(view, freshness(view, "norm", half_life=1)), [4, 3.5, 2, 2.5])


def aligned(alignment, *, age=0, group=None) -> TableView:
    return replace(
        table(len(alignment), age=age),
        alignment_n=np.array(alignment, np.float32),
        group_n=None if group is None else np.array(group),
    )


def test_draws_go_by_the_positive_part_of_the_alignment():
    rates = rates_of("validation_alignment", aligned([3, -2, 1, 0]), alpha=0.2)
    assert_allclose(rates.probability_n, [0.8 * a / 4 + 0.05 for a in (3, 0, 1, 0)])
    assert not rates.unbiased


def test_draws_are_even_as_far_as_the_held_out_examples_disagree():
    view = replace(aligned([3, -2, 1, 0], group=[0, 1, 1, 1]), agreement=0.5)
    sharp, even = 0.8 * 0.5, np.array([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    rates = rates_of("validation_alignment", view, alpha=0.2)
    assert_allclose(rates.probability_n, sharp * np.array([3, 0, 1, 0]) / 4 + (1 - sharp) * even)
    rates = rates_of("validation_alignment", replace(view, agreement=0.0))
    assert_allclose(rates.probability_n, even)


def test_an_old_alignment_goes_toward_the_fresh_mean_of_its_group():
    # f = (1, 1/2, 1, 0, 0): the fourth is far too old, the fifth has no sketch. Each group's mean takes in one more.
    view = aligned([4, -1, -1, 9, np.nan], age=[0, 10, 0, 90_000, 0], group=[0, 0, 1, 0, 1])
    overall = (4 - 1 / 2 - 1) / 2.5
    first, second = (4 - 1 / 2 + overall) / 2.5, (-1 + overall) / 2
    wanted = np.array([4, (-1 + first) / 2, -1, first, second]).clip(0)
    rates = rates_of("validation_alignment", view, alpha=0.5)
    even = 0.5 * np.array([1 / 3, 1 / 3, 1 / 2, 1 / 3, 1 / 2])  # each group as often as the other
    assert_allclose(rates.probability_n, 0.5 * wanted / wanted.sum() + 0.5 * even)
    # Without groups the mean is that of all.
    wanted = np.array([4, (-1 + overall) / 2, -1, overall, overall]).clip(0)
    rates = rates_of("validation_alignment", replace(view, group_n=None), alpha=0.5)
    assert_allclose(rates.probability_n, 0.5 * wanted / wanted.sum() + 0.1)


def test_very_old_norms_leave_uniform_draws():
    for age in (900, np.array([900, 300, 600])):
        rates = rates_of("importance", table(3, norm=[1, 5, 30], age=age), alpha=0.1, gate=1, half_life=1)
        assert_allclose(rates.probability_n, 1 / 3, rtol=1e-6)
    assert "too even" in Importance(half_life=1).aside(table(3, norm=[1, 5, 30], age=900))


def test_the_age_of_norms_is_that_of_the_gradients():
    view = replace(table(2, norm=[1, 3], age=0), gradient_step_n=np.array([100, NEVER]))
    assert_allclose(freshness(view, "norm", half_life=90), [1 / 2, 0])
    assert_allclose(freshness(replace(view, gradient_step_n=None), "norm", half_life=90), 1)


def test_tau_is_one_for_equal_norms_and_root_n_for_a_single_one():
    assert Importance().tau(table(9, norm=[5] * 9)) == pytest.approx(1)
    assert Importance().tau(table(9, norm=[0] * 8 + [1])) == pytest.approx(3)
    assert Importance().tau(table(9)) == pytest.approx(1)


def test_importance_acts_exactly_from_its_gate_on():
    view = table(2, norm=[0, 1])  # tau = sqrt(2), the default gate
    assert Importance().tau(view) == pytest.approx(np.sqrt(2))
    assert isinstance(Importance(gate=1.5).rates(view, progress=0), Sweep)
    assert not isinstance(Importance(gate=1.4).rates(view, progress=0), Sweep)
    assert "tau 1.41 is below the gate 1.50" in Importance(gate=1.5).aside(view)
    assert Importance(gate=1.4).aside(view) == ""


def test_infobatch_prunes_below_the_mean_of_the_known_losses():
    view = table(5, loss=[0, 1, 2, 5, np.nan])  # mean 2, and 2 is not below it
    rates = rates_of("infobatch", view, prune_ratio=0.75)
    assert_allclose(rates.keep_n, [0.25, 0.25, 1, 1, 1])
    assert_allclose(rates.weight_n, [4, 4, 1, 1, 1])


@pytest.mark.parametrize(("progress", "full"), [(0.0, False), (0.87, False), (0.875, True), (1.0, True)])
def test_infobatch_ends_on_full_epochs(progress, full):
    rates = rates_of("infobatch", table(3, loss=[0, 1, 9]), progress=progress)
    assert (rates.keep_n == 1).all() == full


def test_selective_backprop_raises_the_rank_to_beta_and_never_below_s_min():
    view = table(5, loss=[4, 1, 2, 2, np.nan])
    rates = rates_of("selective_backprop", view, beta=2, s_min=0.1)
    assert_allclose(rates.keep_n, [1, 0.1, 0.75**2, 0.75**2, 1])
    assert (rates.weight_n == 1).all()


def test_rho_loss_scores_by_the_reducible_loss_and_sees_the_unknown_first():
    view = table(4, loss=[3, 5, np.nan, 2], reference=[1, 5, 1, np.nan])
    rates = rates_of("rho_loss", view, top_fraction=0.2)
    assert rates.score_n.tolist() == [2, 0, np.inf, 1]  # without a reference: the mean of the known scores
    assert rates.top_fraction == 0.2
    assert (rates.keep_n == 1).all()
