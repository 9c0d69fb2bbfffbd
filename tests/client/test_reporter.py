"""The reporter never holds up a step, never loses a report without counting it, and never has one applied twice."""

from __future__ import annotations

import logging
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

import sampler_client as sampler
from sampler_client import wire
from sampler_client._pb import sampler_pb2 as pb
from sampler_client.reporter import PendingReport, ReportCounts, Reporter, ReportRows
from sampler_client.session import Session
from sampler_service.errors import Stale
from sampler_service.service import InProcessService
from tests.client.conftest import BATCH, QUICK, STEPS, N

D = 8


class Watched(InProcessService):
    """Keeps the losses it is given, and takes reports only while `open` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.called = threading.Event()
        self.applied: list[int] = []
        self.fail_after = False

    def report(self, session, reports):
        self.called.set()
        self.open.wait(30)
        before = self.statistics("r").reported_rows
        summary = super().report(session, reports)
        if self.statistics("r").reported_rows > before:
            self.applied += [report.batch_id for report in reports]
        return summary


@pytest.fixture
def service(served) -> Watched:
    served.stop()
    service = Watched()
    served.start(service)
    return service


@pytest.fixture
def join(served):
    opened = []

    def make(address: str = "", *, timeouts=QUICK, queue=256) -> Session:
        client = sampler.SamplerClient(address or served.address, timeouts=timeouts)
        options = sampler.RunOptions(policy="shuffle", sketch_dim=D)
        made = Session(
            client,
            run="r",
            dataset="r",
            num_examples=N,
            options=options,
            rank=0,
            world_size=1,
            batch_size=BATCH,
            drop_last=False,
            lead=2,
            queue=queue,
        )
        opened.append(made)
        return made

    yield make
    for each in opened:
        each.close()


def rows(batch_id: int, *, width: int = D, count: int = 3) -> ReportRows:
    ids = (batch_id * count + np.arange(count)) % N
    losses = np.ones(count, np.float32)
    return ReportRows(
        batch_id=batch_id,
        step=batch_id,
        example_ids=ids,
        losses=losses,
        norms=losses,
        sketches=np.ones((count, width), np.float16),
    )


def test_a_flush_returns_when_everything_is_in_the_table(join, service):
    session = join()
    for batch_id in range(1, 21):
        session.put(rows(batch_id))
    session.flush()
    assert service.applied == list(range(1, 21))
    assert session.reporter.accepted == 60


def test_putting_a_report_takes_no_time_while_the_service_hangs(join, service):
    session = join()
    service.open.clear()
    started = time.monotonic()
    for batch_id in range(1, 101):
        session.put(rows(batch_id))
    assert time.monotonic() - started < 0.5
    service.open.set()
    session.flush()
    assert service.applied == list(range(1, 101))


def test_a_full_queue_drops_its_oldest_reports_and_counts_them(join, service):
    session = join(queue=4)
    service.open.clear()
    session.put(rows(1))
    assert service.called.wait(5)  # the first one is under way
    for batch_id in range(2, 11):
        session.put(rows(batch_id))
    assert session.reporter.dropped == 5
    service.open.set()
    session.flush()
    assert service.applied == [1, 7, 8, 9, 10]


def test_a_flush_that_is_late_says_how_many_reports_are_waiting_and_for_whom(join, service, served):
    session = join()
    service.open.clear()
    session.put(rows(1))
    with pytest.raises(sampler.ReplyTimeout, match=rf"1 reports are not with {served.address} after 0\.2 s"):
        session.flush(0.2)
    service.open.set()
    session.flush()


def test_a_fence_says_the_version_of_the_table_that_has_every_report(join, service):
    session = join()
    session.put(rows(1))
    first = session.fence()
    session.put(rows(2))
    assert session.fence() > first
    assert service.statistics("r").reported_rows == 6


def test_a_fence_with_nobody_there_is_an_error_that_names_the_address(join, served):
    session = join(timeouts=sampler.Timeouts(call_s=5, report_s=1))
    served.stop()
    with pytest.raises(sampler.ServiceUnavailable, match=f"fence.*{served.address}"):
        session.fence()


def test_closing_sends_what_is_queued(join, service):
    session = join()
    for batch_id in range(1, 11):
        session.put(rows(batch_id))
    session.close()
    assert service.applied == list(range(1, 11))


def test_closing_with_nobody_there_ends_and_logs_what_was_lost(join, served, caplog):
    session = join(timeouts=sampler.Timeouts(call_s=1, report_s=1))
    served.stop()
    session.put(rows(1))
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        session.reporter.close(timeout_s=0.5)
    assert time.monotonic() - started < 5
    assert "1 reports are not with" in caplog.text


def test_a_report_after_closing_is_an_error(join):
    session = join()
    session.close()
    with pytest.raises(sampler.SamplerError, match=r"report after close\(\)"):
        session.put(rows(1))


@pytest.mark.parametrize("surfaces", ["flush", "put"])
def test_a_refused_report_is_an_error_of_the_next_call_and_the_others_are_applied(join, service, surfaces):
    session = join()
    service.open.clear()
    session.put(rows(1))
    assert service.called.wait(5)
    session.put(rows(2, width=D + 1))
    session.put(rows(3))
    service.open.set()
    with pytest.raises(sampler.ConfigError, match=f"sketches have width {D + 1}.*sketch_dim {D}"):
        if surfaces == "flush":
            session.flush()
        else:
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                session.put(rows(3))
                time.sleep(0.05)
    session.flush()
    session.put(rows(4))
    session.flush()
    assert service.statistics("r").reported_rows == 9
    assert session.reporter.refused == 1


def test_rows_that_were_not_taken_are_counted_by_reason(join, service):
    session = join()
    bad = rows(1)
    bad.losses[1] = np.nan
    session.put(bad)
    session.put(ReportRows(batch_id=2, step=2, example_ids=np.array([0, N + 7]), losses=np.ones(2, np.float32)))
    session.flush()
    assert session.reporter.accepted == 3
    assert session.reporter.rejected == {"nan": 1, "unknown_id": 1}


def test_reports_made_while_the_service_is_away_are_applied_once_when_it_is_back(join, service, proxy):
    session = join(proxy.address)
    proxy.refuse = True
    proxy.cut()
    for batch_id in range(1, 6):
        session.put(rows(batch_id))
    time.sleep(0.3)
    proxy.refuse = False
    session.flush()
    assert sorted(service.applied) == [1, 2, 3, 4, 5]
    assert session.reporter.dropped == 0


def test_a_report_whose_answer_was_lost_is_applied_once(join, service, proxy):
    session = join(proxy.address)
    service.open.clear()
    session.put(rows(1))
    assert service.called.wait(5)
    proxy.cut()  # the service has the report, its answer finds nobody
    service.open.set()
    session.flush()
    assert service.applied == [1]
    assert service.statistics("r").reported_rows == 3


@pytest.mark.parametrize("reports", [0, 2])
def test_a_fence_after_the_last_batch_finds_a_service_that_was_restarted(join, served, reports):
    """No stream is read any more that could notice it, and none may be: the loop waits for the fence."""

    def epoch(number: int) -> int:
        session.start_epoch(number, 0)
        batches = 0
        for batch in iter(session.next, None):
            session.done(batch.batch_id)
            batches += 1
        session.finish_epoch()
        return batches

    session = join()
    epoch(0)
    served.stop()
    served.start(InProcessService())
    for batch_id in range(1, reports + 1):
        session.put(rows(batch_id))
    session.fence()
    assert served.service.statistics("r").reported_rows == 3 * reports
    assert epoch(1) == STEPS  # the stream takes the same rank
    assert served.service.statistics("r").trainers == 1


def test_a_rank_that_only_reports_took_again_is_given_back(join, served):
    session = join()
    served.stop()
    served.start(InProcessService())
    session.put(rows(1))
    session.close()
    assert served.service.statistics("r").reported_rows == 3
    join().start_epoch(0, 0)  # at once: nobody holds the rank


def test_a_report_to_a_run_that_was_closed_is_an_error_that_says_so(join, service):
    session = join()
    service.close_run("r")
    session.put(rows(1))
    with pytest.raises(sampler.Stale, match="run 'r' was closed"):
        session.flush()
    assert session.report_counts() == ReportCounts(dropped=1)


def test_all_reports_of_a_call_by_a_trainer_whose_rank_was_taken_over_are_dropped(join, service, monkeypatch):
    session = join()
    service.open.clear()
    session.put(rows(1))
    assert service.called.wait(5)
    for batch_id in (2, 3):  # these go in one call
        session.put(rows(batch_id))

    def ended(self, session, reports):
        raise Stale("session has ended: its rank was taken over")

    monkeypatch.setattr(InProcessService, "report", ended)
    service.open.set()
    with pytest.raises(sampler.Stale, match="taken over"):
        session.flush()
    session.reporter.close()
    assert session.report_counts() == ReportCounts(dropped=3)


def test_reports_are_given_up_and_counted_when_the_service_stays_away(join, served):
    session = join(timeouts=sampler.Timeouts(call_s=1, report_s=1, reconnect_s=0.3))
    served.stop()
    session.put(rows(1))
    session.flush(5)
    assert session.reporter.dropped == 1


def test_what_can_not_be_encoded_is_an_error_of_the_next_call_and_the_reporter_lives_on(join, service):
    session = join()
    session.put(ReportRows(batch_id=1, step=1, example_ids=np.array(["a", "b"])))  # type: ignore[arg-type]
    with pytest.raises(sampler.SamplerError, match="could not be sent"):
        session.flush()
    session.put(rows(2))
    session.flush()
    assert service.applied == [2]


def test_a_report_larger_than_one_message_allows_goes_in_pieces(monkeypatch):
    monkeypatch.setattr("sampler_client.wire.MAX_REPORT_ROWS", 10)
    pieces = rows(7, count=25).messages("r:x")
    assert [len(piece.example_ids) // 8 for piece in pieces] == [10, 10, 5]
    assert [piece.batch_id for piece in pieces] == [7, 0, 0]  # a second piece with it would be a repeat


def test_reports_travel_in_bundles_of_a_megabyte_and_a_larger_one_alone(monkeypatch):
    monkeypatch.setattr(wire, "BUNDLE_BYTES", 1000)
    sizes = [100, 800, 300, 5000, 10, 10]
    reports = [pb.Report(batch_id=i + 1, losses=bytes(size)) for i, size in enumerate(sizes)]
    bundles = list(wire.bundle_reports(iter(reports)))
    assert [[report.batch_id for report in bundle.reports] for bundle in bundles] == [[1, 2], [3], [4], [5, 6]]
    assert [report for bundle in bundles for report in bundle.reports] == reports
    assert not list(wire.bundle_reports([]))


def test_a_reporter_that_never_reports_starts_no_thread():
    reporter = Reporter(sampler.SamplerClient("localhost:1"), lambda: "r:x", lambda: "r:y")
    reporter.flush()
    reporter.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "sampler-reporter"]


def test_closing_counts_what_was_left_in_the_queue(join, service):
    session = join()
    service.open.clear()
    session.put(rows(1))
    assert service.called.wait(5)
    for batch_id in range(2, 5):
        session.put(rows(batch_id))
    assert session.report_counts().waiting == 4
    session.reporter.close(timeout_s=0.2)
    assert session.report_counts().dropped == 3
    service.open.set()


def test_a_report_made_while_an_earlier_error_surfaces_is_sent(join, service):
    session = join()
    session.put(rows(1, width=D + 1))
    while session.report_counts().waiting:
        time.sleep(0.01)
    with pytest.raises(sampler.ConfigError, match="sketches have width"):
        session.put(rows(2))
    session.flush()
    assert service.applied == [2]


def pending(batch_id: int, losses, sketches=None) -> PendingReport:
    ids = batch_id * 3 + np.arange(3)
    return PendingReport(batch_id=batch_id, step=batch_id, example_ids=ids, losses=losses, sketches=sketches)


def test_rows_that_are_not_usable_are_counted(join, service):
    session = join()
    usable = np.array([True, False, False])
    taken = SimpleNamespace(sketches=np.ones((3, D), np.float16), norms=np.ones(3, np.float32), usable=usable)
    session.put(pending(1, lambda: np.ones(3, np.float32), lambda: taken))
    session.flush()
    counts = session.report_counts()
    assert (counts.accepted, counts.unusable, counts.dropped, counts.waiting) == (1, 2, 0, 0)


def test_a_report_that_is_not_there_yet_holds_nobody_up(join, service):
    session = join()
    there = threading.Event()
    started = time.monotonic()
    session.put(pending(1, lambda: there.wait(5) and np.ones(3, np.float32)))
    assert time.monotonic() - started < 0.5
    there.set()
    session.flush()
    assert service.applied == [1]


def test_a_report_that_fails_in_the_background_is_counted_and_an_error_of_the_next_call(join, service):
    session = join()

    def fail():
        raise RuntimeError("the device is gone")

    service.open.clear()
    session.put(rows(1))
    assert service.called.wait(5)
    session.put(pending(2, fail))
    session.put(rows(3))
    service.open.set()
    with pytest.raises(sampler.SketchError, match=r"report of batch 2 .*RuntimeError: the device is gone"):
        session.flush()
    session.flush()
    assert service.applied == [1, 3]
    assert session.report_counts().dropped == 1


def test_a_loader_says_what_became_of_its_reports(served, plain_loader):
    with sampler.attach(plain_loader(), served.address, run="r", policy="shuffle", sketch_dim=D) as loader:
        for _, batch in loader:
            losses = np.ones(len(batch))
            losses[0] = np.nan if batch.step == 0 else 1
            batch.report(losses)
        loader.flush()
        assert loader.reports == ReportCounts(accepted=N - 1, rejected={"nan": 1})


class NormsAlone:
    """A sketcher whose gradients have these norms."""

    def __init__(self, norms: np.ndarray) -> None:
        self._norms = norms.astype(np.float32)

    def take(self, _coefficients=None) -> SimpleNamespace:
        usable = np.ones(len(self._norms), bool)
        return SimpleNamespace(sketches=np.zeros((len(usable), D), np.float16), norms=self._norms, usable=usable)


def test_after_a_fence_in_the_middle_of_an_epoch_the_next_batch_is_drawn_by_what_was_reported(
    served, plain_loader, monkeypatch
):
    monkeypatch.setattr("sampler_service.rates.RATES_ROWS_PER_STEP", 8)  # without a fence, rates serve for some batches
    norm_n = np.arange(1.0, N + 1)
    ageless = {"gate": 1, "alpha": 0.5, "half_life": 1e6}
    settings = {"policy": "importance", "policy_options": ageless, "sketch_dim": D, "timeouts": QUICK}
    # One batch at a time: the next one is planned after the fence.
    with sampler.attach(plain_loader(), served.address, run="r", ahead=1, **settings) as loader:
        for _ in range(8):
            for _, batch in loader:
                batch.report(np.ones(len(batch)), NormsAlone(norm_n[batch.example_ids]))
        loader.flush()
        assert np.isfinite(served.service._samplers["r"]._table.norm_n).all(), "every example was drawn"
        epoch = iter(loader)
        _, batch = next(epoch)
        norm_n[batch.example_ids] += 1000
        batch.report(np.ones(len(batch)), NormsAlone(norm_n[batch.example_ids]))
        version = loader.fence()
        _, batch = next(epoch)
    assert (batch.policy, batch.lead) == ("importance", 0) and batch.table_version >= version
    expected_n = 0.5 * norm_n / norm_n.sum() + 0.5 / N
    np.testing.assert_allclose(batch.probabilities, expected_n[batch.example_ids], rtol=1e-4)
