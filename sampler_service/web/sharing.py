"""One call to the service for all who ask it the same at about the same time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient
from sampler_client.config import Timeouts

FRESH_S = 1.0
"""within which an answer is given again: as often as a page asks"""


T = TypeVar("T")


@dataclass(slots=True)
class _Call:
    answer: Future[Any] = field(default_factory=Future)
    fresh_until: float = math.inf
    """monotonic seconds; a call under way is fresh"""


class SharedCalls:
    """Answers by their question: who asks while a call is under way waits for it, and gets what it brings.

    Threads may share it. An error reaches all who waited for it, and nobody later.

    Args:
        fresh_s: seconds for which an answer is given again.
    """

    def __init__(self, fresh_s: float) -> None:
        self._fresh_s = fresh_s
        self._lock = threading.Lock()
        self._calls: dict[Hashable, _Call] = {}

    def answer(self, question: Hashable, ask: Callable[[], T]) -> T:
        """What `ask` returns, or returned to another a moment ago. Raises what it raises."""
        now = time.monotonic()
        with self._lock:
            self._calls = {asked: call for asked, call in self._calls.items() if call.fresh_until > now}
            call = self._calls.get(question)
            first = call is None
            if call is None:
                call = self._calls[question] = _Call()
        if first:
            try:
                said = ask()
            except BaseException as error:
                call.fresh_until = -math.inf
                call.answer.set_exception(error)
            else:
                call.fresh_until = time.monotonic() + self._fresh_s
                call.answer.set_result(said)
        return call.answer.result()


class SharingClient(SamplerClient):
    """A client whose costly questions are asked once for all who ask them: however many people look at a run, and
    Prometheus besides, the service makes its histograms once a second."""

    def __init__(self, address: str, *, timeouts: Timeouts | None = None) -> None:
        super().__init__(address, timeouts=timeouts)
        self._shared = SharedCalls(FRESH_S)

    def statistics(self, run: str, *, detail: bool = False) -> pb.GetStatisticsResponse:
        if not detail:  # the recorder's, and cheap
            return super().statistics(run)
        ask = super().statistics
        return self._shared.answer(("statistics", run), lambda: ask(run, detail=True))

    def examples(self, run: str, order: str, *, count: int = 24) -> list[pb.ExampleStatistics]:
        ask = super().examples
        return self._shared.answer(("examples", run, order, count), lambda: ask(run, order, count=count))
