"""Epochs over whatever batches come from: which one is next, and what the training loop has received of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from numpy.typing import ArrayLike, NDArray

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.batch import Batch
from sampler_client.config import check_whole
from sampler_client.errors import ConfigError, Stale
from sampler_client.publisher import PublishCounts, Weights
from sampler_client.reporter import PendingReport, ReportCounts, ReportRows

log = logging.getLogger(__name__)

STATE_VERSION = 1


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
        check_whole("epoch", epoch, 0)
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
