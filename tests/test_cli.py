"""What the commands that only ask a service say when it answers in part."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sampler_service.cli import app
from sampler_service.errors import Unavailable
from tests.raw_wire import open_session
from tests.served import ServedService

run = CliRunner().invoke


@pytest.fixture
def half_deaf(served: ServedService, monkeypatch: pytest.MonkeyPatch) -> ServedService:
    """A service with the runs "well" and "stuck", which does not answer."""
    for name in ("well", "stuck"):
        open_session(served.address, run=name).close()
    answer = served.service.statistics

    def statistics(name: str, *, detail: bool = False):
        if name == "stuck":
            raise Unavailable("waited 20 s for the actor of run 'stuck'")
        return answer(name, detail=detail)

    monkeypatch.setattr(served.service, "statistics", statistics)
    return served


def test_status_shows_the_runs_that_answer_names_the_others_and_fails(half_deaf: ServedService):
    shown = run(app, ["status", half_deaf.address])
    assert shown.exit_code == 1
    assert "well" in shown.stdout
    assert "stuck does not answer: statistics of run 'stuck'" in shown.stdout
    assert "waited 20 s for the actor" in shown.stdout


def test_status_for_scripts_lists_the_runs_that_did_not_answer(half_deaf: ServedService):
    shown = run(app, ["status", half_deaf.address, "--json"])
    assert shown.exit_code == 1
    said = json.loads(shown.stdout)
    assert [each["run"] for each in said["runs"]] == ["well"]
    assert list(said["unanswered"]) == ["stuck"]


def test_top_goes_on_with_the_runs_that_answer(half_deaf: ServedService):
    shown = run(app, ["top", half_deaf.address, "--count", "1"])
    assert shown.exit_code == 0
    assert "well" in shown.stdout
    assert "stuck does not answer" in shown.stdout


def test_status_of_a_service_that_answers_is_no_failure(served: ServedService):
    shown = run(app, ["status", served.address])
    assert (shown.exit_code, "serves no run yet" in shown.stdout) == (0, True)
    open_session(served.address, run="well").close()
    shown = run(app, ["status", served.address, "--json"])
    assert (shown.exit_code, json.loads(shown.stdout)["unanswered"]) == (0, {})
