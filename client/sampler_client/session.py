"""One trainer's part in a run: joined, with a batch stream, a reporter and a position."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from numpy.typing import ArrayLike, NDArray

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import MOST_EXAMPLE_ID, SamplerClient
from sampler_client.config import RunOptions, Timeouts, check_whole
from sampler_client.errors import ConfigError, Conflict, NotFound, SamplerError
from sampler_client.publisher import PublishCounts, Publisher, Weights
from sampler_client.reporter import PendingReport, ReportCounts, Reporter, ReportRows
from sampler_client.stream import BatchStream

log = logging.getLogger(__name__)

MOST_EXAMPLES = 2**31 - 1
"""that a dataset can have; who can load so many is handed whatever there is"""

ASK_S = 5.0
"""deadline of a question that nobody waits for"""


class Session:
    """The real source: opens the run, claims a rank, opens its stream, and reports.

    Args:
        client: connection to the service; closed with the session.
        run, dataset, options: what to open; opened alike before, it is found again.
        num_examples: that this trainer can load; it is never handed an id that is not below.
        rank, world_size: this trainer among those that share each global batch.
        batch_size: examples per trainer and step.
        drop_last: leave out the last, smaller global batch of an epoch.
        lead: batches that may be held at once.
        bunch: batches done with are told in bunches of so many.
        queue: reports that may wait to be sent.
        progress: tells how far the run is, 0 … 1, when an epoch begins; of runs `by_budget`.
        records: batches come with these records.
        worker, workers: of the streams that share the rank's batches by turns, this one.
        token: who joins with the same one is the same trainer, and displaces the one before; empty: a new one.
    """

    def __init__(  # noqa: PLR0913 - keyword-only, what Open and Join say
        self,
        client: SamplerClient,
        *,
        run: str,
        dataset: str,
        num_examples: int,
        options: RunOptions,
        rank: int,
        world_size: int,
        batch_size: int,
        drop_last: bool,
        lead: int,
        bunch: int = 1,
        queue: int = 256,
        progress: Callable[[], float] = lambda: 0.0,
        records: pb.RecordsRequest | None = None,
        worker: int = 0,
        workers: int = 1,
        token: str = "",
    ) -> None:
        self.client = client
        self.run = run
        self.num_examples = num_examples
        """when it began: what it opens the run with, also a second time"""
        self.steps_per_epoch = 0
        self._dataset = dataset
        self._options = options
        self._session = ""
        try:
            check_whole("queue", queue, 1)
            request = join_request(run, rank, world_size, batch_size, drop_last, lead, num_examples)
            request.worker, request.workers = worker, workers
            request.token = token or request.token
            if records is not None:
                request.num_examples = MOST_EXAMPLES  # whatever the service has it can stream
            self._request = request
            self._stream = BatchStream(
                client, self._join, lead=lead, bunch=bunch, progress=progress, records=records, workers=workers
            )
            self.reporter = Reporter(client, lambda: self._session, self._join, capacity=queue)
            self.publisher = Publisher(client, lambda: self._session, self._join)
        except BaseException:
            client.close()
            raise

    def _join(self) -> str:
        """Open and join, or do so again after the service was restarted; all of it is idempotent.

        Stream and reporter each call it when their session is forgotten, in their own threads and in any order: by
        the token of the request the second one gets the session that the first one made.
        """
        self.client.register_dataset(self._dataset, self.num_examples)
        if MOST_EXAMPLES > self._request.num_examples > self.num_examples:
            with suppress(Conflict):  # it has even more by now
                self.client.grow_dataset(self._dataset, self._request.num_examples)
        self.client.open_run(self.run, self._dataset, self._options, self.num_examples)
        joined = self.client.join(self._request)
        self.steps_per_epoch, self._session = joined.steps_per_epoch, joined.session
        return joined.session

    @property
    def token(self) -> str:
        """Names the trainer to the service; another one after the service was restarted."""
        return self._session

    def start_epoch(self, epoch: int, skip_examples: int, population: str = "", received: int = 0) -> pb.EpochStart:
        started = self._stream.start_epoch(epoch, skip_examples, population, received)
        if started.reason:
            log.info("run %s, epoch %d: %s", self.run, epoch, started.reason)
        return started

    def next(self) -> pb.Batch | None:
        return self._stream.next()

    @property
    def record_schema(self) -> bytes:
        """Of the records that batches come with, an Arrow IPC schema message; empty when they come without."""
        return self._stream.record_schema

    def done(self, batch_id: int) -> None:
        self._stream.done(batch_id)

    def finish_epoch(self, *, received: bool = True) -> None:
        self._stream.finish_epoch(received=received)

    def put(self, rows: ReportRows | PendingReport) -> None:
        if self.publisher.counts().published:
            check_unit(rows)
        self.reporter.put(rows)

    def report_counts(self) -> ReportCounts:
        return self.reporter.counts()

    def publish(self, snapshot: Callable[[], Weights], step: int) -> None:
        """Send weights to the scorers; of the ranks of a run, which have the same ones, the first does it for all.

        From when the service has taken some, sketchers are refused here; it leaves those of other ranks out itself.
        """
        check_whole("step", step, 0, 2**63 - 1)
        if self._request.rank == 0:
            self.publisher.publish(snapshot(), step)

    def publish_counts(self) -> PublishCounts:
        return self.publisher.counts()

    def flush(self, timeout_s: float | None = None) -> None:
        self.reporter.flush(timeout_s)
        self.publisher.flush(timeout_s)

    def fence(self) -> int:
        """Send the reports that wait, then wait until the next batch will be planned from them; the table's version."""
        self.reporter.flush()
        return self._in_run(lambda: self.client.fence(self.run))

    def set_target(self, sketches: NDArray[Any]) -> int:
        """Send the reports that wait, then let all be compared with held-out sketches (m, d); the table's version."""
        self.fence()
        return self._in_run(lambda: self.client.set_target(self.run, sketches))

    def grow(self, num_examples: int) -> None:
        """This trainer can load so many examples now; the first to say so grows the data set."""
        check_whole("num_examples", num_examples, self._request.num_examples, MOST_EXAMPLE_ID)
        self._request.num_examples = num_examples
        self._join()

    def delete(self, example_ids: ArrayLike) -> None:
        """Delete examples of the data set, in all its runs."""
        try:
            self.client.delete_examples(self._dataset, example_ids)
        except NotFound:
            self._join()
            self.client.delete_examples(self._dataset, example_ids)

    def _in_run(self, call: Callable[[], int]) -> int:
        try:
            return call()
        except NotFound:  # the service was restarted, and no report was there to notice
            self._join()
            return call()

    def statistics(self) -> pb.GetStatisticsResponse:
        """Where the run stands; also after `close`, and from any thread.

        Raises:
            SamplerError: the service does not answer, or knows no such run; after ASK_S at the latest.
        """
        limit_s = min(ASK_S, self.client.timeouts.call_s)
        # By a connection of its own: it must not depend on that of the batches, which is closed at any time.
        with SamplerClient(self.client.address, timeouts=Timeouts(call_s=limit_s)) as client:
            return client.statistics(self.run)

    def close(self, *, returns: bool = False) -> None:
        """Send what is queued, and give the rank back unless its trainer `returns`, with the same token."""
        self.reporter.close()
        self.publisher.close()
        self._stream.close(returns=returns)
        if self._session != self._stream.session and not returns:  # the reporter made it, the stream has not come to it
            try:
                self.client.leave(self._session)
            except SamplerError as error:
                log.info("leaving: %s", error)
        self.client.close()


def check_unit(rows: ReportRows | PendingReport) -> None:
    """Raise ConfigError for a sketcher's report in a run whose gradients come from scorers."""
    if isinstance(rows, PendingReport) and rows.sketches is not None:
        raise ConfigError(
            "this loader has published its model, so norms and sketches come from scorers, in another unit than a "
            "sketcher's; leave the sketcher out: batch.report(losses)"
        )


def join_request(
    run: str, rank: int, world_size: int, batch_size: int, drop_last: bool, lead: int, num_examples: int
) -> pb.JoinRequest:
    """What claims a rank, with a token of its own: a repeat of it is known for one."""
    check_whole("batch_size", batch_size, 1)
    for name, value in (("rank", rank), ("world_size", world_size), ("lead", lead)):
        check_whole(name, value, 0)
    if rank >= world_size:
        raise ConfigError(
            f"world_size must be at least 1 and rank from 0 to world_size-1, got rank {rank} of world_size {world_size}"
        )
    return pb.JoinRequest(
        run=run,
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        drop_last=drop_last,
        lead=lead,
        trainer=f"{socket.gethostname()}:{os.getpid()}",
        token=uuid.uuid4().hex,
        num_examples=num_examples,
    )
