"""How a service ends: on SIGTERM, on `stop`, and on a cluster that is not its own."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

import sampler_client as sampler
from sampler_service.embedded import running_service
from sampler_service.errors import ConfigError, Unavailable
from sampler_service.runtime.joining import TOKEN_ADVICE, connect
from tests.cluster.support import OPEN_CLUSTER, OURS, actors, answers, cli, free_ports, ray_head, until


@pytest.fixture
def ray_cluster() -> Iterator[tuple[str, int]]:
    """Address and process of a Ray cluster that belongs to somebody else."""
    with ray_head() as head:
        yield head


def first_batch(address: str, attach) -> sampler.SampledLoader:
    """A trainer with an open stream and a batch in its hands."""
    loader = attach("open", address=address, policy="shuffle")
    next(iter(loader))
    return loader


def test_sigterm_with_an_open_stream_drains_and_leaves_no_process(attach):
    with running_service() as service:
        first_batch(service, attach)
        family = [psutil.Process(service.pid), *psutil.Process(service.pid).children(recursive=True)]
        assert any("raylet" in process.name() for process in family)
        started = time.monotonic()
        psutil.Process(service.pid).send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0, service.log.read_text()
        assert time.monotonic() - started < 15
        until(lambda: not any(p.is_running() and p.status() != "zombie" for p in family), "no process left", 10)
        log = service.log.read_text()
        assert log.rstrip().endswith("stopped")
        assert "Traceback" not in log
        assert "INFO faiss" not in log


def test_gateways_of_a_cluster_share_its_runs_and_the_last_to_leave_ends_them(attach, ray_cluster):
    address, head = ray_cluster
    joining = {"arguments": ("--address", address), "environment": OPEN_CLUSTER}
    with running_service(**joining) as first, running_service(**joining) as second:
        here, there = (
            attach("shared", address=gateway, policy="shuffle", rank=rank, world_size=2)
            for rank, gateway in enumerate((first, second))
        )
        going_on = iter(there)
        ids = next(going_on)[1].example_ids.tolist()
        for _, batch in here:
            ids += batch.example_ids.tolist()
            batch.report(np.ones(len(batch)))
        here.flush()
        assert first.stop() == 0, first.log.read_text()  # the one that started the registry and the run
        ids += [i for _, batch in going_on for i in batch.example_ids.tolist()]
        assert sorted(ids) == list(range(64))
        with sampler.SamplerClient(second) as client:
            assert client.runs() == ["shared"]
            assert client.statistics("shared").reported_rows == 32
        assert len(actors(head, "Gateway")) == len(actors(head, "RunHost")) == 1
        stopped = cli("stop", second)
        assert (stopped.returncode, stopped.stdout.strip()) == (0, f"{second} is stopping")
        assert second.process.wait(30) == 0, second.log.read_text()
    until(lambda: not any(actors(head, title) for title in OURS), "the cluster to be empty of us", 20)
    assert answers(address)


def test_a_cluster_that_is_not_there_is_one_line_and_an_exit_code():
    (port,) = free_ports(1)
    joining = cli("up", "--port", "0", "--address", f"127.0.0.1:{port}")
    assert joining.returncode == 1
    said = (joining.stdout + joining.stderr).strip().splitlines()
    assert said[-1].startswith(f"Unavailable: no Ray cluster at '127.0.0.1:{port}'")
    assert said[-1].endswith("start one with `ray start --head`")
    assert len(said) == 2


def test_a_ray_of_this_machine_that_is_too_old_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr("ray.__version__", "2.9.3")
    with pytest.raises(ConfigError, match=r"ray 2\.9\.3 is installed, 2\.55 is the oldest that serves: pip install"):
        connect(None, "nobody")


def test_a_token_that_is_missing_or_wrong_is_one_line_with_what_to_do(tmp_path):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 64 * "a"}
    missing = {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    with ray_head(environment=token) as (address, _):
        for environment, words in (
            (missing, f"the Ray cluster at '{address}' asks for a token: "),
            (
                {**token, "RAY_AUTH_TOKEN": 64 * "b"},
                f"no Ray cluster at '{address}' that can be joined: Failed to connect",
            ),
        ):
            refused = cli(
                "up", "--port", "0", "--no-page", "--address", address, environment=environment, timeout_s=120
            )
            assert refused.returncode == 1
            assert "Traceback" not in refused.stdout + refused.stderr
            said = refused.stdout.strip().splitlines()[-1]
            assert said.startswith(f"Unavailable: {words}")
            assert said.endswith(f"{TOKEN_ADVICE}")


@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "closes"])
def test_a_port_that_is_not_ray_s_is_told_apart_from_a_cluster_that_is_late(hangs):
    with socket.create_server(("127.0.0.1", 0)) as other:
        if not hangs:
            threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"no Ray cluster at '{address}': somebody else listens there"):
            connect(address, "nobody")


def test_a_service_that_does_not_start_in_time_is_stopped_and_its_log_is_told():
    with pytest.raises(Unavailable, match=r"does not serve after 0\.01 s"), running_service(timeout_s=0.01):
        pass
