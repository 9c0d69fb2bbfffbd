"""A Ray cluster across hosts, the service on it, and trainers that use it; see `hosts`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.cluster.hosts import Hosts
from tests.cluster.support import beside, until

RAY_PORT = 6379
GATEWAY_PORT = 50051

START_S = 90.0
"""within which a node of Ray, or a gateway, must be there: five of them share two cores"""

NODE = ("--block", "--disable-usage-stats", "--num-cpus=1", "--object-store-memory=80000000", "--memory=2000000000")

NODE_IS_UP = "Ray runtime started."

ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A host that is cut off is given up after some five seconds, in place of a minute.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(slots=True)
class Received:
    """What one trainer was given."""

    ids: dict[int, list[int]] = field(default_factory=dict)
    """by epoch, in order"""
    at: list[float] = field(default_factory=list)
    """when each batch came"""
    end: dict[str, Any] = field(default_factory=dict)
    """its last words"""


class Trainer:
    """A running `host_trainer`."""

    def __init__(self, process: subprocess.Popen[bytes], said: Path, name: str) -> None:
        self._process, self._said, self._name = process, said, name

    def received(self) -> Received:
        """So far."""
        received = Received()
        for line in self._said.read_text().splitlines():
            with suppress(json.JSONDecodeError):  # half a line, or a warning of another library
                said = json.loads(line)
                if "ids" in said:
                    received.ids.setdefault(said["epoch"], []).extend(said["ids"])
                    received.at.append(said["at"])
                else:
                    received.end = said
        return received

    def wait(self, timeout_s: float) -> Received:
        """When it has come to its end."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self._name} has not ended after {timeout_s:g} s: {self._tail()}") from None
        assert code == 0, f"{self._name} ended with {code}: {self._tail()}"
        return self.received()

    def _tail(self) -> str:
        return "\n".join(self._said.read_text().splitlines()[-20:])


class HostCluster:
    """Ray on some of the hosts, and gateways. What it starts ends with the hosts.

    Args:
        hosts: where; "head" is among them.
        folder: for what processes say.
    """

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self._folder = folder
        self._logs: list[IO[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._gateways: dict[str, subprocess.Popen[bytes]] = {}
        self._started, self._ups = Counter[str](), Counter[str]()

    def close(self) -> None:
        """Wait for what the end of the hosts has ended. Call it after them."""
        for process in [*self._nodes.values(), *self._gateways.values()]:
            process.wait(10)
        for log in self._logs:
            log.close()

    def start_node(self, name: str) -> None:
        """Ray on a host; returns at once."""
        head = self.hosts["head"].address
        where = ["--head", f"--port={RAY_PORT}", "--include-dashboard=false"] if name == "head" else []
        where = where or [f"--address={head}:{RAY_PORT}"]
        command = [beside("ray"), "start", *where, f"--node-ip-address={self.hosts[name].address}", *NODE]
        self._nodes[name] = self._start(name, f"ray-{name}", command)

    def await_node(self, name: str) -> None:
        """Wait until the node that was started last on a host has joined."""
        until(lambda: self._log(name, "ray").count(NODE_IS_UP) > self._ups[name], f"Ray to run on {name}", START_S)
        self._ups[name] += 1

    def node_has_ended(self, name: str) -> bool:
        return self._nodes[name].poll() is not None

    def start_gateways(self, *names: str, options: Sequence[str] = ()) -> None:
        """Gateways on hosts; returns when they serve."""
        address = f"{self.hosts['head'].address}:{RAY_PORT}"
        command = [
            sys.executable,
            "-m",
            "sampler_service",
            "up",
            "--address",
            address,
            "--host",
            "0.0.0.0",
            "--no-page",
        ]
        command += ["--port", str(GATEWAY_PORT), *options]
        ready = {name: self._folder / f"ready-{name}-{self._started[name]}" for name in names}
        for name, path in ready.items():
            self._gateways[name] = self._start(name, f"gateway-{name}", [*command, "--ready-file", str(path)])
        for name, path in ready.items():

            def serves(name: str = name, path: Path = path) -> bool:
                assert self._gateways[name].poll() is None, self._log(name, "gateway")[-3000:]
                return path.exists()

            until(serves, f"the gateway on {name} to serve", START_S)

    def gateway(self, name: str) -> str:
        """host:port of a host's gateway."""
        return f"{self.hosts[name].address}:{GATEWAY_PORT}"

    def stop_gateway(self, name: str, timeout_s: float) -> int:
        """SIGTERM, and the exit code."""
        self.hosts.signal(self._gateways[name], signal.SIGTERM)
        return self.await_gateway_end(name, timeout_s)

    def await_gateway_end(self, name: str, timeout_s: float) -> int:
        """Its exit code."""
        return self._gateways[name].wait(timeout_s)

    def shards(self) -> dict[str, int]:
        """How many shards each host has."""
        counts = {name: len(self.hosts.processes(name, "ray::Shard")) for name in self._nodes}
        return {name: count for name, count in counts.items() if count}

    def trainer(self, address: str, run: str, **options: Any) -> Trainer:
        """A trainer in the trainers' host; options are those of `host_trainer.train`."""
        said = self._folder / f"trainer-{run}-{options['rank']}-{self._started['trainers']}"
        task = json.dumps({"address": address, "run": run, **options})
        command = [sys.executable, "-m", "tests.cluster.host_trainer", task]
        process = self._start("trainers", said.name, command)
        return Trainer(process, said, f"rank {options['rank']} of run {run!r}")

    def _log(self, name: str, of: str) -> str:
        return (self._folder / f"{of}-{name}").read_text(errors="replace")

    def ask(self, gateway: str, code: str) -> Any:
        """What an expression gives that knows `client`, a SamplerClient; evaluated on the trainers' host."""
        script = (
            f"import json, sampler_client as s\nwith s.SamplerClient({gateway!r}) as client: print(json.dumps({code}))"
        )
        done = self.hosts.run("trainers", [sys.executable, "-c", script], timeout_s=60)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    def _start(self, name: str, log: str, command: list[str]) -> subprocess.Popen[bytes]:
        self._started[name] += 1
        output = (self._folder / log).open("ab")
        self._logs.append(output)
        return self.hosts.start(name, command, environment=ENVIRONMENT, output=output)


@contextmanager
def service_across(
    nodes: Sequence[str], gateways: Sequence[str], folder: Path, *, shards: int
) -> Iterator[HostCluster]:
    """Ray on hosts of these names, of which the first is its head, gateways on some of them, and a host for trainers.

    Raises:
        NotPossible: see `hosts`.
    """
    with Hosts() as hosts:
        cluster = HostCluster(hosts, folder)
        for name in (*nodes, "trainers"):
            hosts.add(name)
        try:
            for group in (nodes[:1], nodes[1:]):
                for name in group:
                    cluster.start_node(name)
                for name in group:
                    cluster.await_node(name)
            cluster.start_gateways(*gateways, options=("--shards", str(shards)))
            yield cluster
        finally:
            hosts.__exit__()
            cluster.close()


def lost_and_repeated(received: list[Received], examples: int, epochs: int) -> tuple[int, int]:
    """Examples that came to no trainer, and how many came once more than once; over all epochs."""
    lost = repeated = 0
    for epoch in range(epochs):
        counts = Counter(example for each in received for example in each.ids.get(epoch, []))
        lost += sum(counts[example] == 0 for example in range(examples))
        repeated += sum(counts.values()) - len(counts)
    return lost, repeated
