"""What `auto` picks in a run, and what stands in while its second stage stands aside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sampler_service.datasets import Dataset
from sampler_service.rates import PresentRates
from sampler_service.sampler import Sampler
from sampler_service.types import Evidence, ReportBlock, Stage
from tests.support import FakeTrainer, gradients, join_all, make_sampler

N = 400
EVERYTHING = Dataset((N,)).population(N)
APART = np.where(np.arange(N) % 3 == 0, 9.0, 0.1)
UNEVEN = np.random.default_rng(0).lognormal(0, 1.5, N).astype(np.float32)
POOR = Stage(scoring_s=0.001, training_s=0.002, waiting_s=0.0, uniform=1.0, proposed=1.0, chosen=0.99)
RICH = Stage(scoring_s=0.0001, training_s=0.002, waiting_s=0.0, uniform=1.0, proposed=0.3, chosen=0.1)

WORSE = Evidence(rows=64, uniform=1.0, chosen=5.0, by_norms=False, scored_uniform=1.0, scored_chosen=0.1)


def block(step: int, *, losses=None, norms=None, sketches=None) -> ReportBlock:
    nothing = np.full(N, np.nan, np.float32)
    return ReportBlock(
        example_ids=np.arange(N),
        losses=nothing if losses is None else losses.astype(np.float32),
        norms=nothing if norms is None else norms,
        sketches=sketches,
        step=step,
    )


def report_all(sampler: Sampler, step: int, norms: np.ndarray = UNEVEN, *, scatter: float = 0.0) -> PresentRates:
    """Of every example its norm, and with a scatter its sketch, which is clustered."""
    whole = block(step, norms=norms, sketches=gradients(np.arange(N), scatter) if scatter else None)
    sampler._table.apply(whole)
    if scatter:
        sampler._shards.update(whole)
        sampler._rates.sketched = True
        sampler.refresh()
    return sampler._rates


def stand_aside(rates: PresentRates, stage: Stage = POOR) -> None:
    for _ in range(8):
        rates.stage.add(stage, rates.stage.most)


def two_stages(**changes) -> tuple[Sampler, FakeTrainer]:
    sampler = make_sampler(N, policy="auto", candidates=2, num_clusters=4, **changes)
    return sampler, join_all(sampler, batch=8)[0]


def test_clusters_that_do_no_good_keep_no_other_policy_from_acting():
    sampler = make_sampler(N, policy="auto", policy_options={"prune": "yes"}, num_clusters=4)
    rates = report_all(sampler, 0, scatter=0.1)
    chosen = rates.choose(0, 0, EVERYTHING)
    assert chosen.reason.startswith("gradient_clustering: gradients are redundant: clusters are predicted to leave 0.0")
    rates.judge(0.95)
    assert "variance ratio is 0.95" in rates.choose(0, 1, EVERYTHING).reason
    assert rates.choose(1, 0, EVERYTHING).reason.startswith(
        "importance: there are gradient norms, and clusters are measured to"
    )
    sampler._table.apply(block(1, losses=APART))
    chosen = rates.choose(2, 0, EVERYTHING)
    assert (chosen.policy, chosen.reason[:13]) == ("trimmed_loss", "trimmed_loss:")
    assert rates.choose(2, 1, EVERYTHING).reason == chosen.reason


def test_new_clusters_are_picked_again():
    rates = report_all(sampler := make_sampler(N, policy="auto", num_clusters=4), 0, scatter=0.1)
    rates.choose(0, 0, EVERYTHING)
    rates.judge(0.95)
    assert rates.choose(1, 0, EVERYTHING).policy == "importance"
    sampler.refresh()
    assert rates.choose(2, 0, EVERYTHING).policy == "gradient_clustering"


def test_the_ratio_of_other_draws_says_nothing_of_the_clusters():
    sampler, trainer = two_stages()
    rates = report_all(sampler, 0, scatter=0.1)
    trainer.start(0)
    assert trainer.take_acked().batches[0].policy == "two_stage"
    rates.judge(0.95)
    stand_aside(rates)
    assert trainer.take_acked().batches[0].policy == "gradient_clustering"


def test_auto_picks_again_as_soon_as_there_are_sketches():
    rates = make_sampler(N, policy="auto")._rates
    assert "nothing is known" in rates.choose(0, 0, EVERYTHING).reason
    rates.sketched = True
    assert "clustered sketches" in rates.choose(0, 1, EVERYTHING).reason
    assert rates.policy.name == "gradient_clustering"


@pytest.mark.parametrize(
    ("known", "policy", "why"),
    [
        ({}, "importance", "there are gradient norms"),
        ({"scatter": 0.1}, "gradient_clustering", "gradients are redundant: clusters are predicted to leave 0.0"),
        ({"norms": np.ones(N, np.float32)}, "shuffle", "tau 1.00 is below the gate"),
    ],
)
def test_a_second_stage_that_does_not_pay_gives_way_to_what_is_known_but_for_its_probes(known, policy, why):
    sampler, trainer = two_stages()
    rates = report_all(sampler, 0, **known)
    trainer.start(0)
    assert {b.policy for b in trainer.take_acked(2).batches} == {"two_stage"}
    stand_aside(rates)
    (batch,) = trainer.take_acked().batches
    assert (batch.policy, batch.keep) == (policy, 0)
    reason = sampler.statistics().reason
    assert (
        reason.startswith(f"{policy}: choosing among 2 candidates for each example would leave 0.99") and why in reason
    )
    planned = [b for _ in range(40) for b in trainer.take_acked().batches]
    probes = [b.policy == "two_stage" for b in planned]
    assert 0 < sum(probes) < len(planned) / 4
    assert all((b.keep > 0) == probe for b, probe in zip(planned, probes, strict=True))
    assert {b.policy for b in planned} == {policy, "two_stage"}


@pytest.mark.parametrize("scored", [False, True])
def test_what_doubted_scores_left_in_the_table_is_drawn_by_in_no_way(scored):
    sampler, trainer = two_stages()
    rates = report_all(sampler, 0)
    trainer.start(0)
    if scored:
        sampler.published(1, 0)
    stand_aside(rates, replace(RICH, proposed=0.5))
    assert trainer.take_acked().batches[0].policy == "two_stage"
    for _ in range(20):
        rates.stage.witness.add(WORSE)
    sampler.fence()
    assert trainer.take_acked().batches[0].policy == "shuffle"
    assert "the scores measure something else" in sampler.statistics().reason


def test_a_second_stage_that_pays_again_acts_again():
    sampler, trainer = two_stages()
    rates = report_all(sampler, 0)
    trainer.start(0)
    stand_aside(rates)
    assert trainer.take_acked().batches[0].policy == "importance"
    stand_aside(rates, RICH)
    assert trainer.take_acked().batches[0].policy == "two_stage"


@pytest.mark.parametrize("policy", ["auto", "two_stage"])
def test_where_scorers_keep_scores_fresh_proposals_alone_stand_in(policy):
    sampler = make_sampler(N, policy=policy, candidates=2)
    (trainer,) = join_all(sampler, batch=8)
    rates = report_all(sampler, 0)
    trainer.start(0)
    stand_aside(rates, replace(POOR, proposed=0.5))
    assert trainer.take_acked().batches[0].policy == ("importance" if policy == "auto" else "shuffle")
    sampler.published(1, 0)
    sampler.fence()
    (batch,) = trainer.take_acked().batches
    assert (batch.policy, batch.keep, len(batch.rows)) == ("two_stage", 0, 8)
    assert sampler.statistics().reason.startswith("two_stage: choosing among 2 candidates")
    assert "and proposals alone leave 0.50" in sampler.statistics().reason
    assert any(b.keep for _ in range(40) for b in trainer.take_acked().batches), "it never probed"


def test_norms_that_have_grown_old_meanwhile_give_way_to_shuffling():
    sampler, trainer = two_stages(fresh_epochs=3.0)
    rates = report_all(sampler, 0)
    trainer.start(0)
    stand_aside(rates)
    assert trainer.take_acked().batches[0].policy == "importance"
    sampler._table.step = 4 * trainer.steps_per_epoch
    sampler.fence()
    assert trainer.take_acked().batches[0].policy == "shuffle"
    assert "0 % of gradient norms are fresh" in sampler.statistics().reason


def test_sketches_that_come_in_an_epoch_whose_second_stage_stands_aside_are_used_in_it():
    sampler, trainer = two_stages()
    trainer.start(0)
    stand_aside(sampler._rates)
    assert trainer.take_acked().batches[0].policy == "shuffle"
    report_all(sampler, 0, scatter=0.1)
    assert trainer.take_acked().batches[0].policy == "gradient_clustering"


def test_what_stands_in_teaches_the_proposals_nothing():
    """The share of uniform proposals is learnt by comparing fresh scores with the proposals' rates, not with others."""
    sampler, trainer = two_stages()
    rates = report_all(sampler, 0)
    trainer.start(0)
    (proposed,) = trainer.take_acked().batches
    stand_aside(rates)
    trainer.take_acked()
    assert rates.chosen is not None and rates.chosen.policy == "importance"
    norms = UNEVEN[proposed.rows.example_ids]
    trainer.report(proposed, scores=True, norms=norms, sketches=None)
    assert rates.mix._seen == 0


def test_what_auto_says_of_its_bias():
    said = {
        prune: make_sampler(N, policy="auto", policy_options={"prune": prune}).statistics() for prune in ("no", "yes")
    }
    assert said["no"].unbiased and not said["yes"].unbiased
