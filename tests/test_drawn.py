"""What was handed out: counts against a plain count of the same batches."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from sampler_service.drawn import RECENT_ROWS, Drawn
from sampler_service.types import NO_CLUSTER, Batch, Rows


def batch(ids: list[int], epoch: int = 0, weight: float = 1.0, **changes: Any) -> Batch:
    """One of the first pass through an epoch."""
    count, changes = len(ids), {"pass_number": epoch + 1, **changes}
    return Batch(
        batch_id=1,
        epoch=epoch,
        step=0,
        table_version=0,
        policy="shuffle",
        rows=Rows(
            example_ids=np.array(ids, np.int64),
            weights=np.full(count, weight, np.float32),
            probabilities=np.full(count, 1 / count),
        ),
        cluster_ids=np.full(count, NO_CLUSTER, np.int32),
        lease_deadline=0.0,
        lead=0,
        global_batch_size=count,
        world_size=1,
        **changes,
    )


def test_counts_are_those_of_a_plain_count_repeats_inside_a_batch_among_them():
    rng = np.random.default_rng(0)
    drawn, times, seen = Drawn(40), Counter[int](), {}
    for step in range(60):
        ids, epoch = rng.integers(0, 40 - 5, 8).tolist(), step // 20
        drawn.add([batch(ids, epoch)])
        times.update(ids)
        seen.update(dict.fromkeys(ids, epoch))
        in_epoch = {i for i, e in seen.items() if e == epoch}
        assert drawn.epoch_coverage == len(in_epoch) / 40
        assert drawn.never == 40 - len(seen)
    assert drawn.times_n.tolist() == [times[i] for i in range(40)]
    assert drawn.epoch_n.tolist() == [seen.get(i, -1) for i in range(40)]


def test_a_pass_that_begins_an_epoch_again_is_counted_anew():
    drawn = Drawn(4)
    drawn.add([batch([0, 1], epoch=50, pass_number=1), batch([2, 3], epoch=50, pass_number=1)])
    assert drawn.epoch_coverage == 1.0
    drawn.add([batch([0], epoch=30, pass_number=2)])
    assert drawn.epoch_coverage == 0.25
    assert drawn.epoch_n.tolist() == [30, 50, 50, 50]
    drawn.add([batch([1, 2], epoch=30, pass_number=2), batch([0, 3], epoch=50, pass_number=1)])
    assert drawn.epoch_coverage == 0.75
    assert drawn.epoch_n.tolist() == [30, 30, 30, 50], "what is left of the pass before comes late"


def test_what_was_handed_out_before_and_did_not_arrive_is_left_out():
    drawn = Drawn(4)
    drawn.add([batch([0, 1]), batch([0, 1], again=True)])
    assert drawn.times_n.tolist() == [1, 1, 0, 0]
    assert len(drawn.recent_ids()) == 2


def test_a_sweep_is_a_window_whatever_came_before_it_and_whatever_fills_no_batch():
    rng, drawn, n, size = np.random.default_rng(0), Drawn(100), 100, 8
    drawn.add([batch(rng.integers(0, n, 40).tolist(), pass_number=1)])
    assert np.isnan(drawn.window_coverage)
    for epoch in range(1, 6):
        order = rng.permutation(n)[: n // size * size].tolist()
        drawn.add([batch(order[start : start + size], epoch, whole=True) for start in range(0, len(order), size)])
        assert epoch == 1 or drawn.window_coverage == 0.96, "with drop_last"
    drawn.add([batch(list(range(n)), 6, whole=True)])
    assert drawn.window_coverage == 1.0


def test_whole_sweeps_cover_every_window_and_independent_draws_two_thirds():
    rng, n = np.random.default_rng(0), 4000
    sweep, draws = Drawn(n), Drawn(n)
    assert np.isnan(sweep.window_coverage)
    for epoch in range(3):
        order = rng.permutation(n)
        for start in range(0, n, 50):
            sweep.add([batch(order[start : start + 50].tolist(), epoch)])
            draws.add([batch(rng.integers(0, n, 50).tolist(), epoch)])
    assert sweep.window_coverage == 1.0
    assert draws.window_coverage == pytest.approx(1 - np.exp(-1), abs=0.02)


def test_a_slow_rank_in_an_earlier_epoch_counts_for_that_one():
    drawn = Drawn(4)
    drawn.add([batch([0, 1], epoch=0), batch([0, 1], epoch=1), batch([2, 3], epoch=0)])
    assert drawn.epoch_coverage == 0.5, "two of epoch 1"
    drawn.add([batch([2, 3], epoch=1)])
    assert drawn.epoch_coverage == 1.0, "what epoch 0 had of them does not stand in the way"


def test_the_latest_draws_are_kept_with_their_weights():
    drawn = Drawn(8)
    drawn.add([batch([1, 2], weight=0.5)])
    assert drawn.recent_weights().tolist() == [0.5, 0.5]
    assert drawn.recent_ids().tolist() == [1, 2]
    for _ in range(RECENT_ROWS // 8 + 1):
        drawn.add([batch(list(range(8)), weight=2.0)])
    assert len(drawn.recent_weights()) == RECENT_ROWS
    assert set(drawn.recent_weights().tolist()) == {2.0}


def test_shares_are_of_the_examples_that_there_are():
    drawn = Drawn(4)
    drawn.add([batch([0, 1])])
    drawn.grow(8)
    assert (drawn.epoch_coverage, drawn.never) == (2 / 8, 6)
    drawn.delete(np.array([1, 7]))
    assert (drawn.epoch_coverage, drawn.never) == (1 / 6, 5)
    assert drawn.times_n[1] == 1, "which is still known"
    drawn.add([batch([2, 3, 4, 5, 6])])
    assert (drawn.epoch_coverage, drawn.never, drawn.window_coverage) == (1.0, 0, 1.0)
    drawn.delete(np.array([0, 2, 3, 4, 5, 6]))
    assert (drawn.epoch_coverage, drawn.never) == (0.0, 0)
