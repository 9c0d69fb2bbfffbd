"""Sends reports in the background: a bounded queue that never blocks the step and counts what it drops.

Shapes: r rows of a report, d sketch length.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sampler_client import wire
from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient, check_size
from sampler_client.errors import (
    Busy,
    ConfigError,
    Conflict,
    NotFound,
    ReplyTimeout,
    SamplerError,
    ServiceUnavailable,
    SketchError,
)
from sampler_client.evidence import evidence_of

if TYPE_CHECKING:
    from sampler_client.batch import Taken

log = logging.getLogger(__name__)

_LINGER_S = 0.05
"""for which reports wait for others to be sent with"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRows:
    """What one backward pass showed of r examples."""

    batch_id: int
    step: int
    example_ids: NDArray[np.int64]
    losses: NDArray[np.float32] | None = None
    norms: NDArray[np.float32] | None = None
    sketches: NDArray[Any] | None = None
    unusable: int = 0
    """rows left out, because their gradient could not be told"""
    scores: bool = False
    """of a scoring pass over the batch's candidates, not of its training step"""
    stage: pb.Stage | None = None
    """what the second stage measured"""
    evidence: pb.Evidence | None = None
    """what the training step says of the second stage's choice"""

    def resolve(self) -> ReportRows:
        """The rows themselves: nothing of them is under way."""
        return self

    def with_sketches(
        self, sketches: NDArray[Any], norms: NDArray[np.float32] | None, usable: NDArray[np.bool_]
    ) -> ReportRows:
        """The same rows with sketches (r, d) and norms (r,); rows that are not usable are left out."""
        if usable.all():
            return replace(self, norms=norms, sketches=sketches)
        return replace(
            self,
            example_ids=self.example_ids[usable],
            losses=None if self.losses is None else self.losses[usable],
            norms=None if norms is None else norms[usable],
            sketches=sketches[usable],
            unusable=self.unusable + int(np.count_nonzero(~usable)),
        )

    def message_bytes(self) -> int:
        """Bytes of the largest of its messages, but for some hundred of its frame."""
        columns = (self.example_ids, self.losses, self.norms, self.sketches)
        total = sum(column.nbytes for column in columns if column is not None)
        return total * min(wire.MAX_REPORT_ROWS, len(self.example_ids)) // max(len(self.example_ids), 1)

    def messages(self, session: str) -> list[pb.Report]:
        """Report messages of at most MAX_REPORT_ROWS rows each."""
        # Only the first piece carries the batch_id: the service takes a second one for a repeat.
        pieces = []
        for start in range(0, max(len(self.example_ids), 1), wire.MAX_REPORT_ROWS):
            piece = slice(start, start + wire.MAX_REPORT_ROWS)
            pieces.append(
                wire.encode_report(
                    session=session,
                    batch_id=self.batch_id if start == 0 else 0,
                    step=self.step,
                    example_ids=self.example_ids[piece],
                    losses=None if self.losses is None else self.losses[piece],
                    norms=None if self.norms is None else self.norms[piece],
                    sketches=None if self.sketches is None else self.sketches[piece],
                    scores=self.scores,
                    stage=self.stage if start == 0 else None,
                    evidence=self.evidence if start == 0 else None,
                )
            )
        return pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingReport:
    """A report whose numbers may still be on their way from a device."""

    batch_id: int
    step: int
    example_ids: NDArray[np.int64]
    losses: Callable[[], NDArray[np.float32]]
    sketches: Callable[[], Taken] | None = None
    scored: bool = False
    """the run's norms come from scoring passes: those of the sketcher are of other layers, in another unit"""
    weights: NDArray[np.float32] | None = None
    """(r,) that the losses are trained with"""
    stage: pb.Stage | None = None
    """what the second stage measured when it chose the rows; None: it did not"""

    def resolve(self) -> ReportRows:
        """Wait for the device and fetch what it has.

        Raises:
            SketchError: that did not work.
        """
        try:
            rows = ReportRows(
                batch_id=self.batch_id, step=self.step, example_ids=self.example_ids, losses=self.losses()
            )
            usable = slice(None)
            if self.sketches is not None:
                taken = self.sketches()
                rows, usable = rows.with_sketches(taken.sketches, taken.norms, taken.usable), taken.usable
            if self.stage is not None and self.weights is not None and rows.losses is not None:
                evidence = evidence_of(self.stage, self.weights[usable], loss_r=rows.losses, norm_r=rows.norms)
                rows = replace(rows, evidence=evidence)
            return replace(rows, norms=None) if self.scored else rows
        except Exception as error:
            raise SketchError(
                f"the report of batch {self.batch_id} could not be taken: {type(error).__name__}: {error}"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportCounts:
    """What became of the reports so far."""

    accepted: int = 0
    """rows that the service took"""
    rejected: dict[str, int] = field(default_factory=dict)
    """rows that it did not take, by reason"""
    unusable: int = 0
    """rows left out because their gradient could not be told"""
    dropped: int = 0
    """reports that are lost: the queue was full, the service stayed away, closing came first, they were faulty, or the
    service took none of their call, as when the run was closed or the rank taken over"""
    refused: int = 0
    """calls with reports that did not fit the run; the reports beside those are applied"""
    waiting: int = 0
    """reports queued or under way"""


class Reporter:
    """Background sender of one session.

    A full queue drops its oldest report and counts it: fresh gradients are worth more than old ones, and the
    training step is worth more than either.

    Args:
        client: connection to the service.
        session: the present session token; asked for at each sending, since a reconnect changes it.
        rejoin: makes another session when the service has forgotten the present one.
        capacity: reports that may wait.
    """

    def __init__(
        self, client: SamplerClient, session: Callable[[], str], rejoin: Callable[[], str], *, capacity: int = 256
    ) -> None:
        self._client = client
        self._session = session
        self._rejoin = rejoin
        self._capacity = capacity
        self._queue: deque[ReportRows | PendingReport] = deque()
        self._changed = threading.Condition()
        self._sending = 0
        self._flushing = 0
        self._closed = False
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        # See ReportCounts.
        self.dropped = 0
        self.refused = 0
        self.rejected: Counter[str] = Counter()
        self.accepted = 0
        self.unusable = 0

    def counts(self) -> ReportCounts:
        with self._changed:
            return ReportCounts(
                accepted=self.accepted,
                rejected=dict(self.rejected),
                unusable=self.unusable,
                dropped=self.dropped,
                refused=self.refused,
                waiting=len(self._queue) + self._sending,
            )

    def put(self, rows: ReportRows | PendingReport) -> None:
        """Queue a report; never blocks.

        Raises:
            MessageTooLarge: it would not fit a message; it is not queued, and what is queued is not touched.
            SamplerError: what became of an earlier report, or of the call that sent it; this one is queued.
        """
        if isinstance(rows, ReportRows):
            check_size(rows.message_bytes(), f"report of batch {rows.batch_id}")
        with self._changed:
            if self._closed:
                self.dropped += 1
                raise SamplerError("report after close(): open the loader again, or report before closing it")
            if len(self._queue) >= self._capacity:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append(rows)
            if len(self._queue) == 1:  # it waits for the first alone: each waking would take the training step's time
                self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sampler-reporter", daemon=True)
                self._thread.start()
            self._raise_pending()

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything queued is in the service's table.

        Raises:
            ReplyTimeout: when that takes longer than `timeout_s` (default: Timeouts.report_s).
            SamplerError: what the service answered to a report that it refused as a whole.
        """
        limit_s = self._client.timeouts.report_s if timeout_s is None else timeout_s
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._queue and not self._sending, timeout=limit_s)
            self._flushing -= 1
            self._raise_pending()
            if not done:
                waiting = len(self._queue) + self._sending
                raise ReplyTimeout(f"flush: {waiting} reports are not with {self._client.address} after {limit_s:g} s")

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is queued, as far as `timeout_s` allows, and end the thread. Never raises; logs what it lost."""
        try:
            self.flush(timeout_s)
        except SamplerError as error:
            log.warning("closing with unsent reports: %s", error)
        with self._changed:
            self._closed = True
            self.dropped += len(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _raise_pending(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            ours = isinstance(error, SamplerError)
            raise error if ours else SamplerError(f"reports could not be sent: {type(error).__name__}: {error}")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                # A call costs the service far more than a report in it: wait a little for others, if nobody waits.
                self._changed.wait_for(lambda: self._flushing or self._closed, timeout=_LINGER_S)
                if self._closed:
                    return
                batch = list(self._queue)
                self._queue.clear()
                self._sending = len(batch)
            try:
                self._send(self._encoded(batch))
            finally:
                with self._changed:
                    self._sending = 0
                    self._changed.notify_all()

    def _encoded(self, reports: list[ReportRows | PendingReport]) -> list[list[pb.Report]]:
        """The messages of each report, without session. One that fails is counted, and does no harm to the others."""
        encoded = []
        while reports:  # taken out one by one, so that what each holds on a device is free at once
            report = reports.pop(0)
            try:
                rows = report.resolve()
                check_size(rows.message_bytes(), f"report of batch {rows.batch_id}")
                encoded.append(rows.messages(session=""))
            except Exception as error:  # the thread must outlive whatever it was given
                with self._changed:
                    self._error, self.dropped = error, self.dropped + 1
            else:
                with self._changed:
                    self.unusable += rows.unusable
        return encoded

    def _send(self, reports: list[list[pb.Report]]) -> None:
        """Send until it is through, refused, or the service has been away for too long."""
        give_up = time.monotonic() + self._client.timeouts.reconnect_s
        pause_s, forgotten = 0.05, False
        while reports:
            try:
                if forgotten:  # by a service that was restarted; between epochs no stream would notice
                    self._rejoin()
                summary = self._client.send_reports(self._addressed(reports))
            except (ServiceUnavailable, ReplyTimeout, Busy, Conflict, NotFound) as error:
                forgotten = isinstance(error, NotFound)
                if time.monotonic() > give_up or self._closed:
                    log.warning("dropping %d reports: %s", len(reports), error)
                    with self._changed:
                        self.dropped += len(reports)
                    return
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 2.0)
            except ConfigError as error:
                with self._changed:
                    self._error, self.refused = error, self.refused + 1
                return
            except Exception as error:  # such as Stale; the thread must outlive whatever comes
                with self._changed:
                    self._error, self.dropped = error, self.dropped + len(reports)
                return
            else:
                with self._changed:
                    self.accepted += summary.accepted
                    self.rejected.update(summary.rejected)
                return

    def _addressed(self, reports: list[list[pb.Report]]) -> Iterator[pb.Report]:
        """All messages, for the present session; it may be another at the next attempt."""
        session = self._session()
        for message in chain.from_iterable(reports):
            message.session = session
            yield message
