"""What the tests of this folder share: services and clusters as a person starts them, and a look at their processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import psutil

import sampler_client as sampler
from sampler_service.embedded import RunningService, running_service

PATIENT = sampler.Timeouts(call_s=60, batch_s=60, report_s=60, reconnect_s=60)
"""Ray starts processes slowly on a small and busy machine."""


OPEN_CLUSTER = {"RAY_AUTH_MODE": "disabled"}
"""Whether Ray asks for a token depends on the home directory otherwise."""

OURS = ("Gateway", "Page", "Registry", "RunHost", "Shard", "ScorerHost", "WeightsStore", "Holdings")
"""classes of our actors"""


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
def ray_head(*options: str, environment: Mapping[str, str] = OPEN_CLUSTER) -> Iterator[tuple[str, int]]:
    """Address and process of a Ray cluster that belongs to somebody else."""
    port, client_port, low, agent = free_ports(4)
    command = [beside("ray"), "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=false"]
    command += [f"--port={port}", f"--ray-client-server-port={client_port}", f"--node-manager-port={low}"]
    command += [f"--dashboard-agent-listen-port={agent}"]  # Ray's own is taken where another cluster runs
    command += ["--object-store-memory=100000000", "--num-cpus=2", "--node-ip-address=127.0.0.1", *options]
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as head:
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


def actors(parent: int, name: str) -> list[psutil.Process]:
    """Processes of Ray actors below a process, by the name of their class."""
    below = psutil.Process(parent).children(recursive=True)
    return [process for process in below if title(process).startswith(f"ray::{name}")]


def title(process: psutil.Process) -> str:
    """Its command line; empty when it has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def beside(program: str) -> str:
    """Path of a program of this Python's environment."""
    return str(Path(sys.executable).with_name(program))


def until(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    """Wait for a condition, and fail with `what` when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"after {timeout_s:g} s still not: {what}"
        time.sleep(0.1)


def joining(address: str, *arguments: str, **options):
    """A gateway on that cluster."""
    return running_service(arguments=("--address", address, *arguments), environment=OPEN_CLUSTER, **options)


def left_on(address: str) -> dict[str, list[str]]:
    """Names of actors and of placement groups on a cluster, and what else is kept there of a service."""
    code = f"""
import json, ray
ray.init(address={address!r}, logging_level="error")
from ray.experimental.internal_kv import _internal_kv_list
groups = [each["name"] for each in ray.util.placement_group_table().values() if each["state"] != "REMOVED"]
print(json.dumps({{"actors": [each["name"] for each in ray.util.list_named_actors(True)], "groups": groups,
                  "kept": [str(key) for key in _internal_kv_list("", namespace=b"sampler:sampler-service")]}}))
"""
    return json.loads(python(code))


def python(code: str) -> str:
    """What a program prints last."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, env={**os.environ, **OPEN_CLUSTER}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def nothing_left(head: tuple[str, int]) -> None:
    address, pid = head
    until(lambda: not any(actors(pid, title) for title in OURS), "the cluster to be empty of us", 20)
    assert left_on(address) == {"actors": [], "groups": [], "kept": []}


def kill(service: RunningService) -> None:
    """As the kernel does when memory runs out."""
    os.killpg(service.pid, signal.SIGKILL)
    service.process.wait(10)


def epoch(loader) -> list[int]:
    ids = []
    for _, batch in loader:
        ids += batch.example_ids.tolist()
        batch.report(np.ones(len(batch)))
    loader.flush()
    return ids
