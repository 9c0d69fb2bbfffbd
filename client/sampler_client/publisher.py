"""Publishes weights in the background: the newest win, the training step never waits."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sampler_client.client import SamplerClient
from sampler_client.errors import (
    Busy,
    Conflict,
    NotFound,
    ReplyTimeout,
    SamplerError,
    ScoringError,
    ServiceUnavailable,
)

log = logging.getLogger(__name__)


class Weights(Protocol):
    """Weights as they were at one moment."""

    def safetensors(self) -> bytes:
        """A safetensors file of them; waits for their device."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishCounts:
    """What became of the published weights so far."""

    published: int = 0
    """that the service has taken"""
    skipped: int = 0
    """that never left, because newer ones came"""
    failed: int = 0
    """that could not be sent; the next call raises why"""
    version: int = 0
    """of the latest that the service has taken"""
    scorers: int = 0
    """that were at work then"""


class Publisher:
    """Background sender of one session's weights: one copy under way, and one that waits.

    Args:
        client: connection to the service.
        session: the present session token; asked for at each sending, since a reconnect changes it.
        rejoin: makes another session when the service has forgotten the present one.
    """

    def __init__(self, client: SamplerClient, session: Callable[[], str], rejoin: Callable[[], str]) -> None:
        self._client = client
        self._session = session
        self._rejoin = rejoin
        self._changed = threading.Condition()
        self._waiting: tuple[Weights, int] | None = None
        self._sending = False
        self._closed = False
        self._error: Exception | None = None
        self._told = ""
        self._thread: threading.Thread | None = None
        self._published = self._skipped = self._failed = self._version = self._scorers = 0

    def counts(self) -> PublishCounts:
        with self._changed:
            return PublishCounts(
                published=self._published,
                skipped=self._skipped,
                failed=self._failed,
                version=self._version,
                scorers=self._scorers,
            )

    def publish(self, weights: Weights, step: int) -> None:
        """Send weights of `step` next; never blocks. Those that still wait are skipped.

        Raises:
            SamplerError: what became of earlier weights, or of the scorers that got them; these are sent all the same.
        """
        with self._changed:
            if self._closed:
                raise SamplerError("publish after close(): open the loader again, or publish before closing it")
            self._skipped += self._waiting is not None
            self._waiting = weights, step
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sampler-publisher", daemon=True)
                self._thread.start()
            self._raise_pending()

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until the newest weights are with the service.

        Raises:
            ReplyTimeout: when that takes longer than `timeout_s` (default: Timeouts.publish_s).
            SamplerError: what became of them, or of the scorers that got earlier ones.
        """
        limit_s = self._client.timeouts.publish_s if timeout_s is None else timeout_s
        with self._changed:
            done = self._changed.wait_for(lambda: self._waiting is None and not self._sending, timeout=limit_s)
            self._raise_pending()
            if not done:
                raise ReplyTimeout(f"flush: the weights are not with {self._client.address} after {limit_s:g} s")

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what waits, as far as `timeout_s` allows, and end the thread. Never raises; logs what went wrong."""
        try:
            self.flush(timeout_s)
        except SamplerError as error:
            log.warning("closing: %s", error)
        with self._changed:
            self._closed, self._waiting = True, None
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _raise_pending(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            ours = isinstance(error, SamplerError)
            raise error if ours else SamplerError(f"weights could not be sent: {type(error).__name__}: {error}")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed or self._waiting is None:
                    return
                (weights, step), self._waiting, self._sending = self._waiting, None, True
            try:
                data = weights.safetensors()
                weights = None  # their pinned memory is free before the bytes have travelled, and while nothing comes
                self._send(data, step)
            except Exception as error:  # the thread must outlive whatever comes
                with self._changed:
                    self._error, self._failed = _without_frames(error), self._failed + 1
            finally:
                weights = data = None
                with self._changed:
                    self._sending = False
                    self._changed.notify_all()

    def _send(self, data: bytes, step: int) -> None:
        """Send until it is through, refused, displaced by newer ones, or the service has been away for too long."""
        give_up = time.monotonic() + self._client.timeouts.reconnect_s
        pause_s, forgotten = 0.1, False
        while True:
            try:
                if forgotten:  # by a service that was restarted
                    self._rejoin()
                answer = self._client.publish(self._session(), step, data)
            except (ServiceUnavailable, ReplyTimeout, Busy, Conflict, NotFound) as error:
                forgotten = isinstance(error, NotFound)
                if time.monotonic() > give_up or self._closed:
                    raise
                with self._changed:
                    if self._changed.wait_for(lambda: self._waiting or self._closed, timeout=pause_s):
                        self._skipped += 1
                        return
                pause_s = min(2 * pause_s, 2.0)
            else:
                break
        with self._changed:
            self._published, self._version, self._scorers = self._published + 1, answer.version, answer.scorers
            kind = _NUMBERS.sub("#", answer.scorer_error)
            if kind not in ("", self._told):
                self._error = ScoringError(f"the scorers of the run report: {answer.scorer_error}")
            self._told = kind  # the same one is raised once, whatever the version of the weights


_NUMBERS = re.compile(r"\d+")
"""of weights, examples and shapes: what differs between two tellings of the same failure"""


def _without_frames(error: Exception) -> Exception:
    """The error alone: the frames of its traceback would keep weights alive until it is raised."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
