"""The batch stream: reads a trainer's requests in one thread and answers them in another."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import grpc

from sampler_client._pb import sampler_pb2 as pb
from sampler_service.errors import Busy, ConfigError, SamplerError, Unavailable
from sampler_service.leases import run_of
from sampler_service.replies import Taken
from sampler_service.rpc.ahead import read_ahead
from sampler_service.rpc.blocks import encode_batches, encode_reply
from sampler_service.rpc.records import FollowedRecords, Records
from sampler_service.rpc.status import errors_as_status
from sampler_service.service import Service
from sampler_service.types import Batch

log = logging.getLogger(__name__)

WAIT_S = 0.1
"""pause before asking again for batches that another trainer may give back"""

HELLO_S = 10.0
"""within which a stream must say whose it is"""

RENEW_S = 3.0
"""of silence, after which the run is told that the trainer is there; some times in `leases.SILENT_S`"""

SPARE_STREAMS = 16
"""open beside those of the trainers: they have not said hello yet, or were displaced and are about to end"""

FIRST, MOST = 8, 64
"""batches with records that are taken from the run at a time: few when an epoch begins, as the trainer waits for them;
then ever more, since others are taken while these are read and sent, and a call costs as much as ten batches"""

Inbox = queue.SimpleQueue[pb.BatchRequest | None]


class _Stream:
    """An open stream of a session. One that is opened later displaces it: a broken connection can go unnoticed here
    for long, and what it still took from the run would be lent to nobody."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self.context = context
        self.taking = threading.Lock()
        self.displaced = False
        self.paused = False
        """whether that was its trainer's last word"""
        self.heard_at = time.monotonic()
        """when the run last heard of the trainer"""


class BatchesServicer:
    """One Stream call per trainer session."""

    def __init__(self, service: Service, records: Records, message_bytes: int, max_trainers: int) -> None:
        self._service = service
        self._records = records
        self._message_bytes = message_bytes
        self._max_trainers = max_trainers
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._open = 0  # streams, also those that are in nobody's name yet or any more: each holds a thread
        self._draining = threading.Event()
        threading.Thread(target=self._renew_all, name="renew", daemon=True).start()

    def serve(self, server: grpc.Server) -> None:
        """Let a server answer by this; as generated code would, but for replies that are bytes already."""
        stream = grpc.stream_stream_rpc_method_handler(
            self.Stream, request_deserializer=pb.BatchRequest.FromString, response_serializer=encode_reply
        )
        name = pb.DESCRIPTOR.services_by_name["Batches"].full_name
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Stream": stream}),))

    def drain(self) -> None:
        """End every stream after the batches it is sending."""
        self._draining.set()

    def Stream(  # noqa: N802
        self, request_iterator: Iterator[pb.BatchRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.BatchReply | bytes]:
        with errors_as_status(context), self._place():
            yield from self._serve(request_iterator, context)

    @contextmanager
    def _place(self) -> Iterator[None]:
        with self._lock:
            if self._open >= self._max_trainers + SPARE_STREAMS:
                raise self._full()
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1

    def _full(self) -> Busy:
        return Busy(
            f"all {self._max_trainers} places for trainers are taken; give `sampler-service up` a larger "
            "--max-trainers, or start another gateway on this cluster with --address"
        )

    def _serve(
        self, request_iterator: Iterator[pb.BatchRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.BatchReply | bytes]:
        inbox: Inbox = queue.SimpleQueue()
        threading.Thread(target=_read, args=(request_iterator, inbox), name="batch-requests", daemon=True).start()
        # Also wakes the answering thread when the trainer is gone and will never send again.
        context.add_callback(lambda: inbox.put(None))
        hello = _hello(inbox)
        session = hello.hello.session
        stream = self._displace(session, context)
        try:
            self._service.connect(session, hello.hello.last_batch_id, list(hello.hello.held))
            records = None
            if hello.hello.HasField("records"):
                dataset = self._service.config_of(run_of(session)).dataset
                records = FollowedRecords(self._service, self._records, dataset, hello.hello.records)
                yield pb.BatchReply(record_schema=records.schema_message)
            yield from self._answer(session, stream, inbox, records)
        finally:
            self._disconnect(session, stream)

    def _displace(self, session: str, context: grpc.ServicerContext) -> _Stream:
        with self._lock:
            former, stream = self._streams.get(session), _Stream(context)
            if former is None and len(self._streams) >= self._max_trainers:
                raise self._full()
            self._streams[session] = stream
        if former is not None:
            with former.taking:
                former.displaced = True
            former.context.cancel()  # it may be sending to a trainer that no longer reads: its thread is needed
        return stream

    def _answer(
        self, session: str, stream: _Stream, inbox: Inbox, records: FollowedRecords | None
    ) -> Iterator[pb.BatchReply | bytes]:
        """Turn requests into replies until they end."""
        lent = self._lent(session, stream, inbox, records)
        coming = lent if records is None else read_ahead(lent)
        try:
            for item in coming:
                if isinstance(item, pb.BatchReply):
                    yield item
                else:
                    yield from encode_batches(item, self._message_bytes, records.encode if records else None)
        finally:
            inbox.put(None)  # whatever has ended this, nothing more is to be taken
            coming.close()

    def _lent(
        self, session: str, stream: _Stream, inbox: Inbox, records: FollowedRecords | None
    ) -> Generator[pb.BatchReply | list[Batch]]:
        """Turn credit into batches, and other requests into replies."""
        # A stream that was opened again goes on with its epoch: credit for it comes with no other request.
        credit, epoch, inside, acked, waited_s, at_once = 0, 0, True, [], 0.0, FIRST
        while (request := self._request(stream, inbox, wait=not (credit and inside))) is not None:
            kind = request.WhichOneof("request")
            if records is not None and kind is not None:
                records.follow()
            if kind == "epoch":
                asked = request.epoch
                started = self._service.start_epoch(
                    session, asked.epoch, asked.skip_examples, asked.first_step, asked.progress, asked.population
                )
                credit, epoch, inside, at_once = 0, started.epoch, True, FIRST
                yield pb.BatchReply(epoch_start=pb.EpochStart(**asdict(started)))
            elif kind == "credit":
                credit += request.credit.count
                acked.extend(request.credit.acked)
                waited_s += request.credit.waited
            # Several requests may be waiting: one call to the run serves them all.
            if inbox.empty() and (acked or (inside and credit > 0)):
                count = credit if records is None else min(credit, at_once)
                taken = self._take(session, stream, count if inside else 0, acked, waited_s)
                if taken is None:
                    return
                acked, waited_s, at_once = [], 0.0, min(2 * at_once, MOST)
                credit -= len(taken.batches)
                yield taken.batches
                if taken.ended and inside and credit > 0:
                    yield pb.BatchReply(epoch_end=pb.EpochEnd(epoch=epoch))
                    inside = False
                elif inside and not taken.batches and credit > 0:
                    time.sleep(WAIT_S)
        if acked:  # the last word of a trainer that leaves: what it has done must not go to others
            self._take(session, stream, 0, acked, waited_s)

    def _request(self, stream: _Stream, inbox: Inbox, *, wait: bool) -> pb.BatchRequest | None:
        """The next request, an empty one when there is none (yet), None when the stream shall end."""
        if self._draining.is_set() or stream.displaced:
            return None
        request = _next(inbox, wait=wait)
        stream.paused = stream.paused or (request is not None and request.HasField("pause"))
        return request

    def _take(self, session: str, stream: _Stream, count: int, acked: list[int], waited_s: float) -> Taken | None:
        """Batches for this stream, or None when another has displaced it."""
        with stream.taking:
            if stream.displaced:
                return None
            stream.heard_at = time.monotonic()
            return self._service.take(session, count, acked, waited_s)

    def _renew_all(self) -> None:
        """A sign of life of every trainer whose stream is open, also while it takes in a large batch or none at all;
        from a thread of its own, as the one that answers a stream may wait for the trainer to read."""
        while not self._draining.wait(RENEW_S / 2):
            with self._lock:
                streams = list(self._streams.items())
            for session, stream in streams:
                if stream.context.is_active():
                    self._renew(session, stream)

    def _renew(self, session: str, stream: _Stream) -> None:
        """Tell the run now and then that a silent trainer is there."""
        with stream.taking:
            if stream.displaced or time.monotonic() - stream.heard_at < RENEW_S:
                return
            stream.heard_at = time.monotonic()
            try:
                self._service.renew(session)
            except SamplerError as error:  # the trainer's next request meets it too
                log.debug("renew: %s", error)

    def _disconnect(self, session: str, stream: _Stream) -> None:
        with stream.taking:  # a stream that displaces this one waits, so that it is marked as connected after all
            if not stream.displaced:
                try:
                    self._service.disconnect(session, stream.paused)
                except SamplerError as error:
                    # It left, or its rank was taken over: there is nothing to mark. Or the run is away: it will miss
                    # the trainer's signs of life, and take it for lost a little later.
                    log.debug("disconnect: %s", error)
        with self._lock:
            if self._streams.get(session) is stream:
                del self._streams[session]


def _hello(inbox: Inbox) -> pb.BatchRequest:
    try:
        hello = inbox.get(timeout=HELLO_S)
    except queue.Empty:
        # A trainer that was held up, which may try again, and no mistake of its own.
        raise Unavailable(f"a batch stream must begin with hello; none came within {HELLO_S:g} s") from None
    if hello is None or hello.WhichOneof("request") != "hello":
        raise ConfigError("the first request of a batch stream must be hello")
    return hello


def _read(requests: Iterator[pb.BatchRequest], inbox: Inbox) -> None:
    try:
        for request in requests:
            inbox.put(request)
    except grpc.RpcError:
        pass  # the trainer is gone; what it held waits for its lease
    finally:
        inbox.put(None)


def _next(inbox: Inbox, *, wait: bool) -> pb.BatchRequest | None:
    """The next request, an empty one when there is none (yet), None when there will be none."""
    try:
        request = inbox.get(block=wait, timeout=1.0 if wait else None)
    except queue.Empty:
        return pb.BatchRequest()
    if request is not None and request.WhichOneof("request") == "hello":
        raise ConfigError("a batch stream has one hello; open another stream for another session")
    return request
