"""What the page remembers of runs, some of which do not answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.errors import NotFound, ReplyTimeout, ServiceUnavailable, Stale
from sampler_service.web.recorder import Recorder, pause


class Service:
    """A client whose runs answer, or fail, as they are told; each answer is ten examples further."""

    def __init__(self, *runs: str) -> None:
        self.answers: dict[str, Exception | None] = dict.fromkeys(runs)
        self.away: Exception | None = None
        self.examples = dict.fromkeys(runs, 0)
        self.ranks: list[pb.RankStatistics] = []

    def runs(self) -> list[str]:
        if self.away:
            raise self.away
        return list(self.answers)

    def statistics(self, run: str) -> pb.GetStatisticsResponse:
        error = self.answers[run]
        if error:
            raise error
        self.examples[run] += 10
        return pb.GetStatisticsResponse(run=run, examples=self.examples[run], ranks=self.ranks)


@pytest.fixture
def service() -> Service:
    return Service("well", "stuck")


@pytest.fixture
def recorder(service: Service) -> Iterator[Recorder]:
    recorder = Recorder(service, period_s=3600.0)  # it looks once by itself, and then when it is told to
    recorder.look()
    yield recorder
    recorder.stop()


def points(recorder: Recorder, run: str) -> int:
    return len(recorder.runs()[run].history.tail("time", 100))


def test_a_run_that_does_not_answer_keeps_its_curves_and_is_said_to_be_silent(service: Service, recorder: Recorder):
    recorder.look()
    before, known = recorder.runs()["stuck"], points(recorder, "stuck")
    assert (known > 0, before.unanswered_since) == (True, None)
    service.answers["stuck"] = ReplyTimeout("no answer in 5 s")
    recorder.look()
    since = recorder.runs()["stuck"].unanswered_since
    recorder.look()
    silent = recorder.runs()["stuck"]
    assert (silent.statistics, silent.history) == (before.statistics, before.history)
    assert since is not None
    assert silent.unanswered_since == since, "since the first time in vain"
    assert points(recorder, "stuck") == known
    assert points(recorder, "well") == known + 2, "the others are looked at as ever"
    assert recorder.lost == "", "the service answers"
    service.answers["stuck"] = None
    recorder.look()
    assert recorder.runs()["stuck"].unanswered_since is None
    assert points(recorder, "stuck") == known + 1


def test_a_run_that_has_never_answered_is_there(service: Service, recorder: Recorder):
    service.answers["new"] = ServiceUnavailable("its actor is being started")
    recorder.look()
    record = recorder.runs()["new"]
    assert record.statistics is None
    assert record.unanswered_since is not None


@pytest.mark.parametrize("error", [NotFound("unknown run"), Stale("it was closed")])
def test_a_run_that_ended_is_forgotten(service: Service, recorder: Recorder, error: Exception):
    service.answers["stuck"] = error
    recorder.look()
    assert list(recorder.runs()) == ["well"]
    del service.answers["well"]
    recorder.look()
    assert recorder.runs() == {}


def test_while_the_service_is_away_everything_stays(service: Service, recorder: Recorder):
    before = recorder.runs()
    service.away = ServiceUnavailable("connection refused")
    recorder.look()
    assert (recorder.asked, recorder.lost) == (True, "connection refused")
    assert recorder.runs() == before
    service.away = None
    recorder.look()
    assert (recorder.lost, sorted(recorder.runs())) == ("", ["stuck", "well"])


def test_a_trainer_that_joined_anew_has_no_rate_yet(service: Service, recorder: Recorder):
    service.ranks = [pb.RankStatistics(rank=rank, trainer="a", examples=100, waited_seconds=1.0) for rank in (0, 1)]
    recorder.look()
    service.ranks = [
        pb.RankStatistics(rank=0, trainer="a", examples=100, waited_seconds=1e9),
        pb.RankStatistics(rank=1, trainer="b", examples=500),
    ]
    recorder.look()
    rates = recorder.runs()["well"].ranks
    assert list(rates) == [0]
    assert (rates[0].examples_per_s, rates[0].wait_share) == (0.0, 1.0), "nobody waits longer than it is there"


def test_a_slow_service_is_asked_less_often_and_not_forgotten():
    assert pause(0.05, 1.0) == pytest.approx(0.95)
    assert pause(0.3, 1.0) == pytest.approx(2.7)
    assert pause(20.0, 1.0) == 5.0, "it was starting a run"
