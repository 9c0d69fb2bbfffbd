"""Asks the service where its runs stand, once a second, and remembers."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient
from sampler_client.errors import NotFound, SamplerError, Stale
from sampler_service.web.history import History

log = logging.getLogger(__name__)

PERIOD_S = 1.0

BUSY_SHARE = 0.1
"""of the time that may go into asking: a service with many runs is asked less often"""

LONGEST_PAUSE = 5
"""periods between two looks, at most"""

ASKED_AT_ONCE = 4
"""runs: those that do not answer keep few others waiting"""

NAN = math.nan


@dataclass(frozen=True, slots=True)
class RankRates:
    """What a trainer did between the last two answers."""

    examples_per_s: float
    wait_share: float
    """of its time, 0 to 1"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of one run."""

    statistics: pb.GetStatisticsResponse | None = None
    """its latest answer; None before the first"""
    at: float = NAN
    """when that came, Unix seconds"""
    history: History = field(default_factory=History)
    examples_per_s: float = NAN
    ranks: Mapping[int, RankRates] = field(default_factory=dict)
    unanswered_since: float | None = None
    """when it was first asked in vain after its latest answer, Unix seconds; None: it answers"""


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
        self._looking = threading.Lock()
        self._askers = ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="recorder")
        self._stop = threading.Event()
        self.asked = False
        """whether the service has answered, or failed to, at all"""
        self.lost = ""
        """why the service did not answer the last time; empty when it did"""
        self.lost_since = time.time()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join(timeout=30.0)
        self._askers.shutdown(wait=False, cancel_futures=True)

    def runs(self) -> dict[str, Record]:
        """The runs that there were at the last look."""
        with self._lock:
            return dict(self._records)

    def look(self) -> None:
        """Ask once."""
        with self._looking:
            try:
                names = self._client.runs()
            except SamplerError as error:
                if not self.lost:
                    self.lost_since = time.time()
                    log.warning("the service does not answer: %s", error)
                self.lost, self.asked = str(error), True
                return
            for name, record in zip(names, self._askers.map(self._asked, names), strict=True):
                with self._lock:
                    if record is None:
                        self._records.pop(name, None)
                    else:
                        self._records[name] = record
            with self._lock:
                self._records = {name: self._records[name] for name in names if name in self._records}
            self.lost, self.asked = "", True

    def _asked(self, name: str) -> Record | None:
        """What is known of a run after asking it; None: there is none."""
        before = self.runs().get(name, Record())
        try:
            said = self._client.statistics(name)
        except (NotFound, Stale):
            return None  # it was closed just now
        except SamplerError as error:
            if before.unanswered_since is not None:
                return before
            log.warning("run %r does not answer: %s", name, error)
            return replace(before, unanswered_since=time.time())
        return _after(before, said, time.time())

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self.look()
            except Exception:  # a fault of ours must not end the curves of all runs
                log.exception("a look at the service failed")
            took = time.monotonic() - began
            self._stop.wait(pause(took, self._period_s))


def pause(took: float, period_s: float) -> float:
    """Seconds until the next look, after one that took so long: a service that is slow to answer is asked less often,
    but not for long, since it may just have started a run."""
    return max(period_s - took, min(took / BUSY_SHARE - took, LONGEST_PAUSE * period_s), 0.0)


def _after(before: Record, said: pb.GetStatisticsResponse, now: float) -> Record:
    """The record of a run that has just answered; its history takes the point in."""
    was = before.statistics
    if was is None or was.examples > said.examples:  # new, or its actor was
        return Record(statistics=said, at=now, history=before.history)
    seconds = now - before.at
    rate = _rate(said.examples, was.examples, seconds)
    before.history.add(_point(was, said, now, seconds))
    return Record(
        statistics=said, at=now, history=before.history, examples_per_s=rate, ranks=_rank_rates(was, said, seconds)
    )


def _rate(now: float, before: float, seconds: float) -> float:
    return (now - before) / seconds if seconds > 0 else NAN


def _share(now: float, before: float, seconds: float) -> float:
    rate = _rate(now, before, seconds)
    return rate if math.isnan(rate) else min(1.0, max(0.0, rate))


def _rank_rates(was: pb.GetStatisticsResponse, said: pb.GetStatisticsResponse, seconds: float) -> dict[int, RankRates]:
    """By rank, for the trainers that were there at both times: they count since they joined."""
    before = {(rank.rank, rank.trainer): rank for rank in was.ranks}
    return {
        rank.rank: RankRates(
            _rate(rank.examples, old.examples, seconds), _share(rank.waited_seconds, old.waited_seconds, seconds)
        )
        for rank in said.ranks
        if (old := before.get((rank.rank, rank.trainer))) is not None and old.examples <= rank.examples
    }


def _point(
    was: pb.GetStatisticsResponse, said: pb.GetStatisticsResponse, now: float, seconds: float
) -> dict[str, float]:
    """One point of the curves."""
    return {
        "time": now,
        "examples_per_s": _rate(said.examples, was.examples, seconds),
        "reports_per_s": _rate(said.reported_rows, was.reported_rows, seconds),
        "wait_share": _share(said.waited_seconds, was.waited_seconds, seconds * max(1, said.trainers)),
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
    }
