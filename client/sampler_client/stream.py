"""The data side of a connection: one bidirectional stream per session, with credits and reconnection."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from sampler_client._pb import sampler_pb2 as pb
from sampler_client._pb import sampler_pb2_grpc as pb_grpc
from sampler_client.client import SamplerClient
from sampler_client.errors import Busy, Conflict, ReplyTimeout, SamplerError, ServiceUnavailable, from_rpc

log = logging.getLogger(__name__)

_BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
"""Codes of a stream that broke, rather than was refused."""

_FINISH_S = 2.5
"""How long `finish_epoch` tries to open a stream again that broke before it."""

_SETTLE_S = 0.25
"""Within this time a stream that can't be opened says so; one that is open says nothing."""

_DRAIN_S = 2.0
"""How long `close` waits for the service to read what is done."""


class _Ended(Exception):
    """The service ended the stream in good order: it is being stopped, perhaps to be started again."""


class _Requests:
    """Blocking iterator over what is sent; grpc reads it in a thread of its own."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[pb.BatchRequest | None] = queue.SimpleQueue()

    def send(self, **request: Any) -> None:
        self._queue.put(pb.BatchRequest(**request))

    def close(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[pb.BatchRequest]:
        return iter(self._queue.get, None)


class BatchStream:
    """Batches of one session, epoch by epoch. Not thread-safe: one loop reads it.

    The service may send `lead` batches ahead of what the loop is done with, and no more. When the stream breaks
    it is opened again, with back-off, and goes on where it was; when the service has forgotten the session (it
    restarted), `rejoin` makes another and the epoch is resumed behind what was received.

    Args:
        client: connection to the service.
        join: claims the rank (anew) and returns the session token.
        lead: batches that may be held at once.
        bunch: batches that the loop is done with are told in bunches of so many.
        progress: how far the run is, 0 … 1, when an epoch begins.
        records: batches come with these records.
        workers: streams that share the rank's batches by turns.

    Attributes:
        record_schema: of the records, an Arrow IPC schema message; empty before the service has said it.
    """

    def __init__(
        self,
        client: SamplerClient,
        join: Callable[[], str],
        *,
        lead: int,
        bunch: int = 1,
        progress: Callable[[], float] = lambda: 0.0,
        records: pb.RecordsRequest | None = None,
        workers: int = 1,
    ) -> None:
        self._client = client
        self._workers = workers
        self._records = records
        self.record_schema = b""
        self._join = join
        self._lead = lead
        self._bunch = bunch
        self._progress = progress
        self._population = ""
        self.session = join()
        self._requests: _Requests | None = None
        self._replies: Any = None
        self._waiting_since: float | None = None
        self._waited_s = 0.0  # not told yet
        self._timed_out = False
        self._watchdog: threading.Thread | None = None
        self._closed = threading.Event()
        self._broken_since: float | None = None
        self._begun_at = 0.0  # how far the run was when the epoch began
        self._reset_epoch(0, 0)
        self._last_batch_id = 0
        # At once: a rank without a stream may be taken by others while its model is still being built.
        self._open()

    def _reset_epoch(self, epoch: int, skip_examples: int, population: str = "") -> None:
        self._epoch = epoch
        self._population = population  # examples that it was begun with, once that is known
        self._skip = skip_examples
        self._received = 0  # batches of this epoch received
        self._held: dict[int, None] = {}  # batch_ids received and not done, in order
        self._done: list[int] = []  # done, not yet told
        self._inbox: deque[pb.Batch] = deque()  # arrived, not yet handed out
        self._ended = True

    def start_epoch(self, epoch: int, skip_examples: int = 0, population: str = "", received: int = 0) -> pb.EpochStart:
        """Begin an epoch, at `skip_examples` of its global order; what was left of another epoch is dropped.

        Args:
            epoch: which.
            skip_examples: that were delivered of it before, over all ranks,
            population: when it began with these examples.
            received: batches that this trainer has had behind those.
        """
        self._reset_epoch(epoch, skip_examples, population)
        self._begun_at = self._progress()
        self._received = received
        self._ended = False
        while True:
            try:
                if self._requests is None:
                    self._open()
                return self._begin()
            except (grpc.RpcError, _Ended) as error:
                self._recover(error, resume=False)

    def next(self) -> pb.Batch | None:
        """The next batch, or None at the end of the epoch.

        Raises:
            ReplyTimeout: no batch within Timeouts.batch_s.
            ServiceUnavailable: the service was away for longer than Timeouts.reconnect_s.
        """
        while self._inbox or not self._ended:
            if self._inbox:
                return self._hand_out()
            try:
                if self._requests is None:
                    raise ServiceUnavailable(f"the batch stream to {self._client.address} is not open")
                if len(self._held) + len(self._done) >= self._lead:
                    self._send_credit()  # nothing is under way: the service waits for this as we would for it
                reply = self._receive()
            except (grpc.RpcError, _Ended) as error:
                self._recover(error, resume=True)
                continue
            kind = reply.WhichOneof("reply")
            if kind == "block":
                # What was sent again after a reconnect, and received before it, is passed over.
                self._inbox.extend(b for b in reply.block.batch if b.batch_id > self._last_batch_id)
            elif kind == "epoch_end":
                self._ended = True
        return None

    def _hand_out(self) -> pb.Batch:
        batch = self._inbox.popleft()
        self._last_batch_id = batch.batch_id
        self._held[batch.batch_id] = None
        self._received += 1
        return batch

    def done(self, batch_id: int) -> None:
        """The loop has finished with a batch: its lease ends and another may be sent."""
        if self._held.pop(batch_id, self) is self:
            return
        self._done.append(batch_id)
        # A call for each batch is most of what a short step costs the service; where there is slack, it serves several.
        if len(self._done) >= self._bunch:
            self._send_credit()

    def _send_credit(self) -> None:
        if self._done and self._requests is not None:
            self._requests.send(credit=pb.Credit(count=len(self._done), acked=self._done, waited=self._waited()))
            self._done = []

    def finish_epoch(self, *, received: bool = True) -> None:
        """Tell the service that everything of this epoch is done; where the loop has not `received` all of it, what is
        done by now. The rest stays held until another epoch begins.

        Over another stream when this one broke meanwhile: until then the other trainers would wait for the lease.
        Never raises, and gives up after some seconds: the next epoch opens the stream again in any case.
        """
        if received:
            self._done.extend(self._held)
            self._held.clear()
        if self._done and self._requests is not None:
            self._requests.send(credit=pb.Credit(count=0, acked=self._done, waited=self._waited()))
        self._done = []
        if self._requests is not None and not self._replies.is_active():
            try:
                self._reopen(time.monotonic() + _FINISH_S)
            except SamplerError as error:
                log.info("finishing epoch %d: %s", self._epoch, error)
            self._broken_since = None  # it is no wait of the epoch that comes next

    def close(self, *, returns: bool = False) -> None:
        """End the stream, and give the rank back unless its trainer `returns`: then what it has waits as long as its
        lease, and behind the end of an epoch at least until another begins. Never raises: there is nobody left to wait
        for."""
        self._closed.set()
        if self._requests is not None:
            if returns and self._ended:
                self._requests.send(pause=pb.Pause())
            self._end(self._requests)
            self._requests = None
        if returns:
            return
        try:
            self._client.leave(self.session)
        except SamplerError as error:
            log.info("leaving: %s", error)

    def _end(self, requests: _Requests) -> None:
        """Let the service read what is done, lest it give it to another; then end the stream."""
        requests.close()
        late = threading.Timer(_DRAIN_S, self._replies.cancel)
        late.start()
        try:
            for _ in self._replies:
                pass
        except grpc.RpcError as error:
            log.info("ending the batch stream: %s", from_rpc(error, "close", self._client.address))
        finally:
            late.cancel()

    # --- the stream -------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._requests = _Requests()
        hello = pb.Hello(
            session=self.session, last_batch_id=self._last_batch_id, held=list(self._held), records=self._records
        )
        self._requests.send(hello=hello)
        self._replies = pb_grpc.BatchesStub(self._client.channel()).Stream(iter(self._requests))
        if self._watchdog is None:
            self._watchdog = threading.Thread(target=self._watch, name="sampler-deadline", daemon=True)
            self._watchdog.start()

    def _reopen(self, until: float) -> None:
        """Try until then to open a stream that broke; its hello says what is done, by not naming it as held."""
        while not self._replies.is_active() and time.monotonic() < until:
            try:
                self._receive()
            except (grpc.RpcError, _Ended) as error:
                if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.NOT_FOUND:
                    return  # a service that was restarted knows no leases
                self._recover(error, resume=False)
            settled = time.monotonic() + _SETTLE_S
            while self._replies.is_active() and time.monotonic() < settled:
                time.sleep(0.01)

    def _begin(self) -> pb.EpochStart:
        """Ask for the epoch and wait for its start; batches of an epoch that was left early are passed over."""
        assert self._requests is not None
        self._requests.send(epoch=self._start_request())
        self._requests.send(credit=pb.Credit(count=self._lead - len(self._held)))  # saves the way there and back
        while True:
            reply = self._receive()
            if reply.WhichOneof("reply") == "epoch_start" and reply.epoch_start.epoch == self._epoch:
                self._population = reply.epoch_start.population
                return reply.epoch_start
            if reply.WhichOneof("reply") == "block":
                self._last_batch_id = max(b.batch_id for b in reply.block.batch)

    def _waited(self) -> float:
        """Seconds that the loop waited for batches since it was asked last."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def _start_request(self) -> pb.StartEpoch:
        return pb.StartEpoch(
            epoch=self._epoch,
            skip_examples=self._skip,
            first_step=self._received * self._workers,
            progress=self._begun_at,
            population=self._population,
        )

    def _receive(self) -> pb.BatchReply:
        self._waiting_since = began = time.monotonic()
        try:
            reply = next(self._replies)
            if reply.record_schema:  # comes with every stream, also with one that then fails as the one before
                self.record_schema = reply.record_schema
            else:
                self._broken_since = None
            return reply
        except StopIteration:
            raise _Ended from None
        finally:
            self._waiting_since = None
            self._waited_s += time.monotonic() - began

    def _watch(self) -> None:
        """Cancel a wait that is over its deadline; a blocking read of grpc has none of its own."""
        limit_s = self._client.timeouts.batch_s
        while not self._closed.wait(min(1.0, limit_s / 4)):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > limit_s:
                self._timed_out = True
                self._replies.cancel()

    def _recover(self, error: grpc.RpcError | _Ended, *, resume: bool) -> None:
        """Open a broken stream again, after a pause, or raise what the service answered.

        Args:
            resume: whether an epoch is under way that has to go on.
        """
        if self._requests is not None:
            self._requests.close()  # grpc's thread that reads them would wait for ever
            self._requests = None
        what, address, timeouts = f"batches of epoch {self._epoch}", self._client.address, self._client.timeouts
        if self._timed_out:
            self._timed_out = False
            raise ReplyTimeout(
                f"{what}: no batch from {address} within {timeouts.batch_s:g} s; "
                "its log says which part is slow, Timeouts(batch_s=…) allows more"
            ) from None
        code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNAVAILABLE
        if isinstance(error, grpc.RpcError) and code is not grpc.StatusCode.NOT_FOUND and code not in _BROKEN:
            raise from_rpc(error, what, address) from None
        if self._broken_since is None:
            self._broken_since = time.monotonic()
            log.warning("%s: the stream from %s broke (%s), reconnecting", what, address, code.name)
        # NOT_FOUND: the service restarted and has forgotten the session.
        forgotten = code is grpc.StatusCode.NOT_FOUND
        self._await_service(what, self._broken_since, join=forgotten)
        if forgotten:
            self._last_batch_id, self._done = 0, []  # of the session that is no more
        self._open()
        assert self._requests is not None
        if resume:
            if forgotten:  # its `epoch_start` is met by `next`
                self._requests.send(epoch=self._start_request())
            self._requests.send(credit=pb.Credit(count=self._lead - len(self._held)))
            self._done = []

    def _await_service(self, what: str, since: float, *, join: bool) -> None:
        """Pause before another attempt, and with `join` claim the rank anew, until the time for it is over."""
        limit_s = self._client.timeouts.reconnect_s
        refused: Conflict | None = None
        while True:
            away_s = time.monotonic() - since
            if away_s > limit_s:
                self._broken_since = None
                if refused is not None:
                    raise refused
                raise ServiceUnavailable(
                    f"{what}: {self._client.address} was away for {away_s:.0f} s; start it again with "
                    "`sampler-service up`, or allow more with Timeouts(reconnect_s=…)"
                ) from None
            time.sleep(min(2.0, 0.05 + away_s / 4, limit_s - away_s))
            if not join:
                return
            try:
                self.session = self._join()
                return
            except Conflict as again:  # an attempt whose answer was lost may have claimed the rank
                refused = again
            except (ServiceUnavailable, ReplyTimeout, Busy) as again:
                log.info("still away: %s", again)
