"""What a report does to the table, and which rows and reports are not taken."""

from __future__ import annotations

import numpy as np
import pytest

from sampler_service.errors import ConfigError, Stale
from sampler_service.types import Report
from tests.support import DIM, gradients, ids_of, join_all, make_sampler, report_of

N = 48


def test_a_report_counts_once_however_often_it_is_sent():
    (trainer,) = join_all(make_sampler(N))
    trainer.start(0)
    batch = trainer.take(1).batches[0]
    first = trainer.report(batch)
    again = trainer.report(batch, losses=np.full(4, 99, np.float32))
    assert (first.accepted, first.rejected) == (4, {})
    assert (again.accepted, again.rejected) == (0, {"duplicate": 4})
    assert again.table_version == first.table_version
    assert 99 not in trainer.sampler._table.loss_n
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
    table = trainer.sampler._table
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
    assert trainer.sampler._table.loss_n[[3, 7]].tolist() == [0, 4]


def test_of_an_id_that_comes_twice_in_a_report_the_last_sound_row_counts():
    (trainer,) = join_all(make_sampler(N))
    report = Report(
        batch_id=0,
        step=0,
        example_ids=np.array([5, 5, 6, 6]),
        losses=np.array([1, 3, 2, np.nan], np.float32),
        norms=None,
        sketches=np.arange(16, dtype=np.float32).reshape(4, 4),
    )
    summary = trainer.sampler.report(trainer.session, [report])
    assert (summary.accepted, summary.rejected) == (2, {"nan": 1})
    assert trainer.sampler._table.loss_n[[5, 6]].tolist() == [3, 2]
    assert np.allclose(trainer.sampler._shards.rows(np.array([5, 6])), [[4, 5, 6, 7], [8, 9, 10, 11]])


def test_sketches_of_another_width_are_refused_and_the_reports_beside_them_are_applied():
    (trainer,) = join_all(make_sampler(N))
    trainer.start(0)
    one, two, three = trainer.take(3).batches
    wrong = report_of(two, sketches=np.zeros((4, DIM + 1), np.float32))
    with pytest.raises(ConfigError, match=r"width 5, run 'run' was opened with sketch_dim 4; make the sketcher"):
        trainer.sampler.report(trainer.session, [report_of(one), wrong, report_of(three)])
    known = np.flatnonzero(np.isfinite(trainer.sampler._table.loss_n))
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


def test_a_negative_norm_is_rejected_and_draws_go_on():
    (trainer,) = join_all(make_sampler(N, policy="importance", policy_options={"gate": "1"}))
    trainer.start(0)
    for _ in range(12):
        batch = trainer.take_acked(1).batches[0]
        norms = np.linspace(-60, 9, len(batch.rows)).astype(np.float32)
        summary = trainer.report(batch, norms=norms)
        assert summary.rejected == {"negative_norm": int((norms < 0).sum())}
    trainer.start(1)
    assert len(trainer.take(2).batches) == 2


def test_a_report_from_the_far_future_is_refused_and_does_not_age_the_others():
    (trainer,) = join_all(make_sampler(N))
    trainer.start(0)
    batch = trainer.take(1).batches[0]
    with pytest.raises(ConfigError, match=r"is of step \d+, the run is at step \d+; count optimiser steps from 0"):
        trainer.report(batch, step=2**60)
    assert trainer.sampler._table.step < 1000
    assert trainer.report(batch, step=3).accepted == len(batch.rows)


def test_a_report_that_was_overtaken_on_its_way_changes_nothing():
    (trainer,) = join_all(make_sampler(N))

    def send(step: int, loss: float):
        ids, losses = np.array([1, 2]), np.full(2, loss, np.float32)
        report = Report(batch_id=0, step=step, example_ids=ids, losses=losses, norms=None, sketches=None)
        return trainer.sampler.report(trainer.session, [report])

    assert send(5, 1.0).accepted == 2
    assert send(4, 9.0).rejected == {"old": 2}
    assert trainer.sampler._table.loss_n[[1, 2]].tolist() == [1, 1]
    assert send(5, 2.0).accepted == 2
