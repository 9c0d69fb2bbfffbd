"""The whole story in one process: reports change the table, the table changes the batches."""

from __future__ import annotations

import numpy as np
import pytest
from sampler_service import sampler as sampler_module
from sampler_service.errors import ConfigError, Stale
from sampler_service.policies import POLICIES
from sampler_service.sampler import Sampler
from sampler_service.service import LocalService
from sampler_service.types import Report

from tests.support import DIM, FakeTrainer, gradients, ids_of, join_all, make_config, make_sampler, report_of

N = 48
POLICY_OPTIONS = {"importance": {"gate": "1"}, "rho_loss": {"top_fraction": "0.5"}}


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


# --- reports ---


def test_a_report_counts_once_however_often_it_is_sent():
    (trainer,) = join_all(make_sampler(N))
    trainer.start(0)
    batch = trainer.take(1).batches[0]
    first = trainer.report(batch)
    again = trainer.report(batch, losses=np.full(4, 99, np.float32))
    assert (first.accepted, first.rejected) == (4, {})
    assert (again.accepted, again.rejected) == (0, {"duplicate": 4})
    assert again.table_version == first.table_version
    assert 99 not in table_of(trainer.sampler).loss_n
    statistics = trainer.sampler.statistics()
    assert statistics.reported_rows == 4 and statistics.rejected_rows == {"duplicate": 4}


def test_a_report_ends_the_lease_of_its_batch():
    (trainer,) = join_all(make_sampler(N), lead=2)
    trainer.start(0)
    first, _ = trainer.take(4).batches
    assert trainer.take(1).batches == []
    trainer.report(first)
    del trainer.held[first.batch_id]
    assert len(trainer.take(4).batches) == 1


@pytest.mark.parametrize("column", ["losses", "norms", "sketches"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_rejected_with_a_count_and_the_others_are_applied(column, value):
    (trainer,) = join_all(make_sampler(N))
    trainer.start(0)
    batch = trainer.take(1).batches[0]
    report = report_of(batch)
    spoilt = getattr(report, column).copy()
    spoilt[1] = value
    summary = trainer.report(batch, **{column: spoilt})
    assert (summary.accepted, summary.rejected) == (3, {"nan": 1})
    bad, *good = batch.rows.example_ids[[1, 0, 2, 3]]
    table = table_of(trainer.sampler)
    assert np.isnan([table.loss_n[bad], table.norm_n[bad]]).all() and table.step_n[bad] == -1
    assert np.isfinite(table.loss_n[good]).all()
    assert trainer.sampler._shards.sketched() == 3


def test_unknown_ids_are_rejected_with_a_count_and_the_others_are_applied():
    (trainer,) = join_all(make_sampler(N))
    ids = np.array([3, -1, N, 2**40, 7])
    losses = np.arange(5, dtype=np.float32)
    report = Report(batch_id=0, step=0, example_ids=ids, losses=losses, norms=None, sketches=None)
    summary = trainer.sampler.report(trainer.session, [report])
    assert (summary.accepted, summary.rejected) == (2, {"unknown_id": 3})
    assert table_of(trainer.sampler).loss_n[[3, 7]].tolist() == [0, 4]


def test_of_an_id_that_comes_twice_in_a_report_the_last_sound_row_counts():
    (trainer,) = join_all(make_sampler(N))
    report = Report(
        batch_id=0,
        step=0,
        example_ids=np.array([5, 6, 5, 6]),
        losses=np.array([1, 2, 3, np.nan], np.float32),
        norms=None,
        sketches=np.arange(16, dtype=np.float32).reshape(4, 4),
    )
    summary = trainer.sampler.report(trainer.session, [report])
    assert (summary.accepted, summary.rejected) == (2, {"nan": 1})
    assert table_of(trainer.sampler).loss_n[[5, 6]].tolist() == [3, 2]
    assert np.allclose(trainer.sampler._shards.rows(np.array([5, 6])), [[8, 9, 10, 11], [4, 5, 6, 7]])


def test_sketches_of_another_width_are_refused_and_the_reports_beside_them_are_applied():
    (trainer,) = join_all(make_sampler(N))
    trainer.start(0)
    one, two, three = trainer.take(3).batches
    wrong = report_of(two, sketches=np.zeros((4, DIM + 1), np.float32))
    with pytest.raises(ConfigError, match=r"width 5, run 'run' was opened with sketch_dim 4; make the sketcher"):
        trainer.sampler.report(trainer.session, [report_of(one), wrong, report_of(three)])
    known = np.flatnonzero(np.isfinite(table_of(trainer.sampler).loss_n))
    assert set(known) == set(ids_of([one, three]))
    assert trainer.report(two).accepted == 4, "a refused report is not a repeat"


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("kept", ["float16", "float32"])
def test_sketches_may_be_of_either_precision(dtype, kept):
    (trainer,) = join_all(make_sampler(N, sketch_dtype=kept))
    trainer.start(0)
    batch = trainer.take(1).batches[0]
    sent = gradients(batch.rows.example_ids).astype(dtype)
    assert trainer.report(batch, sketches=sent).accepted == 4
    stored = trainer.sampler._shards.rows(batch.rows.example_ids)
    assert np.allclose(stored, sent.astype(np.float32), rtol=2e-3, atol=2e-2)


def test_sketches_too_large_for_float16_are_kept_all_the_same():
    (trainer,) = join_all(make_sampler(N))
    trainer.start(0)
    batch = trainer.take(1).batches[0]
    sent = 1e9 * gradients(batch.rows.example_ids)
    trainer.report(batch, sketches=sent)
    assert np.allclose(trainer.sampler._shards.rows(batch.rows.example_ids), sent, rtol=2e-3, atol=1e7)


def test_a_report_may_have_no_sketches_and_an_empty_one_does_no_harm():
    (trainer,) = join_all(make_sampler(N))
    trainer.start(0)
    one, two = trainer.take(2).batches
    assert trainer.report(one, sketches=None, norms=None).accepted == 4
    empty = report_of(two, example_ids=np.empty(0, np.int64), losses=None, norms=None, sketches=None)
    assert trainer.sampler.report(trainer.session, [empty]).accepted == 0
    assert trainer.sampler._shards.sketched() == 0


def test_reports_that_belong_to_no_batch_are_never_taken_for_repeats():
    (trainer,) = join_all(make_sampler(N))
    trainer.start(0)
    batch = trainer.take(1).batches[0]
    assert [trainer.report(batch, batch_id=0).accepted for _ in range(2)] == [4, 4]
    assert trainer.sampler.statistics().lead == 1


def test_a_step_beyond_all_counting_is_refused():
    (trainer,) = join_all(make_sampler(N))
    trainer.start(0)
    batch = trainer.take(1).batches[0]
    with pytest.raises(ConfigError, match=f"step {2**63}"):
        trainer.report(batch, step=2**63)
    assert trainer.report(batch).accepted == 4


def test_a_report_of_a_session_that_ended_is_refused():
    sampler = make_sampler(N)
    (trainer,) = join_all(sampler)
    trainer.start(0)
    batch = trainer.take(1).batches[0]
    sampler.leave(trainer.session)
    with pytest.raises(Stale, match="join again"):
        trainer.report(batch)


# --- versions ---


def test_the_version_rises_with_each_report_and_a_fence_puts_it_into_the_next_batch():
    sampler = make_sampler(N, policy="importance", policy_options={"gate": "1"})
    (trainer,) = join_all(sampler)
    train(trainer, 2)
    trainer.start(2)
    batch, versions = trainer.take(1).batches[0], []
    for _ in range(3):
        versions.append(trainer.report(batch, batch_id=0).table_version)
    assert versions == sorted(set(versions))
    fenced = sampler.fence()
    assert fenced >= versions[-1]
    assert trainer.take(1).batches[0].table_version >= fenced


@pytest.mark.parametrize("policy", ["importance", "gradient_clustering"])
@pytest.mark.parametrize("rows_per_step", [1 << 17, 8])
def test_a_draw_is_planned_from_a_table_at_most_max_lead_batches_old(policy, rows_per_step, monkeypatch):
    monkeypatch.setattr(sampler_module, "RATES_ROWS_PER_STEP", rows_per_step)
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
    assert started.policy == "shuffle" and "0 % of sketches are fresh" in started.reason
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
    options = POLICY_OPTIONS.get(policy, {})
    sampler = make_sampler(N, policy=policy, policy_options=options, epochs=3)
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
                    losses=rng.exponential(size=r).astype(np.float32),
                    norms=rng.lognormal(0, 1, r).astype(np.float32),
                    sketches=rng.standard_normal((r, DIM)).astype(np.float32),
                )
                trainer.held.clear()
            if sampler.refresh_due():
                sampler.refresh()
        assert all(trainer.take(1).ended for trainer in trainers)
    policies = set()
    for batch in (b for t in trainers for b in t.received):
        rows = batch.rows
        policies.add(batch.policy)
        assert len(rows) == len(rows.weights) == len(rows.probabilities) == len(batch.cluster_ids) > 0
        assert ((rows.example_ids >= 0) & (rows.example_ids < N)).all()
        assert np.isfinite(rows.weights).all() and (rows.weights > 0).all()
        assert (rows.probabilities > 0).all() and (rows.probabilities <= 1).all()
        if POLICIES[policy].kind == "draw" and batch.policy == policy:
            assert np.allclose(rows.weights * rows.probabilities * N, 1, rtol=1e-5)
    assert policy in policies, "it never acted"


# --- the same again ---


def stream_of(sampler: Sampler) -> list[tuple]:
    return [
        (b.batch_id, b.epoch, b.step, b.policy, b.table_version, ids_of([b]), b.rows.weights.tolist())
        for b in train(join_all(sampler)[0], 3)
    ]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_same_seed_and_reports_give_the_same_batches_and_another_seed_gives_others(policy):
    options = POLICY_OPTIONS.get(policy, {})
    one, two, other = (
        stream_of(make_sampler(N, policy=policy, policy_options=options, seed=seed)) for seed in (5, 5, 6)
    )
    assert one == two
    assert [row[5] for row in one] != [row[5] for row in other]


def local_stream(services: list[LocalService], names: list[str], sizes: list[int]) -> list[list]:
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
    together = LocalService(shards=2)
    beside = local_stream([together, together], ["a", "bb"], [48, 60])
    alone = [local_stream([LocalService(shards=2)], [name], [n])[0] for name, n in (("a", 48), ("bb", 60))]
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
