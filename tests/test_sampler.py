"""The whole story in one process: reports change the table, the table changes the batches."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sampler_service import rates as rates_module
from sampler_service.errors import ConfigError
from sampler_service.policies import POLICIES
from sampler_service.sampler import Sampler
from sampler_service.service import InProcessService
from sampler_service.types import Batch, ReportBlock
from tests.support import DIM, FakeTrainer, ids_of, join_all, make_config, make_sampler, report_of

N = 48
CANDIDATES = {"two_stage": 2}
PICKS = {"auto": "gradient_clustering", "phases": "gradient_clustering", "time_budget": "infobatch"}
LENGTHS = {"time_budget": {"by_budget": True}}
"""of runs that don't go by epochs"""
POLICY_OPTIONS = {
    "importance": {"gate": "1"},
    "rho_loss": {"top_fraction": "0.5"},
    "hard_negative": {"begin": "0", "end": "0.5", "first": "1", "together": "3"},
}


def train(trainer: FakeTrainer, epochs: int, first: int = 0, lag: int = 1, **changes) -> list:
    """Whole epochs, each batch reported when `lag` later ones have come; the clusters are kept fresh."""
    start = len(trainer.received)
    for epoch in range(first, first + epochs):
        trainer.start(epoch)
        ended = False
        while not ended:
            ended = trainer.take(1).ended
            done = list(trainer.held.values())[: None if ended else max(0, len(trainer.held) - lag)]
            for batch in done:
                trainer.report(batch, **changes)
                del trainer.held[batch.batch_id]
            if trainer.sampler.refresh_due():
                trainer.sampler.refresh()
    return trainer.received[start:]


def table_of(sampler: Sampler):
    return sampler._table


# --- versions ---


def test_the_version_rises_with_each_report_and_a_fence_puts_it_into_the_next_batch(monkeypatch):
    monkeypatch.setattr(rates_module, "RATES_ROWS_PER_STEP", 8)  # without a fence, rates serve for some batches
    sampler = make_sampler(N, policy="importance", policy_options={"gate": "1"})
    (trainer,) = join_all(sampler)
    train(trainer, 2)
    trainer.start(2)
    batch, versions = trainer.take(1).batches[0], []
    trainer.report(batch, batch_id=0)
    assert trainer.take(1).batches[0].table_version == batch.table_version
    for _ in range(3):
        versions.append(trainer.report(batch, batch_id=0).table_version)
    assert versions == sorted(set(versions))
    fenced = sampler.fence()
    assert fenced >= versions[-1]
    assert trainer.take(1).batches[0].table_version >= fenced


def test_the_first_batch_planned_after_a_fence_is_drawn_by_what_was_reported_before_it(monkeypatch):
    monkeypatch.setattr(rates_module, "RATES_ROWS_PER_STEP", 8)  # without a fence, rates serve for some batches
    ageless = {"gate": "1", "alpha": "0.5", "half_life": "1e6"}
    sampler = make_sampler(N, policy="importance", policy_options=ageless)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    (batch,) = trainer.take(1).batches

    def report(norm_n: np.ndarray) -> None:
        columns = {"losses": np.ones(N, np.float32), "sketches": np.zeros((N, DIM), np.float32)}
        trainer.report(batch, batch_id=0, example_ids=np.arange(N), norms=norm_n, **columns)

    def assert_drawn_by(norm_n: np.ndarray) -> None:
        rows = trainer.take(1).batches[0].rows
        chance_n = 0.5 * norm_n / norm_n.sum() + 0.5 / N
        np.testing.assert_allclose(rows.probabilities, chance_n[rows.example_ids], rtol=1e-5)

    rising = np.arange(1, N + 1, dtype=np.float32)
    report(rising)
    sampler.fence()
    trainer.start(1)
    assert_drawn_by(rising)
    report(rising[::-1])
    assert_drawn_by(rising)
    sampler.fence()
    assert_drawn_by(rising[::-1])


@pytest.mark.parametrize("policy", ["importance", "gradient_clustering"])
@pytest.mark.parametrize("rows_per_step", [1 << 17, 8])
def test_a_draw_is_planned_from_a_table_at_most_max_lead_batches_old(policy, rows_per_step, monkeypatch):
    monkeypatch.setattr(rates_module, "RATES_ROWS_PER_STEP", rows_per_step)
    sampler = make_sampler(N, policy=policy, policy_options=POLICY_OPTIONS.get(policy, {}), max_lead=3)
    (trainer,) = join_all(sampler, lead=3)
    train(trainer, 2)
    rng = np.random.default_rng(0)
    versions, ages = [table_of(sampler).version], []
    for epoch in range(2, 5):
        trainer.start(epoch)
        ended = False
        while not ended:
            taken = trainer.take(int(rng.integers(1, 4)))
            ended = taken.ended
            for batch in taken.batches:
                assert batch.policy == policy
                ages.append(sum(version > batch.table_version for version in versions))
            for batch in list(trainer.held.values()):
                if ended or rng.random() < 0.7:
                    versions.append(trainer.report(batch).table_version)
                    del trainer.held[batch.batch_id]
    assert max(ages) <= 3 if rows_per_step == 8 else max(ages) == 0
    assert rows_per_step != 8 or max(ages) > 0, "the test saw no reuse of rates"


# --- standing aside ---


def test_gradient_clustering_shuffles_until_enough_sketches_are_there_and_says_so():
    (trainer,) = join_all(make_sampler(N, policy="gradient_clustering"))
    started = trainer.start(0)
    assert started.policy == "shuffle" and "0 % of clustered sketches are fresh" in started.reason
    first = train(trainer, 1)
    switched = [b.policy for b in first]
    assert switched == sorted(switched, reverse=True), "once it acts it goes on"
    second = train(trainer, 1, first=1)
    assert {b.policy for b in second} == {"gradient_clustering"}
    statistics = trainer.sampler.statistics()
    assert (statistics.active_policy, statistics.reason) == ("gradient_clustering", "")
    assert statistics.refreshes >= 1 and statistics.num_clusters == 4
    train(trainer, 2, first=2)
    later = train(trainer, 1, first=4)
    assert all((b.cluster_ids >= 0).all() for b in later), "by now every example has been clustered"


def test_without_sketches_gradient_clustering_stays_aside_for_good():
    (trainer,) = join_all(make_sampler(N, policy="gradient_clustering"))
    batches = train(trainer, 3, sketches=None)
    assert {b.policy for b in batches} == {"shuffle"}
    for epoch in range(3):
        assert sorted(ids_of(b for b in batches if b.epoch == epoch)) == list(range(N))
    assert "needs 50 %" in trainer.sampler.statistics().reason


def test_gradient_clustering_stands_aside_when_it_measures_that_it_does_no_good():
    n = 800
    sampler = make_sampler(n, policy="gradient_clustering", num_clusters=8)
    (trainer,) = join_all(sampler, batch=16)
    train(trainer, 2)
    assert sampler.statistics().variance_ratio < 0.5, "clusters of the true gradients help"
    # From now on the gradients have nothing to do with the clusters, and reports are too few for new ones.
    trainer.start(2)
    rng = np.random.default_rng(0)
    policies, ratio = [], 0.0
    for _ in range(20):
        (batch,) = trainer.take_acked().batches
        policies.append(batch.policy)
        noise = 100 * rng.standard_normal((len(batch.rows), DIM)).astype(np.float32)
        trainer.report(batch, sketches=noise, norms=np.linalg.norm(noise, axis=1).astype(np.float32))
        ratio = sampler.statistics().variance_ratio
        if ratio > 0.9:
            break
    assert ratio > 0.9 and set(policies) == {"gradient_clustering"}
    sampler.refresh_due()
    batch = trainer.take_acked().batches[0]
    statistics = sampler.statistics()
    assert batch.policy == statistics.active_policy == "shuffle"
    assert f"ratio is {ratio:.2f}, above 0.9" in statistics.reason
    assert batch.table_version == table_of(sampler).version
    assert (batch.rows.weights == 1).all()
    sampler.refresh()
    trainer.take_acked()
    assert sampler.statistics().active_policy == "gradient_clustering"


def test_rho_loss_without_reference_losses_shuffles_and_says_so():
    (trainer,) = join_all(make_sampler(N, policy="rho_loss", policy_options={"top_fraction": "0.5"}))
    assert {b.policy for b in train(trainer, 2)} == {"shuffle"}
    assert "reference losses" in trainer.sampler.statistics().reason
    trainer.sampler.set_reference(np.zeros(N, np.float32))
    batches = train(trainer, 1, first=2)
    assert {b.policy for b in batches} == {"rho_loss"} and len(ids_of(batches)) == N // 2


@pytest.mark.parametrize(
    ("losses", "what"),
    [(np.zeros(N - 1, np.float32), "got 47"), (np.full(N, np.inf, np.float32), "example 0 is inf")],
)
def test_reference_losses_that_do_not_fit_are_refused(losses, what):
    with pytest.raises(ConfigError, match=what):
        make_sampler(N).set_reference(losses)


def test_infobatch_knows_in_which_epoch_it_is_and_ends_on_whole_ones():
    options = {"prune_ratio": "0.5", "delta": "0.5"}
    (trainer,) = join_all(make_sampler(N, policy="infobatch", policy_options=options, epochs=4))
    train(trainer, 4)
    kept = [len(ids_of(b for b in trainer.received if b.epoch == epoch)) for epoch in range(4)]
    assert kept[0] == kept[2] == kept[3] == N and kept[1] < N


# --- every policy, from end to end ---


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_runs_for_three_epochs_with_sound_batches(policy, world):
    length, candidates = LENGTHS.get(policy, {"epochs": 3}), CANDIDATES.get(policy, 1)
    options = POLICY_OPTIONS.get(policy, {})
    sampler = make_sampler(N, policy=policy, policy_options=options, candidates=candidates, **length)
    sampler.set_reference(np.linspace(0, 1, N).astype(np.float32))
    trainers = join_all(sampler, world)
    rng = np.random.default_rng(1)
    for epoch in range(3):
        for trainer in trainers:
            trainer.start(epoch)
        steps = [t.num_steps for t in trainers]
        assert len(set(steps)) == 1 and steps[0] > 0
        for _ in range(steps[0]):
            for trainer in trainers:
                (batch,) = trainer.take(1).batches
                r = len(batch.rows)
                trainer.report(
                    batch,
                    losses=losses_of(policy, batch, rng),
                    norms=None if policy == "hard_negative" else rng.lognormal(0, 1, r).astype(np.float32),
                    sketches=rng.standard_normal((r, DIM)).astype(np.float32),
                )
                trainer.held.clear()
            if sampler.refresh_due():
                sampler.refresh()
        assert all(trainer.take(1).ended for trainer in trainers)
        if POLICIES[policy].needs & {"alignment"}:
            sampler.set_target(rng.standard_normal((5, DIM)).astype(np.float32))
    policies = set()
    for batch in (b for t in trainers for b in t.received):
        rows = batch.rows
        policies.add(batch.policy)
        assert len(rows) == len(rows.weights) == len(rows.probabilities) == len(batch.cluster_ids) > 0
        assert ((rows.example_ids >= 0) & (rows.example_ids < N)).all()
        assert np.isfinite(rows.weights).all() and (rows.weights > 0).all()
        assert (rows.probabilities > 0).all() and (rows.probabilities <= 1).all()
        if POLICIES[policy].kind == "draw" and batch.policy == policy != "validation_alignment":
            assert np.allclose(rows.weights * rows.probabilities * N, 1, rtol=1e-5)
    assert PICKS.get(policy, policy) in policies, "it never acted"


def losses_of(policy: str, batch: Batch, rng: np.random.Generator) -> np.ndarray:
    """Of each row; for the policy that looks for wrong labels, those of every third example lie apart."""
    apart = 20 * (batch.rows.example_ids % 3 == 0) if policy == "trimmed_loss" else 0
    return (rng.exponential(size=len(batch.rows)) + apart).astype(np.float32)


# --- the same again ---


def stream_of(policy: str, seed: int) -> list[tuple]:
    length, options = LENGTHS.get(policy, {"epochs": 3}), POLICY_OPTIONS.get(policy, {})
    sampler = make_sampler(N, policy=policy, policy_options=options, seed=seed, **length)
    (trainer,) = join_all(sampler)
    train(trainer, 1)
    sampler.set_target(np.eye(DIM, dtype=np.float32)[:2])
    train(trainer, 2, first=1)
    return [
        (b.batch_id, b.epoch, b.step, b.policy, b.table_version, ids_of([b]), b.rows.weights.tolist())
        for b in trainer.received
    ]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_same_seed_and_reports_give_the_same_batches_and_another_seed_gives_others(policy):
    one, two, other = (stream_of(policy, seed) for seed in (5, 5, 6))
    assert one == two
    assert [row[5] for row in one] != [row[5] for row in other]


def local_stream(services: list[InProcessService], names: list[str], sizes: list[int]) -> list[list]:
    """Two epochs of each run, step by step in turn."""
    trainers = []
    for service, name, n in zip(services, names, sizes, strict=True):
        service.register_dataset(f"data-{name}", n)
        service.open_run(make_config(n, run=name, dataset=f"data-{name}", policy="gradient_clustering", seed=len(name)))
        sampler = service._sampler(name)
        trainers.append((service, join_all(sampler)[0]))
    for epoch in range(2):
        for _, trainer in trainers:
            trainer.start(epoch)
        under_way = list(trainers)
        while under_way:
            for service, trainer in list(under_way):
                taken = trainer.take_acked()
                for batch in taken.batches:
                    service.report(trainer.session, [report_of(batch, step=len(trainer.received))])
                    trainer.held.clear()
                if taken.ended:
                    under_way.remove((service, trainer))
    return [[(b.batch_id, b.policy, b.table_version, ids_of([b])) for b in t.received] for _, t in trainers]


def test_two_runs_side_by_side_get_what_each_gets_alone():
    together = InProcessService(shards=2)
    beside = local_stream([together, together], ["a", "bb"], [48, 60])
    alone = [local_stream([InProcessService(shards=2)], [name], [n])[0] for name, n in (("a", 48), ("bb", 60))]
    assert beside == alone
    assert any(policy == "gradient_clustering" for _, policy, *_ in alone[0])


def test_what_was_reported_survives_a_restart_of_the_run_in_the_shards():
    before = make_sampler(N)
    train(join_all(before)[0], 1)
    after = Sampler(before.config, before._shards)
    after.recover()
    for column in ("loss_n", "norm_n", "step_n"):
        assert np.array_equal(getattr(table_of(before), column), getattr(table_of(after), column))
    assert after.refresh_due() is None and make_sampler(N).refresh_due() is None


def test_what_a_run_was_given_survives_a_restart_of_the_run_in_the_shards():
    before = make_sampler(N, policy="validation_alignment")
    train(join_all(before)[0], 1)
    before.set_groups(np.arange(N) % 3)
    before.set_reference(np.linspace(0, 1, N).astype(np.float32))
    before.set_target(np.ones((2, DIM), np.float32))
    after = Sampler(before.config, before._shards)
    after.recover()
    for column in ("group_n", "reference_loss_n", "alignment_n"):
        assert np.array_equal(getattr(table_of(before), column), getattr(table_of(after), column)), column
    (trainer,) = join_all(after)
    assert trainer.start(1).policy == "validation_alignment"
    table_of(after).reference_loss_n[:] = 7  # what the shards keep is nobody else's
    assert before._shards.given().reference_loss_n.max() == 1


def test_examples_that_came_after_what_was_given_have_none_of_it_after_a_restart():
    before = make_sampler(N)
    before.set_groups(np.arange(N) % 3)
    before.set_reference(np.zeros(N, np.float32))
    before._shards.grow(N + 2)
    after = Sampler(replace(before.config, num_examples=N + 2), before._shards)
    after.recover()
    assert table_of(after).group_n[-2:].tolist() == [3, 3]
    assert np.isnan(table_of(after).reference_loss_n[-2:]).all()


def test_ranks_in_two_epochs_at_once_share_the_rates_that_are_alike(monkeypatch):
    made = []
    real = rates_module.choose
    monkeypatch.setattr(rates_module, "choose", lambda *a, **k: made.append(1) or real(*a, **k))
    for epochs, differing in ((0, 1), (4, 2)):  # without a planned length, rates know nothing of their epoch
        sampler = make_sampler(N, policy="importance", policy_options={"gate": "1"}, epochs=epochs)
        made.clear()
        for epoch in (0, 1) * 5:
            sampler._rates.choose(epoch, 1, sampler._examples.present)
        assert len(made) == differing
        sampler.fence()
        sampler._rates.choose(0, 1, sampler._examples.present)
        assert len(made) == differing + 1


def test_rates_of_draws_stay_until_a_sixteenth_of_the_examples_was_reported_anew(monkeypatch):
    made = []
    real = rates_module.choose
    monkeypatch.setattr(rates_module, "choose", lambda *a, **k: made.append(1) or real(*a, **k))
    sampler = make_sampler(1600, policy="importance", policy_options={"gate": "1"}, max_lead=6)
    rates, table = sampler._rates, table_of(sampler)

    def new_rates(rows: int, step: int) -> bool:
        ids = np.arange(rows)
        values = np.ones(rows, np.float32)
        table.apply(ReportBlock(example_ids=ids, losses=values, norms=values, sketches=None, step=step))
        before = len(made)
        rates.choose(0, 1, sampler._examples.present)
        return len(made) > before

    assert [new_rates(99, 0), new_rates(99, 1), new_rates(1, 2)] == [True, False, True]
    assert [new_rates(1, 3) for _ in range(6)] == [False] * 5 + [True], "at the latest after max_lead steps"
    assert new_rates(1, 3) is False
    sampler.fence()
    assert new_rates(0, 3), "a fence makes what was reported before it count at once"


def test_the_age_of_rates_is_told():
    """Steps that were planned since the rates were made; none while nothing was reported."""
    sampler = make_sampler(1600, policy="importance", policy_options={"gate": "1"}, max_lead=6)
    rates, table, values = sampler._rates, table_of(sampler), np.ones(1600, np.float32)
    table.apply(ReportBlock(example_ids=np.arange(1600), losses=values, norms=values, sketches=None, step=0))
    for _ in range(3):
        rates.choose(0, 1, sampler._examples.present)
    assert list(rates.ages) == [0, 0, 0]
    row = ReportBlock(example_ids=np.arange(1), losses=values[:1], norms=values[:1], sketches=None, step=0)
    for _ in range(5):
        table.apply(row)
        rates.choose(0, 1, sampler._examples.present)
    assert list(rates.ages) == [0, 0, 0, 3, 4, 5, 0, 1]
    rates.choose(0, 3, sampler._examples.present)
    assert list(rates.ages)[8:] == [2, 2, 2], "of those planned at once, the later ones are older by their lead"
    said = sampler.statistics()
    assert (said.median_rates_age_steps, said.p99_rates_age_steps) == (2.0, 5.0)


def test_an_order_fixed_for_the_epoch_has_no_age_of_rates():
    (trainer,) = join_all(make_sampler(N))
    train(trainer, 1)
    assert np.isnan(trainer.sampler.statistics().p99_rates_age_steps)


APART = np.where(np.arange(400) % 3 == 0, 9.0, 0.1)


def test_what_trimmed_loss_leaves_out_stays_out_however_many_epochs_pass():
    n = len(APART)
    (trainer,) = join_all(make_sampler(n, policy="trimmed_loss", epochs=12))
    wrong = []
    for epoch in range(12):
        trainer.start(epoch)
        taken = []
        while not (got := trainer.take(1)).ended:
            (batch,) = got.batches
            taken += ids_of([batch])
            trainer.report(batch, losses=APART[batch.rows.example_ids].astype(np.float32))
            trainer.held.clear()
        wrong.append(sum(APART[i] > 1 for i in taken))
    assert wrong[0] == np.count_nonzero(APART > 1)
    assert max(wrong[1:]) < wrong[0] / 3 and sum(wrong[1:]) > 0


def test_a_two_stage_run_with_sketches_gets_clusters():
    sampler = make_sampler(N, policy="two_stage", candidates=2)
    (trainer,) = join_all(sampler)
    assert sampler.refresh_due() is None
    train(trainer, 1)
    assert sampler.statistics().num_clusters > 0


def test_a_probe_of_the_second_stage_is_no_longer_than_it_must_be(monkeypatch):
    monkeypatch.setattr("sampler_service.stages.StageMonitor.decide", lambda _: 1)
    (trainer,) = join_all(make_sampler(4000, policy="two_stage", candidates=2, max_lead=64), lead=64)
    trainer.start(0)
    scored = [bool(batch.keep) for _ in range(4) for batch in trainer.take_acked(count=40).batches]
    runs = [(flag, len(list(group))) for flag, group in itertools.groupby(scored)]
    assert runs[:4] == [(False, 32), (True, 4), (False, 64), (True, 4)]
