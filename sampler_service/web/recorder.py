"""Asks the service where its runs stand, once a second, and remembers."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient
from sampler_client.errors import SamplerError
from sampler_service.web.history import History

log = logging.getLogger(__name__)

PERIOD_S = 1.0

BUSY_SHARE = 0.1
"""of the time that may go into asking: a service with many runs is asked less often"""

LONGEST_PAUSE = 5
"""periods between two looks, at most"""


@dataclass(slots=True)
class Record:
    """What is known of one run."""

    statistics: pb.GetStatisticsResponse
    at: float
    """Unix seconds"""
    history: History = field(default_factory=History)
    examples_per_s: float = float("nan")


class Recorder:
    """Remembers the runs of one service.

    Args:
        client: of the service.
        period_s: seconds between two looks.
    """

    def __init__(self, client: SamplerClient, period_s: float = PERIOD_S) -> None:
        self._client = client
        self._period_s = period_s
        self._lock = threading.Lock()
        self._records: dict[str, Record] = {}
        self._stop = threading.Event()
        self.lost: str = "not asked yet"
        """why the service did not answer the last time; empty when it did"""
        self.lost_since = time.time()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join(timeout=30.0)

    def runs(self) -> dict[str, Record]:
        """The runs that there were at the last look."""
        with self._lock:
            return dict(self._records)

    def look(self) -> None:
        """Ask once."""
        try:
            names = self._client.runs()
            said = {name: found for name in names if (found := self._ask(name)) is not None}
        except SamplerError as error:
            if not self.lost:
                self.lost_since = time.time()
                log.warning("the service does not answer: %s", error)
            self.lost = str(error)
            return
        now = time.time()
        with self._lock:
            self._records = {name: self._recorded(name, statistics, now) for name, statistics in said.items()}
        self.lost = ""

    def _ask(self, name: str) -> pb.GetStatisticsResponse | None:
        try:
            return self._client.statistics(name)
        except SamplerError as error:
            log.info("statistics of %s: %s", name, error)  # it was closed just now, or is being started
            return None

    def _recorded(self, name: str, now_said: pb.GetStatisticsResponse, now: float) -> Record:
        record = self._records.get(name)
        if record is None or record.statistics.examples > now_said.examples:  # new, or its actor was
            history = record.history if record else History()
            return Record(now_said, now, history)
        record.examples_per_s = _rate(now_said.examples, record.statistics.examples, now - record.at)
        record.history.add(_point(record, now_said, now))
        record.statistics, record.at = now_said, now
        return record

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            self.look()
            took = time.monotonic() - began
            self._stop.wait(pause(took, self._period_s))


def pause(took: float, period_s: float) -> float:
    """Seconds until the next look, after one that took so long: a service that is slow to answer is asked less often,
    but not for long, since it may just have started a run."""
    return max(period_s - took, min(took / BUSY_SHARE - took, LONGEST_PAUSE * period_s), 0.0)


def _rate(now: float, before: float, seconds: float) -> float:
    return (now - before) / seconds if seconds > 0 else float("nan")


def _point(before: Record, said: pb.GetStatisticsResponse, now: float) -> dict[str, float]:
    """One point of the curves."""
    was, seconds = before.statistics, now - before.at
    trainers = max(1, said.trainers)
    return {
        "time": now,
        "examples_per_s": before.examples_per_s,
        "reports_per_s": _rate(said.reported_rows, was.reported_rows, seconds),
        "wait_share": min(1.0, max(0.0, _rate(said.waited_seconds, was.waited_seconds, seconds) / trainers)),
        "variance_ratio": said.variance_ratio,
        "stage_ratio": said.stage_ratio,
        "effective_sample_ratio": said.effective_sample_ratio,
        "epoch_coverage": said.epoch_coverage,
        "window_coverage": said.window_coverage,
        "sketch_coverage": said.sketch_coverage,
        "median_age_steps": said.median_age_steps,
        "p99_age_steps": said.p99_age_steps,
        "lead": float(said.lead),
        "median_lead": said.median_lead,
        "p99_lead": said.p99_lead,
        "trainers": float(said.trainers),
    }
