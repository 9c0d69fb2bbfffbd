"""One service on Ray for all tests of this folder, as a person starts it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_service.embedded import RunningService, running_service

PATIENT = sampler.Timeouts(call_s=60, batch_s=60, report_s=60, reconnect_s=60)
"""Ray starts processes slowly on a small and busy machine."""


OPEN_CLUSTER = {"RAY_AUTH_MODE": "disabled"}
"""Whether Ray asks for a token depends on the home directory otherwise."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "cluster":
            item.add_marker("ray")


NOT_RUN = "the test across hosts was NOT run"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skip is a letter among hundreds; this one is said."""
    reasons = {str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", [])}
    for reason in sorted(reason for reason in reasons if NOT_RUN in reason):
        terminalreporter.write_sep("!", reason.removeprefix("Skipped: "), red=True, bold=True)


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    with running_service(shards=2) as service:
        yield service


@pytest.fixture
def attach(service: RunningService) -> Iterator[Callable[..., sampler.SampledLoader]]:
    """Attach a loader over `examples` numbers; its run is closed in the end."""
    opened: list[tuple[str, sampler.SampledLoader]] = []

    def make(run: str, *, examples: int = 64, batch_size: int = 16, address: str = service, **options):
        plain = DataLoader(TensorDataset(torch.arange(examples)), batch_size=batch_size)
        opened.append((run, sampler.attach(plain, str(address), run=run, timeouts=PATIENT, **options)))
        return opened[-1][1]

    yield make
    for run, loader in opened:
        loader.close()
        with sampler.SamplerClient(service) as client:
            client.close_run(run)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def answers(address: str) -> bool:
    """Whether somebody listens there."""
    host, port = address.split(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


@contextlib.contextmanager
def ray_head(*options: str) -> Iterator[tuple[str, int]]:
    """Address and process of a Ray cluster that belongs to somebody else."""
    port, client_port, low = free_ports(3)
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=false"]
    command += [f"--port={port}", f"--ray-client-server-port={client_port}", f"--node-manager-port={low}"]
    command += ["--object-store-memory=100000000", "--num-cpus=2", "--node-ip-address=127.0.0.1", *options]
    environment = {**os.environ, **OPEN_CLUSTER}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as head:
        try:
            until(lambda: answers(f"127.0.0.1:{port}"), "the Ray cluster to answer")
            yield f"127.0.0.1:{port}", head.pid
        finally:
            for process in [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]:
                process.kill()


def cli(
    *arguments: str, timeout_s: float = 60, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`sampler-service` with its output; the exit code is for the test to judge."""
    command = [sys.executable, "-m", "sampler_service", *arguments]
    environment = {**os.environ, "COLUMNS": "200", **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False)


def actors(parent: int, title: str) -> list[psutil.Process]:
    """Processes of Ray actors below a process, by the name of their class."""
    below = psutil.Process(parent).children(recursive=True)
    return [process for process in below if _title(process).startswith(f"ray::{title}")]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def until(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Wait for a condition, and fail with `what` when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"after {timeout_s:g} s still not: {what}"
        time.sleep(0.1)
