"""The benchmark of scorers: its figures come from a scorer that works."""

from __future__ import annotations

import numpy as np

from benchmarks import scorers


def test_every_process_sees_the_same_records():
    one, two = scorers.records(), scorers.records()
    assert all(np.array_equal(a, b) for a, b in zip(one.tensors, two.tensors, strict=True))
    assert scorers.scoring("another") is None
    wanted = scorers.scoring(scorers.DATASET)
    assert wanted is not None and len(wanted.records) == scorers.EXAMPLES
