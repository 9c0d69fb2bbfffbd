"""Reports that come in one call count as if they had come one after the other."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_service import reports
from sampler_service.errors import ConfigError
from sampler_service.sampler import Sampler
from sampler_service.types import Report
from tests.support import DIM, FakeTrainer, gradients, join_all, make_sampler, report_of

N = 12


def random_report(rng: np.random.Generator) -> Report:
    """Few ids, so that they repeat; faults of every kind; any columns; steps that go back at times."""
    size = int(rng.integers(0, 7))
    losses, norms = rng.random(size).astype(np.float32), rng.random(size).astype(np.float32)
    sketches = rng.standard_normal((size, DIM)).astype(rng.choice(["f2", "f4"]))
    if size and rng.random() < 0.4:
        row = rng.integers(size)
        losses[row] = rng.choice([np.nan, 1.0])
        norms[row] = rng.choice([np.inf, -1.0])
        sketches[row, 1] = rng.choice([-np.inf, 2.0])
    without = rng.random(3) < 0.2
    return Report(
        batch_id=int(rng.choice([0, 0, 1, 2, 3])),
        step=int(rng.choice([*range(6), 2**40])),
        example_ids=rng.integers(-1, N + 1, size),
        losses=None if without[0] else losses,
        scores=bool(rng.random() < 0.3),
        norms=None if without[1] else norms,
        sketches=None if without[2] else sketches,
    )


def outcome(calls: list[list[Report]]) -> list:
    """What a fresh run holds and has counted after the calls."""
    sampler = make_sampler(N, policy="gradient_clustering")
    (trainer,) = join_all(sampler)
    trainer.start(0)
    trainer.take(3)  # batches 1 to 3
    for call in calls:
        with suppress(ConfigError):  # a step from the far future; the reports beside it are applied
            sampler.report(trainer.session, call)
    table, statistics, stored = sampler._table, sampler.statistics(), sampler._shards.columns()
    return [
        *(table.loss_n, table.norm_n, table.step_n, table.step),
        *(stored.loss_n, stored.norm_n, stored.step_n, sampler._shards.rows(np.arange(N))),
        *(statistics.reported_rows, statistics.rejected_rows, statistics.lead, sampler._intake.fresh_rows),
    ]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 6))
def test_one_call_with_many_reports_does_what_a_call_for_each_does(seed: int, count: int):
    rng = np.random.default_rng(seed)
    received = [random_report(rng) for _ in range(count)]
    together = outcome([received])
    apart = outcome([[report] for report in received])
    for one, many in zip(together, apart, strict=True):
        np.testing.assert_equal(one, many)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 8))
def test_scores_and_losses_in_turn_do_the_same_in_one_call(seed: int, count: int):
    rng = np.random.default_rng(seed)
    received = []
    for step in np.sort(rng.integers(0, 6, count)).tolist():
        report = replace(random_report(rng), step=step, scores=bool(rng.random() < 0.5))
        received.append(report if report.scores else replace(report, norms=None, sketches=None))
    for one, many in zip(outcome([received]), outcome([[report] for report in received]), strict=True):
        np.testing.assert_equal(one, many)


def test_scores_and_losses_in_turn_are_two_groups():
    def of(step: int, *, scores: bool) -> Report:
        one = np.ones(1, np.float32)
        values = {"losses": None, "norms": one} if scores else {"losses": one, "norms": None}
        return Report(batch_id=0, step=step, example_ids=np.zeros(1, np.int64), sketches=None, scores=scores, **values)

    received = [of(step, scores=scores) for step in range(5) for scores in (True, False)]
    groups = list(reports.together(received))
    assert [len(group) for group in groups] == [5, 5]
    assert [[report.step for report in group] for group in groups] == [list(range(5))] * 2
    assert [report.scores for report in received] != [report.scores for group in groups for report in group]


def test_reports_taken_in_together_never_go_back_in_time_nor_change_their_columns():
    def of(step: int, rows: int = 1, **changes) -> Report:
        plain = Report(
            batch_id=0,
            step=step,
            example_ids=np.zeros(rows, np.int64),
            losses=np.ones(rows, np.float32),
            norms=None,
            sketches=np.ones((rows, DIM), np.float16),
        )
        return replace(plain, **changes)

    big = reports.TOGETHER_ROWS
    received = [of(3), of(3), of(5), of(4), of(4, losses=None), of(4, losses=None, sketches=np.ones((1, DIM), "f4"))]
    received += [of(6), of(6, rows=big), of(6, rows=big + 1), of(7), of(7, scores=True)]
    groups = list(reports.together(received))
    assert [len(group) for group in groups] == [3, 1, 1, 1, 1, 1, 1, 1, 1]
    assert [report for group in groups for report in group] == received


def lent(sampler: Sampler) -> FakeTrainer:
    (trainer,) = join_all(sampler)
    trainer.start(0)
    trainer.take(3)
    return trainer


def test_the_monitor_sees_the_same_rows_whether_reports_come_together_or_apart():
    windows = []
    for together in (True, False):
        sampler = make_sampler(N, policy="gradient_clustering")
        trainer = lent(sampler)
        sent = [report_of(batch, step=0) for batch in trainer.received]
        spoilt = gradients(sent[1].example_ids)
        spoilt[2, 0] = np.nan
        sent[1] = replace(sent[1], sketches=spoilt)
        sent[2] = replace(sent[2], example_ids=sent[2].example_ids[::-1], norms=None)  # no norms: not measured
        for call in [sent] if together else [[report] for report in sent]:
            sampler.report(trainer.session, call)
        monitor = sampler._monitor
        rows = slice(0, monitor.num_rows)
        columns = (monitor._sketch_rd, monitor._norm_r, monitor._cluster_r, monitor._weight_r)
        windows.append([column[rows] for column in columns])
        assert monitor.num_rows == 7
    for one, many in zip(*windows, strict=True):
        np.testing.assert_array_equal(one, many)


def test_batches_planned_before_the_present_clusters_do_not_judge_them():
    sampler = make_sampler(N, policy="gradient_clustering", num_clusters=2)
    trainer = lent(sampler)
    old = trainer.received[:]
    sampler.report(trainer.session, [report_of(batch, step=0) for batch in old[:2]])
    sampler.refresh()
    sampler.report(trainer.session, [report_of(old[2], step=0)])
    assert sampler._monitor.num_rows == 0


def test_nothing_is_measured_for_a_policy_that_never_draws():
    sampler = make_sampler(N, policy="infobatch")
    trainer = lent(sampler)
    sampler.report(trainer.session, [report_of(batch, step=0) for batch in trainer.received])
    assert sampler._monitor.num_rows == 0 and np.isnan(sampler.statistics().variance_ratio)


def test_rows_that_a_shard_missed_are_neither_accepted_nor_fresh(monkeypatch):
    sampler = make_sampler(N, policy="gradient_clustering")
    trainer = lent(sampler)
    first, second, third = trainer.received[:3]
    trainer.report(first)
    monkeypatch.setattr(sampler._shards, "update", lambda block: len(block) // 2)
    summary = trainer.report(second)
    assert (summary.accepted, summary.rejected) == (2, {"shard_away": 2})
    trainer.report(third, sketches=None)
    statistics = sampler.statistics()
    assert (statistics.reported_rows, statistics.rejected_rows) == (8, {"shard_away": 4})
    assert sampler._intake.fresh_rows == 6, "the last report had no sketches to lose"


def test_losses_of_a_scoring_pass_are_not_taken_whatever_a_client_sends():
    sampler = make_sampler(N, policy="two_stage")
    trainer = lent(sampler)
    batch = trainer.received[0]
    trained = report_of(batch, step=0)
    losses = np.array([9, 9, np.nan, 9], np.float32)
    summary = sampler.report(trainer.session, [replace(trained, step=1, scores=True, losses=losses)])
    assert not summary.rejected, "nor is one that is no number a reason against its norm"
    ids = batch.rows.example_ids
    assert np.isnan(sampler._table.loss_n).all() and np.isnan(sampler._shards.columns().loss_n).all()
    np.testing.assert_array_equal(sampler._table.norm_n[ids], trained.norms)
    summary = trainer.report(batch)
    assert not summary.rejected, "a later scoring pass makes no loss old"
    np.testing.assert_array_equal(sampler._table.loss_n[ids], trained.losses)
