"""The example about when to prefer hard examples runs, and says what it did."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest

from tests.served import ServedService
from trainer_examples import critical_period


def test_windows_move_along_the_run():
    schedules = critical_period.schedules()
    assert list(schedules) == ["never", "0% to 25%", "25% to 50%", "50% to 75%", "75% to 100%", "always"]
    hard = {
        name: [(phase.until, phase.policy) for phase in phases if phase.policy == critical_period.HARD]
        for name, phases in schedules.items()
    }
    assert hard["never"] == [] and hard["25% to 50%"] == [(0.5, critical_period.HARD)]
    assert all(phases[-1].until == 1 for phases in schedules.values())


@pytest.mark.usefixtures("prompt_reports")  # an epoch here is over before its reports have been sent
def test_it_compares_all_windows(served: ServedService, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(critical_period, "running_service", lambda: nullcontext(served.address))
    out = tmp_path / "critical_period.json"
    headline = critical_period.main(examples=400, epochs=5, seeds=1, json=out)
    assert len(headline) == 2 * 5
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 6
    accuracy = {row["window"]: row["accuracy"] for row in rows}
    assert headline["accuracy_gap_0_25"] == pytest.approx(accuracy["0% to 25%"] - accuracy["never"])
    assert all(row["least_drawn"] >= 1 for row in rows if row["window"] == "never")
    assert {row["steps"] for row in rows} == {5 * 7}
    hard = {row["window"]: row["hard_steps"] for row in rows}
    assert (hard.pop("never"), hard.pop("always")) == (0, 4 * 7)
    assert len(hard) == 4 and set(hard.values()) <= {7, 8, 9}, "a phase ends with an epoch, of two steps or more"
    uneven = {row["window"]: row["most_drawn"] - row["least_drawn"] for row in rows}
    assert uneven["never"] == 0 < uneven["0% to 25%"], "the first window leaves examples out, too"
    assert "hard examples" in capsys.readouterr().out
    assert served.service.runs() == [], "none is left to slow the others"
