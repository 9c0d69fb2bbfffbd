"""What watching costs: statistics of a large run, batches a second with and without watchers, the page's first sight.

The service, its page, the trainer and the watchers are processes of their own on this machine. Watchers are what a
person has open: the page of the run (its requests, each second, as a browser makes them), a scrape each second, and
`sampler-service top`. The browser itself is left out of the overhead: it draws on the viewer's machine, not here.

    python -m benchmarks.monitoring --json benchmarks/results/monitoring.json
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import requests
import typer

from benchmarks.common import write_result
from benchmarks.serving import BATCH
from sampler_client.client import SamplerClient
from sampler_client.config import RunOptions, Timeouts
from sampler_client.reporter import ReportRows
from sampler_client.session import Session
from sampler_service.embedded import RunningService, running_service

LARGE = 10_000_000
SHOWN = 1_000_000
CLUSTERS = 256
DIM = 16
LEAD = 64
REPORT_ROWS = 65_536
CLUSTERED_S = 900.0
"""within which a million sketches must be clustered"""

TIMEOUTS = Timeouts(call_s=60, report_s=120)


def trainer(service: RunningService, run: str, examples: int, options: RunOptions) -> Session:
    """A joined trainer of a run of its own."""
    return Session(
        SamplerClient(str(service), timeouts=TIMEOUTS),
        run=run,
        dataset=f"{examples}-examples",
        num_examples=examples,
        options=options,
        rank=0,
        world_size=1,
        batch_size=BATCH,
        drop_last=True,
        lead=LEAD,
        bunch=LEAD // 8,
    )


def report(session: Session, ids: np.ndarray, sketches: bool = False) -> None:
    """Losses and norms of examples, and sketches of as many directions as there are clusters."""
    rng = np.random.default_rng(int(ids[0]))
    rows = rng.standard_normal((len(ids), DIM)).astype(np.float32) * 0.3
    rows += np.random.default_rng(0).standard_normal((CLUSTERS, DIM)).astype(np.float32)[ids % CLUSTERS]
    session.put(
        ReportRows(
            batch_id=0,
            step=0,
            example_ids=ids,
            losses=rng.gamma(1.0, 1.0, len(ids)).astype(np.float32),
            norms=np.linalg.norm(rows, axis=1).astype(np.float32),
            sketches=rows.astype(np.float16) if sketches else None,
        )
    )


def take(session: Session, batches: int) -> None:
    """Receive so many batches, each done at once."""
    for _ in range(batches):
        message = session.next()
        assert message is not None, "the epoch is longer"
        session.done(message.batch_id)


def measure_statistics(service: RunningService, calls: int) -> list[dict[str, Any]]:
    """Milliseconds of GetStatistics of a run of ten million examples that draws by norms, while a trainer takes
    batches; with and without detail, in turn."""
    session = trainer(
        service,
        "large",
        LARGE,
        RunOptions(policy="importance", policy_options=(("gate", "1"),), sketch_dim=DIM, max_lead=LEAD),
    )
    for start in range(0, LARGE // 2, REPORT_ROWS):
        report(session, np.arange(start, start + REPORT_ROWS))
    session.flush()
    session.start_epoch(0, 0)
    ended = threading.Event()

    def train() -> None:
        while not ended.wait(0.02):
            take(session, 1)

    training = threading.Thread(target=train)
    training.start()
    taken: dict[bool, list[float]] = {False: [], True: []}
    with SamplerClient(str(service), timeouts=TIMEOUTS) as client:
        for call in range(2 * calls):
            began = time.perf_counter()
            client.statistics("large", detail=bool(call % 2))
            taken[bool(call % 2)].append(1e3 * (time.perf_counter() - began))
            time.sleep(0.02)
        ended.set()
        training.join()
        session.close()
        client.close_run("large")
    return [
        {
            "what": "statistics",
            "examples": LARGE,
            "detail": detail,
            "calls": calls,
            "median_ms": float(np.percentile(times, 50)),
            "p99_ms": float(np.percentile(times, 99)),
        }
        for detail, times in taken.items()
    ]


def measure_overhead(service: RunningService, rounds: int, batches: int) -> dict[str, Any]:
    """Batches a second to one trainer, with watchers and without, in turn."""
    session = trainer(service, "watched", SHOWN, RunOptions(policy="shuffle", sketch_dim=DIM, max_lead=LEAD))
    rates: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * rounds):
        with watchers(service, "watched") if turn % 2 else _nobody():
            session.start_epoch(turn, 0)
            take(session, batches // 4)  # warm
            began = time.perf_counter()
            take(session, batches)
            rates[bool(turn % 2)].append(batches / (time.perf_counter() - began))
    session.close()
    ratios = [seen / alone for alone, seen in zip(rates[False], rates[True], strict=True)]
    return {
        "what": "overhead",
        "batches": batches,
        "rounds": rounds,
        "batches_per_second": statistics.median(rates[False]),
        "batches_per_second_watched": statistics.median(rates[True]),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


@contextmanager
def watchers(service: RunningService, run: str) -> Iterator[None]:
    """The page of a run, a scrape each second and `top`, as long as the block runs."""
    poll = (
        "import sys, time, requests\n"
        "page, run = sys.argv[1:]\n"
        "for second in range(10**6):\n"
        "    requests.get(f'{page}/api/run/{run}', timeout=10).raise_for_status()\n"
        "    requests.get(f'{page}/metrics', timeout=10).raise_for_status()\n"
        "    if second % 5 == 0:\n"
        "        requests.get(f'{page}/api/examples/{run}', timeout=10).raise_for_status()\n"
        "    time.sleep(1)\n"
    )
    commands = [
        [sys.executable, "-c", poll, service.page, run],
        [sys.executable, "-m", "sampler_service", "top", str(service)],
    ]
    started = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    time.sleep(3.0)  # they have imported what they need
    try:
        assert all(process.poll() is None for process in started), "a watcher ended"
        yield
        assert all(process.poll() is None for process in started), "a watcher ended"
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextmanager
def _nobody() -> Iterator[None]:
    time.sleep(3.0)
    yield


def measure_page(service: RunningService, loads: int) -> dict[str, Any]:
    """Milliseconds in Chromium from asking for a run's page until its figures and its map of clusters are drawn."""
    session = trainer(
        service,
        "shown",
        SHOWN,
        RunOptions(policy="gradient_clustering", num_clusters=CLUSTERS, sketch_dim=DIM, max_lead=LEAD),
    )
    session.start_epoch(0, 0)
    take(session, 200)
    for start in range(0, SHOWN, REPORT_ROWS):
        report(session, np.arange(start, min(SHOWN, start + REPORT_ROWS)), sketches=True)
    session.flush()
    with SamplerClient(str(service), timeouts=TIMEOUTS) as client:
        until = time.monotonic() + CLUSTERED_S
        while client.statistics("shown").num_clusters != CLUSTERS:
            if time.monotonic() > until:
                raise TimeoutError(f"the run 'shown' has no clusters after {CLUSTERED_S:g} s")
            time.sleep(1.0)
    times = _load(f"{service.page}/#/runs/shown", loads)
    session.close()
    return {
        "what": "page",
        "examples": SHOWN,
        "clusters": CLUSTERS,
        "loads": loads,
        "median_ms": statistics.median(times),
        "ms": times,
    }


def _load(url: str, loads: int) -> list[float]:
    """Milliseconds of each load, every one in a browser without a cache."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("no Chromium on PATH to load the page in: install Debian's `chromium`")
    times = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(loads):
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            began = time.perf_counter()
            page.goto(url)
            page.locator(".tile").first.wait_for()
            page.locator("[data-chart=map] canvas").wait_for()
            times.append(1e3 * (time.perf_counter() - began))
            page.context.close()
        browser.close()
    return times


def main(
    json: Annotated[Path | None, typer.Option(help="where to write the result")] = None,
    calls: Annotated[int, typer.Option(help="of statistics, with detail and without")] = 300,
    rounds: Annotated[int, typer.Option(help="with watchers, and as many without")] = 7,
    batches: Annotated[int, typer.Option(help="of 256 in each round")] = 3000,
    loads: Annotated[int, typer.Option(help="of the page")] = 7,
) -> None:
    """Measure what watching costs."""
    with running_service(page=True) as service:
        requests.get(f"{service.page}/healthz", timeout=10).raise_for_status()
        overhead = measure_overhead(service, rounds, batches)
        plain, detailed = measure_statistics(service, calls)
        page = measure_page(service, loads)
    write_result(
        json,
        name="monitoring",
        rows=[overhead, plain, detailed, page],
        headline={
            "statistics_ms": detailed["p99_ms"],
            "statistics_ms_plain": plain["p99_ms"],
            "monitoring_overhead": overhead["ratio"],
            "page_load_ms": page["median_ms"],
        },
        notes=(
            "statistics_ms: 99th percentile of GetStatistics with histograms and clusters, ten million examples drawn "
            "by their norms, while a trainer takes a batch each 20 ms",
            "monitoring_overhead: batches a second to a trainer that does nothing else, with watchers over without, "
            "median over rounds",
            "page_load_ms: until figures and map are drawn, in a headless browser on the same cores, without a cache",
        ),
    )


if __name__ == "__main__":
    typer.run(main)
