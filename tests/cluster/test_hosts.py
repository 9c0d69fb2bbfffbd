"""The service across hosts that are cut off, come back and join: a head, two workers, and trainers on a fourth.

    python -m pytest tests/cluster/test_hosts.py        # as root, on Linux; or: make test-hosts

Tests of this file follow one another on one cluster.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.conftest import NOT_RUN
from tests.cluster.host_cluster import ENVIRONMENT, HostCluster, Received, lost_and_repeated, service_across
from tests.cluster.hosts import why_not
from tests.cluster.support import OURS, until
from tests.examples.ddp_worker import EPOCHS
from trainer_examples.data import load

pytestmark = pytest.mark.timeout(300)

SHARDS = 3
EXAMPLES = 480
BATCH = 8
JOB = {"examples": EXAMPLES, "batch_size": BATCH, "world_size": 2}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCluster]:
    """Ray on three hosts, gateways on two of them, and a fourth host for trainers."""
    reason = why_not()
    if reason:
        pytest.skip(f"{NOT_RUN}: {reason}")
    folder = tmp_path_factory.mktemp("hosts")
    with service_across(("head", "worker-1", "worker-2"), ("head", "worker-1"), folder, shards=SHARDS) as cluster:
        yield cluster


def test_a_training_job_runs_across_hosts_and_its_shards_are_spread(cluster: HostCluster, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    worker = ["-m", "tests.examples.ddp_worker", cluster.gateway("head"), "ddp", str(tmp_path), "shuffle"]
    done = cluster.hosts.run("trainers", [*torchrun, *worker], timeout_s=150)
    assert done.returncode == 0, done.stderr[-3000:]
    assert cluster.shards() == {"head": 1, "worker-1": 1, "worker-2": 1}
    examples = len(load().train)
    parts = [np.load(tmp_path / f"rank{rank}.npy") for rank in (0, 1)]
    for epoch in range(EPOCHS):
        ids = np.concatenate([part[part[:, 0] == epoch][:, 2] for part in parts])
        np.testing.assert_array_equal(np.sort(ids), np.arange(examples))
    rows, shards = cluster.ask(
        cluster.gateway("worker-1"), "[client.statistics('ddp').reported_rows, client.statistics('ddp').shards]"
    )
    assert (rows, shards) == (EPOCHS * examples, SHARDS), "the other gateway tells the same"
    cluster.ask(cluster.gateway("worker-1"), "client.close_run('ddp')")
    until(lambda: not cluster.shards(), "the shards of a closed run to end", 20)


def all_reports_counted(received: list[Received]) -> bool:
    """Whether all rows that came were taken, or refused for what the loss of a gateway or of a shard explains."""
    for each in received:
        rows, end = sum(map(len, each.ids.values())), each.end
        assert end["accepted"] + sum(end["rejected"].values()) == rows, end
        assert end["rejected"].keys() <= {"old", "duplicate", "shard_away"}, end
        assert end["dropped"] == 0, end
    return True


def test_two_gateways_and_a_slow_cable_that_loses_frames_deliver_every_example_once(cluster: HostCluster) -> None:
    by = cluster.hosts.weather("trainers", delay_s=0.02, loss=0.01)
    try:
        ranks = [
            cluster.trainer(cluster.gateway(host), "weather", rank=rank, epochs=2, step_s=0.05, **JOB)
            for rank, host in enumerate(("head", "worker-1"))
        ]
        received = [rank.wait(90) for rank in ranks]
    finally:
        cluster.hosts.clear("trainers")
    assert lost_and_repeated(received, EXAMPLES, 2) == (0, 0), by
    assert [each.end for each in received] == [{"accepted": EXAMPLES, "rejected": {}, "dropped": 0}] * 2
    cluster.ask(cluster.gateway("head"), "client.close_run('weather')")


def test_a_worker_that_is_cut_off_for_moments_is_waited_for(cluster: HostCluster) -> None:
    ranks = [
        cluster.trainer(cluster.gateway(host), "moments", rank=rank, epochs=3, step_s=0.1, **JOB)
        for rank, host in enumerate(("head", "worker-1"))
    ]
    until(lambda: all(rank.received().ids for rank in ranks), "both ranks to train", 60)
    cluster.hosts.cut("worker-1")
    time.sleep(2)
    cluster.hosts.restore("worker-1")
    received = [rank.wait(120) for rank in ranks]
    lost, repeated = lost_and_repeated(received, EXAMPLES, 3)
    assert lost == 0
    assert all_reports_counted(received)
    assert repeated <= 4 * BATCH, "no more than what one trainer may hold"
    assert not cluster.node_has_ended("worker-1")
    cluster.ask(cluster.gateway("head"), "client.close_run('moments')")


def test_a_worker_that_is_lost_takes_nothing_with_it_and_comes_back(cluster: HostCluster) -> None:
    either = f"ipv4:{cluster.gateway('worker-1')},{cluster.gateway('head')}"
    ranks = [
        cluster.trainer(address, "lost", rank=rank, epochs=4, step_s=0.2, **JOB)
        for rank, address in enumerate((cluster.gateway("head"), either))
    ]
    until(lambda: all(rank.received().ids for rank in ranks), "both ranks to train", 60)
    cluster.hosts.cut("worker-1")
    received = [rank.wait(200) for rank in ranks]
    assert lost_and_repeated(received, EXAMPLES, 4)[0] == 0
    assert all_reports_counted(received)
    assert sum(cluster.shards().values()) - cluster.shards().get("worker-1", 0) == SHARDS, (
        "all are made again elsewhere"
    )
    cluster.hosts.restore("worker-1")
    until(lambda: cluster.node_has_ended("worker-1"), "the node that was given up to see it, and end", 60)
    assert cluster.await_gateway_end("worker-1", 60), "its gateway can't have ended well"
    cluster.start_node("worker-1")
    cluster.await_node("worker-1")
    cluster.start_gateways("worker-1", options=("--shards", str(SHARDS)))
    alone = {**JOB, "world_size": 1}
    back = cluster.trainer(cluster.gateway("worker-1"), "back", rank=0, epochs=1, step_s=0.0, **alone)
    received = [back.wait(90)]
    assert lost_and_repeated(received, EXAMPLES, 1) == (0, 0)
    assert received[0].end == {"accepted": EXAMPLES, "rejected": {}, "dropped": 0}


def test_a_host_that_joins_takes_shards_of_the_runs_that_come(cluster: HostCluster) -> None:
    cluster.hosts.add("worker-3")
    cluster.start_node("worker-3")
    cluster.await_node("worker-3")
    alone = {**JOB, "world_size": 1}
    trainer = cluster.trainer(cluster.gateway("head"), "joined", rank=0, epochs=1, step_s=0.0, **alone)
    received = trainer.wait(90)
    assert lost_and_repeated([received], EXAMPLES, 1) == (0, 0)
    assert received.end == {"accepted": EXAMPLES, "rejected": {}, "dropped": 0}
    assert cluster.shards().get("worker-3") == 1, "where nothing is yet, there is most room"


def test_down_from_any_host_leaves_nothing_on_all_of_them(cluster: HostCluster) -> None:
    command = [sys.executable, "-m", "sampler_service", "down"]
    done = cluster.hosts.run("worker-2", command, timeout_s=90, environment=ENVIRONMENT)
    assert (done.returncode, "is down" in done.stdout) == (0, True), done.stdout + done.stderr
    assert [cluster.await_gateway_end(name, 30) for name in ("head", "worker-1")] == [0, 0]

    def left() -> list[str]:
        hosts = ("head", "worker-1", "worker-2", "worker-3")
        return [f"{each} on {name}" for name in hosts for each in OURS if cluster.hosts.processes(name, f"ray::{each}")]

    until(lambda: not left(), "no actor of the service left", 20)
