"""The service across hosts: a job undisturbed, and one that loses a host. What does not arrive, and how long it waits.

Hosts are namespaces on this machine, so this is about what arrives, not about how fast. As root, on Linux:

    python -m benchmarks.hosts --json benchmarks/results/hosts.json
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tests.cluster.host_cluster import HostCluster, Received, lost_and_repeated, service_across
from tests.cluster.support import until
from trainer_examples.results import write_result

HOSTS = ("head", "worker-1", "worker-2")
GATEWAYS = ("head", "worker-1")
EXAMPLES = 1200
BATCH = 10
EPOCHS = 3
STEP_S = 0.1
END_S = 240.0
"""within which a job must have ended: six times what it takes undisturbed"""


def job(cluster: HostCluster, run: str, disturb: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Two trainers, each by a gateway of its own and, should that be lost, by the other; their epochs counted out."""
    ways = [f"ipv4:{cluster.gateway(first)},{cluster.gateway(second)}" for first, second in (GATEWAYS, GATEWAYS[::-1])]
    task = {"examples": EXAMPLES, "batch_size": BATCH, "world_size": 2, "epochs": EPOCHS, "step_s": STEP_S}
    began = time.monotonic()
    trainers = [cluster.trainer(way, run, rank=rank, **task) for rank, way in enumerate(ways)]
    until(lambda: all(trainer.received().ids for trainer in trainers), "both trainers to have batches", END_S)
    hosts = len(cluster.shards())
    disturb()
    received = [trainer.wait(END_S) for trainer in trainers]
    lost, repeated = lost_and_repeated(received, EXAMPLES, EPOCHS)
    cluster.ask(cluster.gateway("head"), f"client.close_run({run!r})")
    return {
        "run": run,
        "hosts_with_shards": hosts,
        "examples": EXAMPLES,
        "epochs": EPOCHS,
        "lost": lost,
        "repeated": repeated,
        "longest_wait_s": max(_longest_wait(each) for each in received),
        "seconds": time.monotonic() - began,
    }


def _longest_wait(received: Received) -> float:
    """Seconds between two batches."""
    return max(later - earlier for earlier, later in zip(received.at, received.at[1:], strict=False))


def main(json: Annotated[Path | None, typer.Option(help="where to write the result")] = None) -> None:
    """Count what of every epoch arrives across three hosts, with and without the loss of one."""
    with (
        tempfile.TemporaryDirectory(prefix="hosts-") as folder,
        service_across(HOSTS, GATEWAYS, Path(folder), shards=len(HOSTS)) as cluster,
    ):
        rows = [job(cluster, "undisturbed"), job(cluster, "host-lost", lambda: cluster.hosts.cut("worker-1"))]
    write_result(
        json,
        name="hosts",
        rows=rows,
        headline={
            "cluster_hosts": float(min(row["hosts_with_shards"] for row in rows)),
            "examples_lost": float(sum(row["lost"] for row in rows)),
            "examples_repeated": float(sum(row["repeated"] for row in rows)),
            "longest_wait_s": rows[1]["longest_wait_s"],
        },
        notes=(
            "hosts are namespaces of network, processes and mounts on one machine, each with a Ray node and a shard",
            "host-lost: the link of a host with a gateway and a shard is taken down for good while both trainers train",
            "longest_wait_s: that one of them waited for a batch then; Ray gives a host up after some 5 s here, not 60",
        ),
    )


if __name__ == "__main__":
    typer.run(main)
