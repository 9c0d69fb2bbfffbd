"""One service on Ray for all tests of this folder, as a person starts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_service.embedded import RunningService, running_service

PATIENT = sampler.Timeouts(call_s=60, batch_s=60, report_s=60, reconnect_s=60)
"""Ray starts processes slowly on a small and busy machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "cluster":
            item.add_marker("ray")


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


def cli(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """`sampler-service` with its output; the exit code is for the test to judge."""
    command = [sys.executable, "-m", "sampler_service", *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
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
