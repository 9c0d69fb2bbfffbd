"""The benchmark of staleness: leads as a trainer meets them."""

from __future__ import annotations

from benchmarks.staleness import measure
from tests.served import ServedService


def test_no_batch_is_planned_further_ahead_than_promised(served: ServedService):
    row = measure(served.address, "importance", 1)
    assert row["promised"] == 2 * 2 + 2
    assert 2 * 2 <= row["median"] <= row["p99"] <= row["largest"] <= row["promised"]
    assert sum(row["leads"].values()) == row["batches"] == 94, "an epoch of 1,497 digits"
    assert row["drawn"] == 0 or row["rates_age_steps"]["largest"] <= row["lead_and_age_steps"]["largest"]
