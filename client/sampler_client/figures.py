"""What a run's sampling looks like, written where the training's own curves are: TensorBoard, W&B, or anywhere.

    logger = FigureLogger(loader, TensorBoardWriter("runs/x"))
    for (x, y), batch in loader:
        ...
        logger.step()
    logger.close()

A background thread asks the service and writes. Nothing that goes wrong there reaches the training loop.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sampler_client.config import check_within

if TYPE_CHECKING:
    from sampler_client._pb import sampler_pb2 as pb
    from sampler_client.epochs import EpochReader, Source

log = logging.getLogger(__name__)

PREFIX = "sampler/"

_PLAIN = (
    *("variance_ratio", "stage_ratio", "trained_ratio", "stage_cost", "effective_sample_ratio", "progress"),
    *("epoch_coverage", "window_coverage", "sketch_coverage", "never_drawn"),
    *("median_age_steps", "p99_age_steps", "median_lead", "p99_lead"),
    *("median_rates_age_steps", "p99_rates_age_steps"),
    *("epoch", "trainers", "num_clusters", "candidates", "leases_expired", "shards_away", "scorers"),
)
"""figures that are written as the statistics have them; ratios are 0 to 1 unless the proto says otherwise"""


class Writer(Protocol):
    """Where figures go. Called from one thread, never by two at once; what it raises is logged and counted."""

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """Take figures by name, all of them finite, as of an optimiser step."""
        ...

    def close(self) -> None:
        """Nothing more comes: keep what was written."""
        ...


class _Sampler(Protocol):
    @property
    def source(self) -> Source: ...

    @property
    def reader(self) -> EpochReader: ...


class Loader(Protocol):
    """What `attach` returns, as far as it matters here."""

    @property
    def sampler(self) -> _Sampler: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureCounts:
    """What became of the figures so far."""

    written: int = 0
    """times that the writer took some"""
    unanswered: int = 0
    """times that the service did not say where the run stands"""
    failed: int = 0
    """times that the writer failed"""


class FigureLogger:
    """Writes a run's figures now and then, beside the training loop.

    Names begin with "sampler/" and are those of the statistics: "sampler/variance_ratio",
    "sampler/effective_sample_ratio", "sampler/epoch_coverage", "sampler/median_age_steps" and so on. Besides, over the
    time since the figures before: "sampler/examples_per_s" and "sampler/reported_rows_per_s" of the whole run,
    "sampler/wait_share", the share of their time that trainers waited for batches, "sampler/rejected_share" of the
    reported rows, "sampler/policy/NAME", the share of the batches that a policy planned; and
    "sampler/dropped_reports", those that this trainer could not send. What is not known yet is left out.

    With several ranks one logger is enough, on rank 0: but for the dropped reports the figures are of the whole run.

    Args:
        loader: what `attach` returned.
        writer: takes the figures; closed with the logger.
        every_s: seconds between two looks at the service, at least.

    Raises:
        ConfigError: `every_s` is not positive.

    Example:
        with FigureLogger(loader, WandbWriter(wandb.init(project="digits"))) as logger:
            for (x, y), batch in loader:
                ...
                logger.step()
    """

    def __init__(self, loader: Loader, writer: Writer, *, every_s: float = 30.0) -> None:
        check_within("every_s, in seconds,", every_s, "(0, inf]")
        self._source = loader.sampler.source
        self._reader = loader.sampler.reader
        self._writer = writer
        self._every_s = every_s
        self._due = -math.inf
        self._step = 0
        self._written_step = -1
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._before: tuple[pb.GetStatisticsResponse, float] | None = None
        self._written = self._unanswered = self._failed = 0
        self._trouble: dict[str, int] = {}  # what goes wrong now, and how often it has since it went well

    def step(self, step: int | None = None) -> None:
        """Say that a step was made; figures are asked for if it is time. Returns at once and never raises.

        Args:
            step: optimiser steps so far, where the figures belong; default: those of the run up to the batch in the
                loop's hands.
        """
        self._step = self._reader.next_step if step is None else step
        now = time.monotonic()
        if now < self._due or self._closed:
            return
        self._due = now + self._every_s
        if self._thread is None:
            self._attempt("starting the thread that asks for figures", self._start)
        self._wake.set()

    def counts(self) -> FigureCounts:
        """What became of the figures so far."""
        return FigureCounts(written=self._written, unanswered=self._unanswered, failed=self._failed)

    def close(self, timeout_s: float = 10.0) -> None:
        """Write the last figures, as far as `timeout_s` allows, and close the writer. Never raises; logs what it lost.

        It may be called before or after the loader is closed, and a second time.
        """
        if self._closed:
            return
        self._closed = True
        if self._thread is None:  # no step was made: there is nothing to write
            self._attempt("closing the writer of figures", self._writer.close)
            return
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            log.warning("the last figures were not written within %g s; the writer is left open", timeout_s)

    def __enter__(self) -> FigureLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="sampler-figures", daemon=True)
        thread.start()
        self._thread = thread

    # --- in the thread ---

    def _run(self) -> None:
        last = False
        while not last:
            self._wake.wait()
            self._wake.clear()
            last = self._closed  # read before the look, so that one follows whatever came before closing
            if not last or self._step != self._written_step:
                self._look()
        self._attempt("closing the writer of figures", self._writer.close)

    def _look(self) -> None:
        """Ask and write once."""
        step, now = self._step, time.monotonic()
        said = self._attempt("asking for figures", self._source.statistics)
        if said is None:
            self._unanswered += 1
            return
        figures = figures_of(said, now, self._before)
        figures[PREFIX + "dropped_reports"] = float(self._source.report_counts().dropped)
        self._before = said, now
        if self._attempt("writing figures", lambda: self._writer.write(figures, step) or True):
            self._written, self._written_step = self._written + 1, step
        else:
            self._failed += 1

    def _attempt(self, what: str, act: Callable[[], Any]) -> Any:
        """What `act` returns, or None when it fails: told once, until it has gone well again."""
        try:
            result = act()
        except Exception as error:  # the thread, and the training, must outlive whatever comes
            if what not in self._trouble:
                log.warning("%s: %s: %s; training goes on", what, type(error).__name__, error)
            self._trouble[what] = self._trouble.get(what, 0) + 1
            return None
        if times := self._trouble.pop(what, 0):
            log.info("%s: it works again, after %d times that it did not", what, times)
        return result


class WandbWriter:
    """Writes to a run of Weights & Biases, or to anything with its `log`.

    Figures get an x axis of their own, "sampler/step": W&B takes only the present step and the next, and training may
    be past the figures' when they come. The trainer's own steps stay as they are.

    Args:
        run: what `wandb.init` returned. It stays open when the writer is closed: the trainer finishes it.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        if hasattr(run, "define_metric"):
            run.define_metric(PREFIX + "*", step_metric=PREFIX + "step")

    def write(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log({**figures, PREFIX + "step": step})

    def close(self) -> None: ...


def figures_of(
    said: pb.GetStatisticsResponse, now: float, before: tuple[pb.GetStatisticsResponse, float] | None
) -> dict[str, float]:
    """What is known of the figures, by name.

    Args:
        said: what the service says now.
        now: seconds on any clock.
        before: what it said the last time, and when.
    """
    figures = {name: float(getattr(said, name)) for name in _PLAIN}
    if before is not None and said.batches >= before[0].batches:  # else the run was begun anew meanwhile
        figures |= _since(said, *before, now)
    return {PREFIX + name: value for name, value in figures.items() if math.isfinite(value)}


def _since(said: pb.GetStatisticsResponse, was: pb.GetStatisticsResponse, at: float, now: float) -> dict[str, float]:
    """Figures of the time between two looks; NaN where nothing happened."""
    seconds = now - at
    rejected = sum(said.rejected_rows.values()) - sum(was.rejected_rows.values())
    accepted = said.reported_rows - was.reported_rows
    waited = _share(said.waited_seconds - was.waited_seconds, seconds * max(1, said.trainers))
    batches = said.batches - was.batches
    return {
        "examples_per_s": _share(said.examples - was.examples, seconds),
        "reported_rows_per_s": _share(accepted, seconds),
        "rejected_share": _share(rejected, rejected + accepted),
        # What a trainer waited is told with its next request, so a long wait may come late, and all at once.
        "wait_share": min(1.0, max(0.0, waited)),
        **{
            f"policy/{name}": _share(count - was.batches_by_policy.get(name, 0), batches)
            for name, count in said.batches_by_policy.items()
        },
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
