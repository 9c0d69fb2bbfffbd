"""When a second stage pays, by what it measured."""

from __future__ import annotations

import itertools
import math

import pytest

from sampler_service.stages import ENOUGH, PROBE_EVERY, SHUFFLED, WINDOW, StageMonitor
from sampler_service.types import Evidence, Stage
from sampler_service.witness import FEWEST_ROWS, FEWEST_STEPS


def measured(*, chosen: float, proposed: float = 1.0, scoring_s: float = 0.001, training_s: float = 0.002) -> Stage:
    """A step whose uniform second moment is 1."""
    return Stage(
        scoring_s=scoring_s, training_s=training_s, waiting_s=0.0, uniform=1.0, proposed=proposed, chosen=chosen
    )


def after(stage: Stage, *, most: int = 3, steps: int = WINDOW) -> StageMonitor:
    monitor = StageMonitor(most)
    for _ in range(steps):
        monitor.add(stage, most)
    return monitor


def test_it_begins_with_all_candidates_and_keeps_them_until_it_knows():
    monitor = after(measured(chosen=1.0), steps=ENOUGH - 1)
    assert monitor.plan(1) == 3
    monitor.add(measured(chosen=1.0), 3)
    assert monitor.plan(1) == 1


def test_ratio_and_cost_of_what_was_measured_and_of_fewer_candidates():
    monitor = after(measured(chosen=0.4, proposed=0.9, scoring_s=0.003, training_s=0.002))
    assert monitor.ratio(3) == pytest.approx(0.4)
    assert monitor.ratio(1) == pytest.approx(0.9)
    assert 0.4 < monitor.ratio(2) < 0.9
    assert monitor.cost(3) == pytest.approx((2 + 3) / 2)
    assert monitor.cost(2) == pytest.approx((2 + 2) / 2)
    assert monitor.cost(1) == pytest.approx(1.0)


def test_waiting_for_more_candidates_is_a_cost_too():
    waiting = Stage(scoring_s=0.0, training_s=0.002, waiting_s=0.006, uniform=1.0, proposed=1.0, chosen=0.5)
    assert after(waiting).cost(3) == pytest.approx((2 + 6) / (2 + 2))


@pytest.mark.parametrize(
    ("chosen", "scoring_s", "wanted"),
    [
        (0.2, 0.001, 3),  # cheap and good
        (0.9, 0.001, 1),  # little to gain
        (0.35, 0.012, 1),  # too dear
    ],
)
def test_it_takes_what_costs_least_for_the_variance_it_leaves(chosen, scoring_s, wanted):
    assert after(measured(chosen=chosen, scoring_s=scoring_s)).decide() == wanted


def test_the_first_candidates_bring_most_where_proposals_are_good():
    """Proposals alone leave little: a second candidate improves on them, a third is not worth its price."""
    monitor = after(measured(chosen=0.34, proposed=0.4, scoring_s=0.003, training_s=0.004))
    assert monitor.ratio(2) * monitor.cost(2) < monitor.ratio(3) * monitor.cost(3)
    assert monitor.decide() == 2


@pytest.mark.parametrize("bunch", [1, 2, 4])
def test_a_run_that_stands_aside_probes_now_and_then_and_comes_back(bunch):
    monitor = after(measured(chosen=0.99))
    planned = [monitor.plan(bunch) for _ in range(12 * PROBE_EVERY // bunch)]
    runs = [(candidates, bunch * len(list(group))) for candidates, group in itertools.groupby(planned)]
    assert {steps for candidates, steps in runs if candidates == 3} == {ENOUGH}
    pauses = [steps for candidates, steps in runs if candidates == 1]
    assert pauses[:4] == [32, 64, 128, 256]
    assert pauses[-2] == PROBE_EVERY, "more and more seldom, but never again never"
    assert "0.99 of the variance" in monitor.reason
    while monitor.plan(1) == 1:
        pass
    for _ in range(ENOUGH):  # of one probe
        monitor.add(measured(chosen=0.2), 3)
    assert monitor.decide() == 3


def test_where_standing_aside_is_to_draw_by_the_proposals_these_are_its_price():
    stage = measured(chosen=0.3, proposed=0.4, scoring_s=0.003, training_s=0.003)
    assert after(stage).decide() > 1, "0.3 of the variance at twice the cost is less than shuffling's"
    monitor = StageMonitor(3, shuffles=False)
    for _ in range(ENOUGH):
        monitor.add(stage, 3)
    assert monitor.decide() == 1, "but more than the 0.4 that the proposals leave alone"


@pytest.mark.parametrize(("proposed", "wanted"), [(0.4, (1, True)), (0.83, (3, False)), (1.2, (3, False))])
def test_where_scorers_keep_scores_fresh_proposals_alone_have_a_price_of_their_own(proposed, wanted):
    monitor = after(measured(chosen=0.3, proposed=proposed, scoring_s=0.003, training_s=0.003))
    assert monitor.decide() > 1 and not monitor.proposes, "0.3 of the variance at twice the cost"
    monitor.kept_fresh = True
    assert (monitor.decide(), monitor.proposes) == wanted
    assert ("proposals alone leave 0.40" in monitor.reason) == monitor.proposes


def test_poor_proposals_are_not_drawn_by_while_a_run_stands_aside():
    monitor = after(measured(chosen=0.9, proposed=0.84))
    monitor.kept_fresh = True
    assert (monitor.decide(), monitor.proposes) == (1, False), "0.84 is no better than shuffling's 0.85 by the margin"


def test_a_single_candidate_is_no_second_stage():
    monitor = StageMonitor(1)
    assert [monitor.plan(1) for _ in range(2 * PROBE_EVERY)] == [1] * (2 * PROBE_EVERY)
    assert "nothing to choose" in monitor.reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_measures_that_are_none_are_left_out(value):
    monitor = StageMonitor(3)
    monitor.add(measured(chosen=value), 3)
    monitor.add(measured(chosen=0.5, scoring_s=value), 3)
    assert math.isnan(monitor.ratio(3))


def test_measures_of_other_numbers_of_candidates_do_not_mix():
    monitor = after(measured(chosen=0.9))
    monitor.add(measured(chosen=0.5), 2)
    assert monitor.ratio(2) == pytest.approx(0.5)


def test_a_tie_changes_nothing():
    monitor = after(measured(chosen=0.4 * SHUFFLED, proposed=1.0, scoring_s=0.003, training_s=0.002))
    assert monitor.ratio(3) * monitor.cost(3) == pytest.approx(SHUFFLED)
    assert monitor.decide() == 3


def test_a_gain_that_shuffled_epochs_have_too_is_none():
    monitor = after(measured(chosen=0.37, proposed=1.0, scoring_s=0.003, training_s=0.002))
    assert SHUFFLED < monitor.ratio(3) * monitor.cost(3) < 1
    assert monitor.decide() == 1


def seen(ratio: float, *, rows: int = 64, by_norms: bool = False, scored: float = 0.2) -> Evidence:
    """A batch of which training showed this ratio where the scores said `scored`."""
    return Evidence(rows=rows, uniform=1.0, chosen=ratio, by_norms=by_norms, scored_uniform=1.0, scored_chosen=scored)


def disproved(rows: int = 64) -> StageMonitor:
    """Scores that promise much, and were found out."""
    monitor = after(measured(chosen=0.2))
    assert monitor.plan(1) == 3
    for _ in range(FEWEST_ROWS // rows):
        monitor.add(measured(chosen=0.2), 3)
        monitor.witness.add(seen(1.4, rows=rows))
    return monitor


def test_scores_that_measure_something_else_close_the_gate_whatever_they_promise():
    monitor = disproved()
    assert monitor.plan(1) == 1
    assert "by the losses of what was trained on, the choice leaves 1.40 of the variance" in monitor.reason


@pytest.mark.parametrize("rows", [16, 64])
def test_scores_in_doubt_are_probed_until_there_is_enough_to_tell(rows):
    monitor = disproved(rows)
    planned = [monitor.plan(1) for _ in range(200 * FEWEST_ROWS // rows)]
    runs = [(candidates, len(list(group))) for candidates, group in itertools.groupby(planned)]
    needed = FEWEST_ROWS // rows
    assert {steps for candidates, steps in runs[:-1] if candidates == 3} == {needed}
    assert runs[0] == (1, 32 * needed // ENOUGH), "in proportion"
    assert sum(planned) < 1.2 * len(planned), "and it costs no more than others"


def test_a_scorer_that_becomes_right_is_found_out_at_the_next_probe():
    monitor = disproved()
    while monitor.plan(1) == 1:
        pass
    for step in range(FEWEST_STEPS):
        monitor.add(measured(chosen=0.2), 3)
        monitor.witness.add(seen(0.6))
        assert monitor.decide() == (3 if step == FEWEST_STEPS - 1 else 1)


def test_a_probe_that_found_enough_against_the_scores_ends():
    monitor = disproved()
    while monitor.plan(1) == 1:
        pass
    for _ in range(FEWEST_STEPS):
        monitor.witness.add(seen(1.4, rows=128))  # as of two ranks
    assert [monitor.plan(1) for _ in range(3)] == [3, 1, 1]


def test_gradient_norms_correct_the_price():
    """What the scores promise would pay, what the norms found does not; and the other way round."""
    monitor = after(measured(chosen=0.4))
    for _ in range(FEWEST_STEPS):
        monitor.witness.add(seen(0.9, scored=0.4, by_norms=True))
    assert monitor.decide() == 1
    assert "leave 0.90 of the variance" in monitor.reason
    assert monitor.ratio(3) == pytest.approx(0.4), "by the scores"
    shy = after(measured(chosen=0.9))
    for _ in range(FEWEST_STEPS):
        shy.witness.add(seen(0.2, scored=0.9, by_norms=True))
    assert shy.decide() > 1
