"""However many look, the service is asked once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sampler_client.client import SamplerClient
from sampler_client.errors import ReplyTimeout
from sampler_service.web import sharing
from sampler_service.web.server import WebServer
from sampler_service.web.sharing import SharedCalls
from tests.served import ServedService
from tests.web.conftest import Trainer, Web

FOREVER = 3600.0


class Question:
    """Takes until it is let go, and counts how often it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked = 0
        self.error = error
        self.under_way, self.go = threading.Event(), threading.Event()

    def __call__(self) -> int:
        self.asked += 1
        self.under_way.set()
        assert self.go.wait(30)
        if self.error:
            raise self.error
        return self.asked


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_who_asks_while_a_call_is_under_way_gets_what_it_brings(pool: ThreadPoolExecutor):
    calls, question = SharedCalls(fresh_s=0.0), Question()
    first = pool.submit(calls.answer, "a", question)
    assert question.under_way.wait(30)
    others = [pool.submit(calls.answer, "a", question) for _ in range(5)]
    assert calls.answer("b", lambda: "another question") == "another question", "it waits for nobody"
    question.go.set()
    assert [first.result(30), *(other.result(30) for other in others)] == [1] * 6
    assert calls.answer("a", question) == 2, "what is not fresh is asked again"


def test_a_fresh_answer_is_given_again():
    calls, question = SharedCalls(fresh_s=FOREVER), Question()
    question.go.set()
    assert [calls.answer("a", question) for _ in range(3)] == [1, 1, 1]


def test_an_error_reaches_all_who_waited_and_nobody_later(pool: ThreadPoolExecutor):
    calls, question = SharedCalls(fresh_s=FOREVER), Question(ReplyTimeout("no answer in 5 s"))
    waiting = [pool.submit(calls.answer, "a", question) for _ in range(3)]
    assert question.under_way.wait(30)
    question.go.set()
    for each in waiting:
        with pytest.raises(ReplyTimeout, match="no answer in 5 s"):
            each.result(30)
    question.error, before = None, question.asked
    assert calls.answer("a", question) == before + 1


def test_looking_pages_and_prometheus_share_one_call(served: ServedService, trainer: Trainer, monkeypatch):
    monkeypatch.setattr(sharing, "FRESH_S", FOREVER)
    asked: list[str] = []
    plainly = SamplerClient.statistics

    def counted(client: SamplerClient, run: str, *, detail: bool = False):
        if detail:
            asked.append(run)
        return plainly(client, run, detail=detail)

    monkeypatch.setattr(SamplerClient, "statistics", counted)
    server = WebServer(served.address, host="127.0.0.1", port=0)
    web = Web(server)
    with ThreadPoolExecutor(8) as viewers:
        answers = list(viewers.map(lambda _: web.json("/api/run/seen")["statistics"]["examples"], range(8)))
    assert "sampler_examples_served_total" in web.get("/metrics").text
    server.stop()
    assert (len(set(answers)), asked) == (1, ["seen"])
