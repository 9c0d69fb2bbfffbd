"""The example of time budgets runs at each of them and says what they bought."""

from __future__ import annotations

import functools
import itertools
import json
from contextlib import nullcontext

import pytest

import sampler_client as sampler
from tests.served import ServedService
from trainer_examples import time_budget
from trainer_examples.data import load


def test_it_compares_both_ways_at_each_budget(served: ServedService, tmp_path, capsys, monkeypatch):
    """By a clock that goes on whenever it is looked at, so that a budget is as many steps on any machine."""
    looks = itertools.count()
    ticking = functools.partial(sampler.TimeBudget, clock=lambda: float(next(looks)))
    monkeypatch.setattr(sampler, "TimeBudget", ticking)
    monkeypatch.setattr(time_budget, "RATES", (0.05,))
    monkeypatch.setattr(time_budget, "seconds_of", lambda _, steps: 5.0 * steps)
    monkeypatch.setattr(time_budget, "running_service", lambda: nullcontext(served.address))
    out = tmp_path / "time_budget.json"
    headline = time_budget.main(examples=600, steps=300, seeds=1, json=out)
    names = [f"{share}{ending}" for share in (25, 50, 100) for ending in ("", "_hard_first")]
    gaps = [f"accuracy_gap{of}_{name}" for name in names for of in ("", "_deviation")]
    assert list(headline) == [*gaps, "most_over_deadline_s"]
    rows = json.loads(out.read_text())["rows"]
    assert [(row["budget"], row["method"]) for row in rows] == [
        (share, method) for share in time_budget.SHARES for method in time_budget.METHODS
    ]
    assert all(row["steps"] > 0 for row in rows)
    assert all((row["pruned"] > 0) == (row["method"] != "shuffle") for row in rows if row["budget"] == 1)
    assert headline["accuracy_gap_25"] == pytest.approx(rows[1]["accuracy"] - rows[0]["accuracy"])
    assert "accuracy_gap_25" in capsys.readouterr().out
    assert served.service.runs() == [], "none is left to slow the others"


def test_the_whole_budget_is_the_time_of_so_many_steps(monkeypatch):
    sizes, loss = [], time_budget.F.cross_entropy
    monkeypatch.setattr(time_budget.F, "cross_entropy", lambda logits, y: sizes.append(len(y)) or loss(logits, y))
    images = load(limit=200)
    assert time_budget.seconds_of(images, 10) > 0
    assert sizes == [time_budget.BATCH_SIZE] * 10, "over several epochs, of whole batches"
