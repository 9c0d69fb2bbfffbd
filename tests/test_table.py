"""The table: what reports and clusters do to the columns and to the version."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sampler_service.table import Table
from sampler_service.types import NEVER, NO_CLUSTER, ReportBlock


def block(ids, losses=None, norms=None, step=3) -> ReportBlock:
    nothing = np.full(len(ids), np.nan, np.float32)
    return ReportBlock(
        example_ids=np.array(ids),
        losses=nothing if losses is None else np.array(losses, np.float32),
        norms=nothing if norms is None else np.array(norms, np.float32),
        sketches=None,
        step=step,
    )


def test_a_new_table_knows_nothing():
    view = Table(4).view()
    assert np.isnan(view.loss_n).all() and np.isnan(view.norm_n).all()
    assert (view.step_n == NEVER).all() and (view.cluster_n == NO_CLUSTER).all()
    assert not len(Table(4).ages()) and view.version == 0


def test_a_report_changes_its_rows_alone_and_raises_the_version():
    table = Table(5)
    table.apply(block([3, 1], losses=[1.5, 2.5], norms=[9, 8], step=7))
    assert table.loss_n[[1, 3]].tolist() == [2.5, 1.5] and table.norm_n[[1, 3]].tolist() == [8, 9]
    assert np.isnan(table.loss_n[[0, 2, 4]]).all()
    assert table.step_n.tolist() == [NEVER, 7, NEVER, 7, NEVER]
    assert (table.version, table.step) == (1, 7)


def test_what_a_report_leaves_out_keeps_its_old_value():
    table = Table(2)
    table.apply(block([0], losses=[1.0], norms=[2.0]))
    table.apply(block([0], norms=[5.0]))
    assert (table.loss_n[0], table.norm_n[0]) == (1.0, 5.0)


def test_the_step_of_the_table_is_the_latest_heard_of_even_when_reports_come_late():
    table = Table(2)
    table.apply(block([0], losses=[1.0], step=9))
    table.apply(block([1], losses=[1.0], step=4))
    assert table.step == 9 and table.ages().mean() == 2.5


def test_each_change_raises_the_version_by_one():
    table = Table(3)
    table.apply(block([0], losses=[1]))
    table.install(np.zeros(3, np.int32), np.zeros(1), 1.0)
    table.set_reference(np.zeros(3, np.float32))
    table.restore(np.zeros(3, np.float32), np.zeros(3, np.float32), np.array([4, NEVER, 2]))
    assert table.version == 4 and table.step == 4


def test_a_policy_cannot_write_to_what_it_is_shown():
    view = Table(3).view()
    with pytest.raises(ValueError, match="read-only"):
        view.loss_n[0] = 1.0


def test_a_partition_is_copied_in():
    table, cluster_n = Table(3), np.zeros(3, np.int32)
    table.install(cluster_n, np.zeros(1), 1.0)
    cluster_n[:] = 2
    assert table.cluster_n.tolist() == [0, 0, 0]


def test_of_new_examples_nothing_is_known_and_what_was_known_stays():
    table = Table(3)
    table.apply(block([0, 2], losses=[1.0, 2.0], norms=[3.0, 4.0]))
    table.install(np.array([0, 1, 0], np.int32), np.zeros(2), 1.0)
    table.set_reference(np.ones(3, np.float32))
    table.align(np.ones(3, np.float32), 1.0)
    table.place(np.array([0.5, 0.1, 0.9]))
    table.set_groups(np.array([7, 7, 9]))
    version = table.version
    table.grow(5)
    view: Any = table.view()
    assert (len(table), len(view), table.version) == (5, 5, version + 1)
    assert view.loss_n[:3].tolist()[::2] == [1.0, 2.0]
    for column_n in (view.loss_n, view.norm_n, view.reference_loss_n, view.alignment_n):
        assert np.isnan(column_n[3:]).all()
    assert view.step_n[3:].tolist() == view.gradient_step_n[3:].tolist() == [NEVER] * 2
    assert view.cluster_n.tolist() == [0, 1, 0, NO_CLUSTER, NO_CLUSTER]
    assert view.group_n.tolist() == [0, 0, 1, 2, 2]
    assert view.place_n[:3].tolist() == [0.5, 0.1, 0.9]
    assert ((view.place_n[3:] >= 0) & (view.place_n[3:] <= 1)).all()
    table.grow(6)
    view = table.view()
    assert view.group_n.tolist() == [0, 0, 1, 2, 2, 2], "all that came later are one group"


def test_what_was_made_of_fewer_examples_reaches_as_far_as_it_does():
    table = Table(3)
    table.grow(5)
    table.install(np.zeros(3, np.int32), np.zeros(1), 1.0)
    table.align(np.ones(3, np.float32), 1.0)
    table.place(np.zeros(3))
    view: Any = table.view()
    assert view.cluster_n.tolist() == [0, 0, 0, NO_CLUSTER, NO_CLUSTER]
    assert np.isnan(view.alignment_n).tolist() == [False] * 3 + [True] * 2
    assert len(view.place_n) == 5


def test_a_deleted_example_is_one_that_was_never_reported():
    table = Table(3)
    table.apply(block([0, 1, 2], losses=[1, 2, 3], norms=[1, 2, 3]))
    table.install(np.zeros(3, np.int32), np.zeros(1), 1.0)
    table.delete(np.array([1]))
    assert np.isnan(table.loss_n).tolist() == np.isnan(table.norm_n).tolist() == [False, True, False]
    assert table.step_n.tolist() == table.gradient_step_n.tolist() == [3, NEVER, 3]
    assert table.cluster_n.tolist() == [0, NO_CLUSTER, 0]
    assert len(table.ages()) == 2
