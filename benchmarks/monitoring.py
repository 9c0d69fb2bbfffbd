"""What watching costs: statistics and explanations of large runs, batches a second with and without watchers, the
page's first sight.

The service, its page, the trainer and the watchers are processes of their own on this machine. Watchers are what a
person has open: the page of the run (its requests, each second, as a browser makes them), a scrape each second, and
`sampler-service top`. The browser itself is left out of the overhead: it draws on the viewer's machine, not here.

    python -m benchmarks.monitoring --json benchmarks/results/monitoring.json

What becomes of examples when a host is lost is measured by `benchmarks.hosts`, as root; its figures are repeated here.
"""

from __future__ import annotations

import json as jsonlib
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

from benchmarks.large_runs import CLUSTERS, DIM, TIMEOUTS, Gradients, cluster, sketch, take, trainer
from sampler_client.client import SamplerClient
from sampler_service.embedded import RunningService, running_service
from trainer_examples.results import write_result

LARGE = 10_000_000
SHOWN = 1_000_000
SKETCHED = 0.6
"""share of a large run's examples that are reported, with sketches, before anything is measured: clusters need half"""

EXPLAINED_DIM = 64
EXPLANATIONS = 20

HOSTS = Path("benchmarks/results/hosts.json")


def measure_statistics(service: RunningService, examples: int, calls: int) -> list[dict[str, Any]]:
    """Milliseconds of GetStatistics of a large run that draws from clusters, while a trainer takes batches; with and
    without detail, in turn."""
    session = trainer(service, "large", examples)
    cluster(session, "large", int(SKETCHED * examples))
    ended = threading.Event()

    def train() -> None:
        while not ended.wait(0.02):
            take(session, 1)

    training = threading.Thread(target=train, daemon=True)
    training.start()
    taken: dict[bool, list[float]] = {False: [], True: []}
    with SamplerClient(str(service), timeouts=TIMEOUTS) as client:
        for call in range(2 * calls):
            detail = bool(call % 2)
            began = time.perf_counter()
            said = client.statistics("large", detail=detail)
            taken[detail].append(1e3 * (time.perf_counter() - began))
            assert not detail or len(said.detail.clusters) == CLUSTERS
            time.sleep(0.02)
        ended.set()
        training.join()
        policy = client.statistics("large").active_policy
        session.close()
        client.close_run("large")
    return [
        {
            "what": "statistics",
            "examples": examples,
            "sketched": int(SKETCHED * examples),
            "clusters": CLUSTERS,
            "policy": policy,
            "detail": detail,
            "calls": calls,
            "median_ms": float(np.percentile(times, 50)),
            "p99_ms": float(np.percentile(times, 99)),
        }
        for detail, times in taken.items()
    ]


def measure_explain(service: RunningService, examples: int) -> dict[str, Any]:
    """Milliseconds until an example of a large run is explained, with its neighbours among all the others."""
    session = trainer(service, "explained", examples, policy="shuffle", num_clusters=0, sketch_dim=EXPLAINED_DIM)
    session.start_epoch(0, 0)
    take(session, 1)
    sketch(session, examples, Gradients(EXPLAINED_DIM))
    times, complete = [], 0
    for example_id in np.random.default_rng(0).integers(0, examples, EXPLANATIONS).tolist():
        began = time.perf_counter()
        found = session.client.explain("explained", example_id)
        times.append(1e3 * (time.perf_counter() - began))
        complete += bool(found.neighbours)
    session.close()
    session.client.close_run("explained")
    return {
        "what": "explain",
        "examples": examples,
        "dim": EXPLAINED_DIM,
        "calls": EXPLANATIONS,
        "with_neighbours": complete,
        "median_ms": statistics.median(times),
        "most_ms": max(times),
    }


def measure_overhead(service: RunningService, examples: int, rounds: int, batches: int) -> dict[str, Any]:
    """Batches a second to one trainer that draws from clusters and reports every batch with sketches, with watchers and
    without, now the one first, now the other."""
    session = trainer(service, "watched", examples)
    cluster(session, "watched", examples)
    gradients, epoch = Gradients(), 0
    rates: dict[bool, list[float]] = {False: [], True: []}
    for round_ in range(rounds):
        for watched in (False, True) if round_ % 2 else (True, False):
            with watchers(service, "watched") if watched else _nobody():
                epoch += 1
                session.start_epoch(epoch, 0)
                take(session, batches // 4, gradients)  # warm
                session.flush()
                began = time.perf_counter()
                take(session, batches, gradients)
                session.flush()
                rates[watched].append(batches / (time.perf_counter() - began))
    said, dropped = session.client.statistics("watched"), session.report_counts().dropped
    session.close()
    session.client.close_run("watched")
    ratios = [seen / alone for alone, seen in zip(rates[False], rates[True], strict=True)]
    return {
        "what": "overhead",
        "examples": examples,
        "policy": said.active_policy,
        "clusters": CLUSTERS,
        "reclusterings": said.refreshes,
        "batches": batches,
        "rounds": rounds,
        "reports_dropped": dropped,
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


def measure_page(service: RunningService, examples: int, loads: int) -> dict[str, Any]:
    """Milliseconds in Chromium from asking for a run's page until its figures and its map of clusters are drawn."""
    session = trainer(service, "shown", examples)
    cluster(session, "shown", examples)
    take(session, 100)
    times = _load(f"{service.page}/#/runs/shown", loads)
    session.close()
    return {
        "what": "page",
        "examples": examples,
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


def hosts_of(path: Path) -> dict[str, Any]:
    """What `benchmarks.hosts` found; said at once when it was not run."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run `python -m benchmarks.hosts --json {path}` as root before")
    return jsonlib.loads(path.read_text())["headline"]


def main(  # noqa: PLR0913 - the options of a command line
    json: Annotated[Path | None, typer.Option(help="where to write the result")] = None,
    large: Annotated[
        int, typer.Option(help="examples of the runs that are asked for statistics and explanations")
    ] = LARGE,
    shown: Annotated[int, typer.Option(help="examples of the runs that are watched and shown")] = SHOWN,
    calls: Annotated[int, typer.Option(help="of statistics, with detail and without")] = 300,
    rounds: Annotated[int, typer.Option(help="with watchers, and as many without")] = 8,
    batches: Annotated[int, typer.Option(help="of 256 in each round")] = 1000,
    loads: Annotated[int, typer.Option(help="of the page")] = 7,
    hosts: Annotated[Path, typer.Option(help="result of benchmarks.hosts")] = HOSTS,
) -> None:
    """Measure what watching costs."""
    across = hosts_of(hosts)
    with running_service(page=True) as service:
        requests.get(f"{service.page}/healthz", timeout=10).raise_for_status()
        overhead = measure_overhead(service, shown, rounds, batches)
        plain, detailed = measure_statistics(service, large, calls)
        explained = measure_explain(service, large)
        page = measure_page(service, shown, loads)
    write_result(
        json,
        name="monitoring",
        rows=[overhead, plain, detailed, explained, page, {"what": "hosts", **across}],
        headline={
            "statistics_ms": detailed["p99_ms"],
            "statistics_ms_plain": plain["p99_ms"],
            "explain_ms": explained["median_ms"],
            "monitoring_overhead": overhead["ratio"],
            "page_load_ms": page["median_ms"],
            "cluster_hosts": across["cluster_hosts"],
            "examples_lost": across["examples_lost"],
        },
        notes=(
            f"statistics_ms: 99th percentile of GetStatistics with histograms and {CLUSTERS} clusters; of {large} "
            f"examples {SKETCHED:.0%} have sketches of {DIM} numbers, while a trainer takes a batch each 20 ms",
            f"explain_ms: median over examples of {large} with sketches of {EXPLAINED_DIM} numbers in one shard; "
            f"{explained['with_neighbours']} of {EXPLANATIONS} came with neighbours, the others without after 6 s",
            "monitoring_overhead: batches a second to a trainer that draws from clusters and reports each batch with "
            "sketches, and does nothing else, with watchers over without, median over rounds in alternating order",
            "page_load_ms: until figures and map are drawn, in a headless browser on the same cores, without a cache",
            f"cluster_hosts, examples_lost: of {hosts.name}, which benchmarks.hosts wrote",
        ),
    )


if __name__ == "__main__":
    typer.run(main)
