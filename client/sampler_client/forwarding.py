"""Reports from another process than the one that streams: DataLoader workers receive, the training loop reports.

The loop's process has one reporter for each run, whatever the number of workers.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from sampler_client.client import SamplerClient
from sampler_client.config import Timeouts
from sampler_client.errors import SamplerError
from sampler_client.reporter import PendingReport, ReportCounts, Reporter, ReportRows

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Forward:
    """Takes the reports of a worker's batches, in whatever process it is called. Picklable.

    Args:
        address: "host:port" of the service.
        timeouts: deadlines.
        run: name of the run.
        session: that of a worker; the next worker in its place goes on with it.
        worker: its number.
        queue: reports that may wait.
    """

    address: str
    timeouts: Timeouts
    run: str
    session: str
    worker: int
    queue: int

    def __call__(self, rows: ReportRows | PendingReport) -> None:
        _desk_of(self).put(rows, self)


class _Desk:
    """The reporter of one run in this process."""

    def __init__(self, forward: Forward) -> None:
        self._session = forward.session
        self._sessions: dict[int, str] = {}
        self._client = SamplerClient(forward.address, timeouts=forward.timeouts)
        # It has no place in the run to claim anew. When the service was restarted the workers do so, and a later
        # batch says how they are called now.
        self.reporter = Reporter(self._client, lambda: self._session, lambda: self._session, capacity=forward.queue)

    def put(self, rows: ReportRows | PendingReport, forward: Forward) -> None:
        self._session = self._sessions[forward.worker] = forward.session
        self.reporter.put(rows)

    def close(self) -> None:
        """Send what is queued, and give up the places that workers have left to those that would come after them."""
        self.reporter.close()
        for session in self._sessions.values():
            try:
                self._client.leave(session)
            except SamplerError as error:
                log.info("leaving: %s", error)
        self._client.close()


_desks: dict[tuple[str, str], _Desk] = {}
_lock = threading.Lock()


def _desk_of(forward: Forward) -> _Desk:
    with _lock:
        key = forward.address, forward.run
        if key not in _desks:
            _desks[key] = _Desk(forward)
        return _desks[key]


def counts(address: str, run: str) -> ReportCounts:
    """What became of the reports that this process has forwarded."""
    desk = _desks.get((address, run))
    return ReportCounts() if desk is None else desk.reporter.counts()


def flush(address: str, run: str, timeout_s: float | None = None) -> None:
    """Wait until they are in the service's table; see `Reporter.flush`."""
    desk = _desks.get((address, run))
    if desk is not None:
        desk.reporter.flush(timeout_s)


def close(address: str, run: str) -> None:
    """Send what is queued and end the reporter."""
    with _lock:
        desk = _desks.pop((address, run), None)
    if desk is not None:
        desk.close()
