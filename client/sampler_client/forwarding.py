"""Reports from another process than the one that streams: DataLoader workers receive, the training loop reports.

The loop's process has one reporter for each trainer, whatever the number of its workers.
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
        trainer: the one that the workers belong to: of several ranks in a process each has a name of its own.
        session: that of a worker; the next worker in its place goes on with it.
        queue: reports that may wait.
    """

    address: str
    timeouts: Timeouts
    trainer: str
    session: str
    queue: int

    def __call__(self, rows: ReportRows | PendingReport) -> None:
        _desk_of(self).put(rows, self.session)


class _Desk:
    """The reporter of one trainer in this process."""

    def __init__(self, forward: Forward) -> None:
        self._session = forward.session
        self._client = SamplerClient(forward.address, timeouts=forward.timeouts)
        # It has no place in the run to claim anew. When the service was restarted the workers do so, and a later
        # batch says how they are called now.
        self.reporter = Reporter(self._client, lambda: self._session, lambda: self._session, capacity=forward.queue)

    def put(self, rows: ReportRows | PendingReport, session: str) -> None:
        self._session = session
        self.reporter.put(rows)

    def close(self) -> None:
        self.reporter.close()
        self._client.close()


_desks: dict[str, _Desk] = {}
_lock = threading.Lock()


def _desk_of(forward: Forward) -> _Desk:
    with _lock:
        if forward.trainer not in _desks:
            _desks[forward.trainer] = _Desk(forward)
        return _desks[forward.trainer]


def counts(trainer: str) -> ReportCounts:
    """What became of the reports that this process has forwarded."""
    desk = _desks.get(trainer)
    return ReportCounts() if desk is None else desk.reporter.counts()


def flush(trainer: str, timeout_s: float | None = None) -> None:
    """Wait until they are in the service's table; see `Reporter.flush`."""
    desk = _desks.get(trainer)
    if desk is not None:
        desk.reporter.flush(timeout_s)


def close(trainer: str) -> None:
    """Send what is queued and end the reporter."""
    with _lock:
        desk = _desks.pop(trainer, None)
    if desk is not None:
        desk.close()


def leave(address: str, timeouts: Timeouts, session: str, *, done: bool) -> None:
    """Give up the place that a worker has left to those that would come after it. Never raises."""
    with SamplerClient(address, timeouts=timeouts) as client:
        try:
            client.leave(session, done=done)
        except SamplerError as error:
            log.info("leaving: %s", error)
