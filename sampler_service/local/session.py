"""One trainer's part in a run whose service is in its own process."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from numpy.typing import ArrayLike, NDArray

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient
from sampler_client.config import Timeouts, check_whole
from sampler_client.errors import ConfigError, ReplyTimeout, SamplerError, ScoringError
from sampler_client.publisher import PublishCounts, Weights
from sampler_client.reporter import PendingReport, ReportCounts, ReportRows
from sampler_client.session import MOST_EXAMPLES, check_unit, join_request
from sampler_service.rpc.batches import WAIT_S
from sampler_service.rpc.blocks import encode_batch
from sampler_service.rpc.inprocess import as_client_errors
from sampler_service.service import Service

log = logging.getLogger(__name__)


class LocalSession:
    """A `session.Source` that asks the service itself.

    It has neither threads nor queues: a report is in the table when `put` returns, and examples are scored by weights
    when `publish` does, so the same calls give the same batches. These are asked for when a stream would have sent
    them, up to `lead` at an epoch's start and another for each one done, so that they are planned from what they
    would have been planned from over the wire.

    Args:
        client: asks the service for all but batches.
        service: the same service.
        present: tells it that every trainer of this process is there.
        timeouts: of which `batch_s` bounds the waiting for a batch.
        run: one that is open.

    The others are those of `session.Session`, and `queue` has nothing to hold.
    """

    def __init__(  # noqa: PLR0913 - keyword-only, as of Session
        self,
        client: SamplerClient,
        service: Service,
        present: Callable[[], None],
        *,
        timeouts: Timeouts,
        run: str,
        dataset: str,
        num_examples: int,
        rank: int,
        world_size: int,
        batch_size: int,
        drop_last: bool,
        lead: int,
        bunch: int = 1,
        queue: int = 256,
        progress: Callable[[], float] = lambda: 0.0,
    ) -> None:
        check_whole("queue", queue, 1)
        self.run = run
        self.rank = rank
        self._client = client
        self._service = service
        self._present = present
        self._timeouts = timeouts
        self._lead = lead
        self._bunch = bunch
        self._progress = progress
        self._forget_batches()
        self._reports = ReportCounts()
        self._publishes = PublishCounts()
        self._dataset = dataset
        self._request = join_request(run, rank, world_size, batch_size, drop_last, lead, num_examples)
        joined = client.join(self._request)
        self.session, self.steps_per_epoch = joined.session, joined.steps_per_epoch
        with as_client_errors(f"join run {run!r}"):
            service.connect(self.session, 0, [])

    def _forget_batches(self) -> None:
        self._inbox: deque[pb.Batch] = deque()  # lent, not yet handed out
        self._held: dict[int, None] = {}  # batch_ids handed out and not done, in order
        self._done: list[int] = []  # done, not yet told
        self._credit = 0  # batches that the service may lend now
        self._ended = True

    # --- batches ---

    def start_epoch(self, epoch: int, skip_examples: int, population: str = "", received: int = 0) -> pb.EpochStart:
        """Begin an epoch, at `skip_examples` of its global order; what was left of another epoch is dropped."""
        self._forget_batches()
        self._epoch = epoch
        self._present()
        with as_client_errors(f"start epoch {epoch} of run {self.run!r}"):
            position = epoch, skip_examples, received, self._progress(), population
            started = self._service.start_epoch(self.session, *position)
        if started.reason:
            log.info("run %s, epoch %d: %s", self.run, epoch, started.reason)
        self._credit, self._ended = self._lead, False
        self._ask()
        return pb.EpochStart(**asdict(started))

    def next(self) -> pb.Batch | None:
        """The next batch, or None at the end of the epoch.

        Raises:
            ReplyTimeout: other ranks kept it waiting for longer than Timeouts.batch_s.
        """
        give_up = time.monotonic() + self._timeouts.batch_s
        while not self._inbox and not self._ended:
            self._ask()
            if self._inbox or self._ended:
                break
            if time.monotonic() > give_up:
                raise ReplyTimeout(
                    f"rank {self.rank} of run {self.run!r} got no batch of epoch {self._epoch} within "
                    f"{self._timeouts.batch_s:g} s: it holds all {self._lead} that it may, or waits for what "
                    "another rank holds, which must go on or close its loader; Timeouts(batch_s=…) allows more"
                )
            time.sleep(WAIT_S)
        if not self._inbox:
            return None
        batch = self._inbox.popleft()
        self._held[batch.batch_id] = None
        return batch

    def done(self, batch_id: int) -> None:
        """The loop has finished with a batch: its lease ends and another may be lent."""
        if self._held.pop(batch_id, self) is self:
            return
        self._done.append(batch_id)
        if len(self._done) >= self._bunch:
            self._ask()

    def finish_epoch(self) -> None:
        """Tell the service that everything received of this epoch is done. Never raises."""
        self._done.extend(self._held)
        self._held.clear()
        self._ended = True
        try:
            self._ask()
        except SamplerError as error:
            log.info("finishing epoch %d: %s", self._epoch, error)

    def _ask(self) -> None:
        """Tell what is done, and take the batches that may be held beside those that are."""
        self._present()
        self._credit += len(self._done)
        with as_client_errors(f"batches of epoch {self._epoch} of run {self.run!r}"):
            taken = self._service.take(self.session, 0 if self._ended else self._credit, self._done)
        self._done = []
        self._credit -= len(taken.batches)
        self._ended = self._ended or (taken.ended and self._credit > 0)
        for batch in taken.batches:
            message = pb.Batch()
            encode_batch(batch, message)
            self._inbox.append(message)

    # --- the data set ---

    def grow(self, num_examples: int) -> None:
        """This trainer can load so many examples now; the first to say so grows the data set."""
        check_whole("num_examples", num_examples, self._request.num_examples, MOST_EXAMPLES)
        self._client.grow_dataset(self._dataset, num_examples)
        self._request.num_examples = num_examples
        self._client.join(self._request)

    def delete(self, example_ids: ArrayLike) -> None:
        """Delete examples of the data set, in all its runs."""
        self._client.delete_examples(self._dataset, example_ids)

    # --- reports and weights ---

    def put(self, rows: ReportRows | PendingReport) -> None:
        """Bring a report into the table.

        Raises:
            SamplerError: it could not be taken, or does not fit the run.
        """
        if self._publishes.published:
            check_unit(rows)
        counts = self._reports
        try:
            taken = rows.resolve()
            summary = self._client.send_reports(taken.messages(self.session))
        except ConfigError:
            self._reports = replace(counts, refused=counts.refused + 1)
            raise
        except SamplerError:
            self._reports = replace(counts, dropped=counts.dropped + 1)
            raise
        rejected = dict(counts.rejected)
        for reason, number in summary.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + number
        self._reports = replace(
            counts,
            accepted=counts.accepted + summary.accepted,
            rejected=rejected,
            unusable=counts.unusable + taken.unusable,
        )

    def report_counts(self) -> ReportCounts:
        return self._reports

    def publish(self, snapshot: Callable[[], Weights], step: int) -> None:
        """Have examples scored by these weights, now; of the ranks of a run the first does it for all.

        Raises:
            Stale: the service has no scorers.
            ScoringError: they could not use the weights.
        """
        check_whole("step", step, 0, 2**63 - 1)
        if self.rank != 0:
            return
        counts = self._publishes
        try:
            answer = self._client.publish(self.session, step, snapshot().safetensors())
        except SamplerError:
            self._publishes = replace(counts, failed=counts.failed + 1)
            raise
        self._publishes = replace(
            counts, published=counts.published + 1, version=answer.version, scorers=answer.scorers
        )
        if answer.scorer_error:
            raise ScoringError(f"the scorers of the run report: {answer.scorer_error}")

    def publish_counts(self) -> PublishCounts:
        return self._publishes

    def flush(self, timeout_s: float | None = None) -> None:
        """Nothing is ever under way."""

    def fence(self) -> int:
        return self._client.fence(self.run)

    def set_target(self, sketches: NDArray[Any]) -> int:
        self.fence()
        return self._client.set_target(self.run, sketches)

    def statistics(self) -> pb.GetStatisticsResponse:
        return self._client.statistics(self.run)

    def close(self) -> None:
        """Give the rank back. Never raises, and may be called again."""
        try:
            if self._done:
                self._ended = True
                self._ask()
            self._client.leave(self.session)
        except SamplerError as error:
            log.info("leaving: %s", error)
