"""The table: what reports and clusters do to the columns and to the version."""

from __future__ import annotations

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
