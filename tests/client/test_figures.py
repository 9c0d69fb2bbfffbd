"""Figures of a run beside its training's curves: what is written is true, and nothing that fails there is felt."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace

import pytest
import torch.utils.tensorboard  # noqa: F401 - a second of imports, in no test's time
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sampler_client as sampler
from sampler_client._pb import sampler_pb2 as pb
from sampler_client.config import Timeouts
from sampler_client.figures import figures_of
from sampler_client.testing import fake_attach
from sampler_service.service import InProcessService
from tests.client.conftest import QUICK, STEPS
from tests.web.conftest import Trainer

SOON = 0.001
"""seconds between looks, for tests in which every step is one"""

NEVER = 1e6


class Notes:
    """A writer that remembers, and fails while it is told to."""

    def __init__(self) -> None:
        self.written: list[tuple[dict[str, float], int]] = []
        self.closed = 0
        self.broken = False

    def write(self, figures: Mapping[str, float], step: int) -> None:
        if self.broken:
            raise OSError(28, "No space left on device")
        self.written.append((dict(figures), step))

    def close(self) -> None:
        self.closed += 1


class Hushed(InProcessService):
    """Says nothing of its runs until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def statistics(self, run, *, detail=False):
        self.released.wait(30)
        return super().statistics(run, detail=detail)


@pytest.fixture
def attached(plain_loader, served) -> Iterator[sampler.SampledLoader]:
    with sampler.attach(plain_loader(), served.address, run="r", policy="shuffle", timeouts=QUICK) as loader:
        yield loader


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == 0


def threads() -> int:
    return sum(thread.name == "sampler-figures" for thread in threading.enumerate())


def until(true: Callable[[], bool], limit_s: float = 15.0) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def train(loader, logger, epochs: int = 1) -> None:
    for _ in range(epochs):
        for (ids,), batch in loader:
            batch.report(ids.double())
            logger.step()
    loader.flush()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- what is written ---


def test_tensorboard_reads_back_what_the_service_says(attached, served, tmp_path):
    logger = sampler.FigureLogger(attached, sampler.TensorBoardWriter(tmp_path / "run"), every_s=SOON)
    train(attached, logger, epochs=2)
    until(lambda: logger.counts().written >= 1)
    logger.step(2 * STEPS + 1)
    logger.close()
    said = served.service.statistics("r")
    read = EventAccumulator(str(tmp_path / "run"))
    read.Reload()
    last = {tag: read.Scalars(tag)[-1] for tag in read.Tags()["scalars"]}
    assert last["sampler/epoch"].step == 2 * STEPS + 1
    values = {tag.removeprefix("sampler/"): event.value for tag, event in last.items()}
    assert (values["epoch"], values["trainers"], values["never_drawn"]) == (1, 1, 0)
    assert values["epoch_coverage"] == said.epoch_coverage == 1
    assert values["window_coverage"] == pytest.approx(said.window_coverage)
    assert values["median_age_steps"] == said.median_age_steps
    assert values["policy/shuffle"] == 1
    assert values["dropped_reports"] == 0
    assert 0 <= values["wait_share"] <= 1
    assert "variance_ratio" not in values, "a sweep has none"
    assert all(math.isfinite(value) for value in values.values())
    steps = [event.step for event in read.Scalars("sampler/epoch")]
    assert steps == sorted(steps)
    assert len(steps) == logger.counts().written


def test_a_policy_that_draws_has_a_variance_ratio(served):
    trainer = Trainer(served.address, num_examples=1000)
    for number in range(2):
        trainer.epoch(number)
    trainer.epoch(2, steps=62)
    notes, reader = Notes(), SimpleNamespace(next_step=trainer.step)
    loader = SimpleNamespace(sampler=SimpleNamespace(source=trainer.session, reader=reader))
    with sampler.FigureLogger(loader, notes) as logger:
        logger.step()
    said = served.service.statistics("seen")
    ((figures, step),) = notes.written
    assert figures["sampler/variance_ratio"] == said.variance_ratio
    assert figures["sampler/effective_sample_ratio"] == said.effective_sample_ratio
    assert (figures["sampler/num_clusters"], step) == (4, 312)
    trainer.session.close()


def test_rates_and_shares_are_of_the_time_between_two_looks():
    was = said_of(batches=10, examples=100, reported_rows=50, waited_seconds=3.0, batches_by_policy={"shuffle": 10})
    now = said_of(
        batches=50,
        examples=500,
        reported_rows=140,
        rejected_rows={"nan": 10},
        waited_seconds=7.0,
        trainers=2,
        batches_by_policy={"shuffle": 20, "importance": 30},
    )
    figures = figures_of(now, 30.0, (was, 10.0))
    assert figures["sampler/examples_per_s"] == 20
    assert figures["sampler/reported_rows_per_s"] == 4.5
    assert figures["sampler/wait_share"] == pytest.approx(0.1)
    assert figures["sampler/rejected_share"] == pytest.approx(0.1)
    assert figures["sampler/policy/shuffle"] == 0.25
    assert figures["sampler/policy/importance"] == 0.75


def test_what_is_not_known_is_left_out():
    first = figures_of(said_of(variance_ratio=math.nan, progress=math.inf, sketch_coverage=0.5), 1.0, None)
    assert first["sampler/sketch_coverage"] == 0.5
    assert not {"sampler/variance_ratio", "sampler/progress", "sampler/examples_per_s"} & first.keys()
    idle = figures_of(said_of(batches=3), 2.0, (said_of(batches=3), 1.0))
    assert idle["sampler/examples_per_s"] == 0
    assert "sampler/rejected_share" not in idle


def test_a_run_that_was_begun_anew_has_no_rates_until_the_look_after():
    assert "sampler/examples_per_s" not in figures_of(said_of(batches=1), 2.0, (said_of(batches=100), 1.0))


def said_of(**values) -> pb.GetStatisticsResponse:
    return pb.GetStatisticsResponse(**values)


def test_wandb_gets_the_figures_with_an_axis_of_their_own(attached):
    logged, defined = [], []

    class Run:
        def define_metric(self, name, step_metric):
            defined.append((name, step_metric))

        def log(self, figures):
            logged.append(figures)

    with sampler.FigureLogger(attached, sampler.WandbWriter(Run()), every_s=NEVER) as logger:
        logger.step(1)
        until(lambda: len(logged) == 1)
        logger.step(7)
    assert defined == [("sampler/*", "sampler/step")]
    assert [figures["sampler/step"] for figures in logged] == [1, 7]
    assert all("sampler/epoch_coverage" in figures for figures in logged)


def test_anything_that_logs_will_do_for_wandb():
    logged = []
    sampler.WandbWriter(SimpleNamespace(log=logged.append)).write({"sampler/epoch": 2.0}, 5)
    assert logged == [{"sampler/epoch": 2.0, "sampler/step": 5}]


def test_a_loop_over_a_fake_session_may_have_a_logger(plain_loader):
    loader, notes = fake_attach(plain_loader()), Notes()
    with sampler.FigureLogger(loader, notes, every_s=SOON) as logger:
        train(loader, logger)
        until(lambda: bool(notes.written))
    assert logger.counts().unanswered == 0
    assert "sampler/variance_ratio" not in notes.written[-1][0]


# --- when ---


def test_the_service_is_asked_at_the_first_step_then_no_oftener_than_said_and_at_the_end(attached):
    notes = Notes()
    logger = sampler.FigureLogger(attached, notes, every_s=NEVER)
    assert threads() == 0, "before the first step there is no thread"
    logger.step(1)
    until(lambda: len(notes.written) == 1)
    for step in range(2, 50):
        logger.step(step)
    logger.close()
    assert [step for _, step in notes.written] == [1, 49]
    assert (logger.counts().written, notes.closed) == (2, 1)


def test_steps_are_those_of_the_run_unless_the_trainer_counts_otherwise(attached):
    notes = Notes()
    logger = sampler.FigureLogger(attached, notes, every_s=NEVER)
    train(attached, logger)
    logger.close()
    assert notes.written[-1][1] == STEPS


def test_the_last_figures_are_written_also_when_the_loader_was_closed_first(attached, served):
    notes = Notes()
    logger = sampler.FigureLogger(attached, notes, every_s=NEVER)
    train(attached, logger)
    attached.close()
    logger.close()
    figures, step = notes.written[-1]
    assert (step, figures["sampler/trainers"], figures["sampler/epoch_coverage"]) == (STEPS, 0, 1)


def test_closing_twice_or_without_a_step_is_no_harm_and_a_step_after_it_does_nothing(attached):
    notes = Notes()
    logger = sampler.FigureLogger(attached, notes)
    logger.close()
    logger.close()
    logger.step()
    assert (notes.written, notes.closed, threads()) == ([], 1, 0)


# --- what fails ---


def test_a_service_that_is_away_is_told_once_and_counted_and_found_again(attached, served, caplog):
    caplog.set_level(logging.INFO, "sampler_client.figures")
    notes = Notes()
    logger = sampler.FigureLogger(attached, notes, every_s=SOON)
    train(attached, logger)
    until(lambda: bool(notes.written))
    served.stop()
    before = len(notes.written)
    for count in (1, 2):
        until(lambda count=count: logger.step() or logger.counts().unanswered >= count)
    (told,) = warnings_of(caplog)
    assert "asking for figures: ServiceUnavailable" in told
    assert told.endswith("training goes on")
    served.start()
    until(lambda: logger.step() or len(notes.written) > before)
    logger.close()
    assert len(warnings_of(caplog)) == 1
    assert any("works again" in record.getMessage() for record in caplog.records)


def test_a_service_that_says_nothing_delays_no_step_and_no_end(plain_loader, served, caplog):
    served.stop()
    service = Hushed()
    served.start(service)
    timeouts = Timeouts(call_s=0.5, batch_s=5, report_s=5, reconnect_s=5)
    notes = Notes()
    with sampler.attach(plain_loader(), served.address, run="r", policy="shuffle", timeouts=timeouts) as loader:
        logger = sampler.FigureLogger(loader, notes, every_s=SOON)
        slowest_s = 0.0
        for _ in loader:
            began = time.perf_counter()
            logger.step()
            slowest_s = max(slowest_s, time.perf_counter() - began)
        assert slowest_s < 0.25
        began = time.monotonic()
        logger.close()
        assert time.monotonic() - began < 5
        service.released.set()
    assert (notes.written, notes.closed) == ([], 1)
    assert logger.counts().unanswered >= 1
    assert [told for told in warnings_of(caplog) if "asking for figures: ReplyTimeout" in told]


def test_a_writer_that_hangs_is_left_behind_after_the_time_given(attached, caplog):
    released = threading.Event()
    notes = Notes()
    notes.write = lambda *_: released.wait(30)
    logger = sampler.FigureLogger(attached, notes)
    logger.step()
    began = time.monotonic()
    logger.close(timeout_s=0.2)
    assert time.monotonic() - began < 2
    assert "not written within 0.2 s" in warnings_of(caplog)[0]
    released.set()
    until(lambda: threads() == 0)


def test_a_writer_that_fails_is_told_once_and_counted_and_tried_again(attached, caplog):
    notes = Notes()
    notes.broken = True
    logger = sampler.FigureLogger(attached, notes, every_s=SOON)
    until(lambda: logger.step() or logger.counts().failed >= 3)
    (told,) = warnings_of(caplog)
    assert "writing figures: OSError" in told
    assert "No space left" in told
    notes.broken = False
    until(lambda: logger.step() or bool(notes.written))
    logger.close()
    assert logger.counts().written == len(notes.written)


def test_a_thread_that_can_not_be_started_is_no_end_of_training(attached, monkeypatch, caplog):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    logger = sampler.FigureLogger(attached, Notes())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        logger.step()
    assert "can't start new thread" in warnings_of(caplog)[0]
    logger.close()


@pytest.mark.parametrize("every_s", [0, -1.0, math.nan])
def test_a_pause_that_is_none_is_refused(attached, every_s):
    with pytest.raises(sampler.ConfigError, match="every_s, in seconds, must be positive, got"):
        sampler.FigureLogger(attached, Notes(), every_s=every_s)


def test_tensorboard_that_is_not_installed_is_said_with_what_installs_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(sampler.ConfigError, match=r"pip install 'gradient-sampler\[tensorboard\]'"):
        sampler.TensorBoardWriter(tmp_path)


TRAINER = """
import sys
import torch
from torch.utils.data import DataLoader, TensorDataset
import sampler_client as sampler

plain = DataLoader(TensorDataset(torch.arange(50)), batch_size=8)
loader = sampler.attach(plain, sys.argv[1], run="r", policy="shuffle")
logger = sampler.FigureLogger(loader, sampler.TensorBoardWriter(sys.argv[2]), every_s=0.001)
for _ in loader:
    logger.step()
print("last line", flush=True)
"""


def test_a_trainer_that_closes_no_logger_ends_within_5_seconds(served, tmp_path):
    words = [sys.executable, "-c", TRAINER, served.address, tmp_path]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        assert trainer.stderr is not None
        assert trainer.stdout.readline() == "last line\n"
        began = time.monotonic()
        assert trainer.wait(timeout=30) == 0
        assert time.monotonic() - began < 5
        assert trainer.stderr.read() == ""
