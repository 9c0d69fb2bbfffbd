"""One trainer's part in a run: joined, with a batch stream, a reporter and a position."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from numpy.typing import ArrayLike, NDArray

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.batch import Batch
from sampler_client.client import MOST_EXAMPLE_ID, SamplerClient
from sampler_client.config import RunOptions, Timeouts, check_whole
from sampler_client.errors import ConfigError, Conflict, NotFound, SamplerError, Stale
from sampler_client.publisher import PublishCounts, Publisher, Weights
from sampler_client.reporter import PendingReport, ReportCounts, Reporter, ReportRows
from sampler_client.stream import BatchStream

log = logging.getLogger(__name__)

STATE_VERSION = 1

MOST_EXAMPLES = 2**31 - 1
"""that a dataset can have; who can load so many is handed whatever there is"""

ASK_S = 5.0
"""deadline of a question that nobody waits for"""


class Source(Protocol):
    """What batches come from: a Session, one in the service's own process, or `testing.FakeSession`."""

    steps_per_epoch: int

    def start_epoch(self, epoch: int, skip_examples: int, population: str = "", received: int = 0) -> pb.EpochStart: ...

    def next(self) -> pb.Batch | None: ...

    def done(self, batch_id: int) -> None: ...

    def finish_epoch(self) -> None: ...

    def put(self, rows: ReportRows | PendingReport) -> None: ...

    def report_counts(self) -> ReportCounts: ...

    def publish(self, snapshot: Callable[[], Weights], step: int) -> None: ...

    def publish_counts(self) -> PublishCounts: ...

    def flush(self, timeout_s: float | None = None) -> None: ...

    def fence(self) -> int: ...

    def set_target(self, sketches: NDArray[Any]) -> int: ...

    def grow(self, num_examples: int) -> None: ...

    def delete(self, example_ids: ArrayLike) -> None: ...

    def statistics(self) -> pb.GetStatisticsResponse: ...

    def close(self) -> None: ...


class Joinable(Protocol):
    """What takes the place of an address: a service in the trainer's own process."""

    def open_session(
        self, *, dataset: str, num_examples: int, options: RunOptions, timeouts: Timeouts | None, **request: Any
    ) -> Source:
        """A source in a run; `request` is what `Session` takes beside these and its client."""
        ...


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

    def finish_epoch(self) -> None:
        self._stream.finish_epoch()

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


class _Count:
    """Examples of an epoch up to which its steps have come: of each the whole global batch, once."""

    def __init__(self, examples: int = 0) -> None:
        self.examples = examples
        self._next_step = 0

    def add(self, batch: Batch) -> None:
        if batch.step >= self._next_step:
            self.examples += batch.global_batch_size
            self._next_step = batch.step + 1


class EpochReader:
    """Epochs and position over a source: which epoch is next, what the training loop has received of it.

    Handed out and received are told apart, because a DataLoader asks for batches well before the loop gets them;
    `state_dict` counts what the loop received: of each step the whole global batch, once. Steps come in order, so a
    batch counts when its step is beyond all that were received before. What a lost rank left of a step, or of an
    earlier epoch, is handed out at the end and counts no second time.

    Args:
        source: where batches come from.
        run: name of the run, kept in positions.
        num_examples: of the dataset.
        lead: batches that may be unfinished at once.
        record_schema: of the records that batches come with.
    """

    def __init__(
        self,
        source: Source,
        *,
        run: str,
        num_examples: int,
        lead: int,
        record_schema: Callable[[], bytes] = bytes,
    ) -> None:
        self._source = source
        self._run = run
        self._lead = lead
        self._record_schema = record_schema
        self._handed: list[Batch] = []
        self._current: Batch | None = None
        self._next_epoch = 0
        self._next_skip = 0
        self._next_received = 0  # batches of the next pass that came before, from `_next_skip` on
        self._next_population = ""
        # Examples that the epoch began with, and how many, also of the one that a position was restored inside of.
        self._population, self._of = "", num_examples
        self._epoch_steps = 0
        self.epoch = 0
        self._received, self._given = _Count(), _Count()
        self._first_step = 0  # of the epoch; the service counts steps from where the epoch was begun
        self._missing = 0  # batches of the epoch that the loop has not received
        self._over = True
        self._exhausted = False
        self._iteration = 0
        self.num_steps: int | None = None
        """of the epoch under way, when it was begun at its start"""
        self.reason = ""
        self.next_step = 0
        """steps of the run up to the batch that the loop received last, or up to a restored position"""

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the next epoch. It starts when the first is asked for; an iteration under way is then over."""
        self.num_steps = None
        return self._batches()

    def _batches(self) -> Iterator[Batch]:
        self.end_if_complete()
        self._iteration += 1
        iteration = self._iteration
        self._handed, self._current = [], None
        self.epoch, skip, population = self._next_epoch, self._next_skip, self._next_population
        before = self._next_received
        self._next_epoch, self._next_skip, self._next_received, self._next_population = self.epoch + 1, 0, 0, ""
        self._over, self._exhausted = False, False
        self._received, self._given = _Count(skip), _Count(skip)
        started = self._source.start_epoch(self.epoch, min(skip, self._of), population, before)
        self._missing, self.reason = started.num_steps, started.reason
        self.num_steps = None if skip or before else started.num_steps
        self._population, self._of = started.population, started.num_examples or self._of
        self._epoch_steps = max(started.epoch_steps, self._source.steps_per_epoch)
        self._first_step = self._steps(skip, self._epoch_steps)
        while True:
            if iteration != self._iteration:
                raise ConfigError("another iteration of this loader was started; only the newest can go on")
            held = len(self._handed) + (self._current is not None)
            if held >= self._lead:
                raise ConfigError(
                    f"a batch was asked for while {held} are unfinished, all that this trainer may hold: pass "
                    "num_workers and prefetch_factor of the DataLoader, and call received() for every batch"
                )
            message = self._source.next()
            if message is None:
                self._exhausted = True
                return
            first_step = self._first_step if message.epoch == self.epoch else 0
            clock = self._source.steps_per_epoch, first_step, self._epoch_steps
            batch = Batch(message, self._source.put, *clock, record_schema=self._record_schema())
            self._handed.append(batch)
            if batch.epoch == self.epoch:
                self._given.add(batch)
            yield batch

    def received(self) -> Batch:
        """The handle of the batch that the loop got just now; the one before it is finished."""
        self.finished()
        if not self._iteration:
            raise ConfigError(
                "received() was called, but no DataLoader has asked for a batch: the one in use was built without this "
                "sampler, as Ray Train's prepare_data_loader and others do; iterate the DataLoader that has it"
            )
        if not self._handed:
            raise ConfigError("received() was called without a batch: call it once for each batch of the loader")
        self._current = self._handed.pop(0)
        self.next_step = self._current.run_step + 1
        self._missing -= 1
        if self._current.epoch == self.epoch:
            self._received.add(self._current)
        return self._current

    def finished(self) -> None:
        """The loop is done with the batch it got last."""
        if self._current is not None:
            self._source.done(self._current.batch_id)
            self._current = None

    def end_epoch(self) -> None:
        """The loop came to the epoch's end."""
        self.finished()
        self._source.finish_epoch()
        self._over, self._exhausted = True, False

    def end_if_exhausted(self) -> None:
        """End an epoch whose batches the loop has all received, where nobody says that it came to the end."""
        if self._exhausted and not self._handed:
            self.end_epoch()

    def end_if_complete(self) -> None:
        """The same where the loop counted its batches and never asked for one too many; it is done with the last."""
        if not self._over and (self._exhausted or self._missing <= 0) and not self._handed:
            self.end_epoch()

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is. A position restored inside this very epoch is kept."""
        if epoch < 0:
            raise ConfigError(f"epoch must not be negative, got {epoch}")
        if epoch != self._next_epoch:
            self._next_epoch, self._next_skip, self._next_received, self._next_population = epoch, 0, 0, ""

    def state_dict(self, *, given: bool = False) -> dict[str, Any]:
        """JSON-safe position: what the loop received. Restorable with any world size and number of workers.

        With the last batch of an epoch the position is the start of the next.

        Args:
            given: count what was handed out instead, received or not.
        """
        # An epoch of which all was received must not be left to a loop that resumes: it would be an empty pass.
        ended = self._over or self._missing <= (len(self._handed) if given else 0)
        counted = self._given if given else self._received
        epoch, examples = (self._next_epoch, self._next_skip) if ended else (self.epoch, counted.examples)
        state = {"version": STATE_VERSION, "run": self._run, "epoch": epoch, "examples": examples}
        if not examples:  # a whole epoch is begun with what there is by then
            return state
        population = self._next_population if ended else self._population
        return {**state, "population": population, "num_examples": self._of}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position; takes effect at the next iteration.

        Raises:
            Stale: the state is of another run or of a newer client.
        """
        if state.get("version") != STATE_VERSION:
            raise Stale(
                f"the saved position has version {state.get('version')!r}, this client reads {STATE_VERSION}; "
                "use the release that saved it"
            )
        if state["run"] != self._run:
            raise Stale(f"the saved position is of run {state['run']!r}, this loader is attached to {self._run!r}")
        self._next_epoch, self._next_skip = int(state["epoch"]), int(state["examples"])
        self._next_received = int(state.get("received", 0))
        self._next_population, self._of = state.get("population", ""), int(state.get("num_examples", self._of))
        self._over = True
        steps = self._source.steps_per_epoch
        self.next_step = self._next_epoch * steps + self._steps(self._next_skip, steps)
        log.info("run %s resumes at epoch %d, example %d", self._run, self._next_epoch, self._next_skip)

    @property
    def population(self) -> tuple[str, int]:
        """Name of the examples that the present epoch began with, and how many they are."""
        return self._population, self._of

    def _steps(self, examples: int, epoch_steps: int) -> int:
        """Steps of an epoch of so many that deliver so many examples."""
        return round(min(1.0, examples / self._of) * epoch_steps)
