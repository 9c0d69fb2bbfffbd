"""Services on a Ray cluster that is not theirs: side by side, found again, refused, and ended without a trace."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator

import pytest

import sampler_client as sampler
from sampler_service.config import ServiceConfig
from sampler_service.errors import ConfigError
from sampler_service.runtime import placement
from tests import scoring_factories as factories
from tests.cluster.support import (
    OPEN_CLUSTER,
    PATIENT,
    actors,
    cli,
    epoch,
    joining,
    kill,
    nothing_left,
    python,
    ray_head,
    until,
)
from tests.support import make_config

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[str, int]]:
    """Address and process of a Ray cluster with one GPU, or so it says."""
    with ray_head("--num-gpus=1") as head:
        yield head


def test_services_of_two_names_share_a_cluster_and_down_ends_one_of_them(attach, head):
    address, pid = head
    with joining(address, "--name", "one") as one, joining(address, "--name", "two", "--gpus-per-shard", "0.5") as two:
        assert len(epoch(attach("same", address=one, policy="shuffle", examples=64))) == 64
        assert len(epoch(attach("same", address=two, policy="shuffle", examples=40))) == 40
        other = cli(
            "up", "--port", "0", "--address", address, "--name", "one", "--shards", "2", environment=OPEN_CLUSTER
        )
        assert other.returncode == 1
        assert "Conflict: service 'one' on this cluster runs with shards=1, asked for 2" in other.stdout
        down = cli("down", "--address", address, "--name", "two", environment=OPEN_CLUSTER)
        assert (down.returncode, down.stdout.strip()) == (0, f"service two on {address} is down"), down.stderr
        assert two.process.wait(30) == 0, two.log.read_text()
        assert [len(actors(pid, title)) for title in ("Gateway", "Registry", "RunHost", "Shard")] == [1, 1, 1, 1]
        with sampler.SamplerClient(one, timeouts=PATIENT) as client:
            assert client.runs() == ["same"]
        again = cli("down", "--address", address, "--name", "two", environment=OPEN_CLUSTER)
        assert again.returncode == 1
        assert "NotFound: no service 'two' on the Ray cluster" in again.stdout
        assert "there are ['one']" in again.stdout
    nothing_left(head)


def test_gateways_that_are_killed_leave_runs_to_be_found_and_the_last_to_leave_ends_them(attach, head):
    address, pid = head
    with joining(address) as first:
        loader = attach("kept", address=first, policy="shuffle")
        epoch(loader)
        kill(first)
    until(lambda: not actors(pid, "Gateway"), "the gateway to end with the process that started it")
    with joining(address) as killed, joining(address) as second:
        with sampler.SamplerClient(second, timeouts=PATIENT) as client:
            assert client.statistics("kept").reported_rows == 64, "it was found again, with what it knew"
        kill(killed)
        until(lambda: len(actors(pid, "Gateway")) == 1, "one gateway to be left")
        assert second.stop() == 0, second.log.read_text()
    nothing_left(head)


def test_down_ends_what_a_killed_gateway_left(attach, head):
    address, _ = head
    with joining(address) as service:
        epoch(attach("left", address=service, policy="shuffle"))
        kill(service)
    down = cli("down", "--address", address, environment=OPEN_CLUSTER)
    assert down.returncode == 0, down.stdout
    nothing_left(head)


def test_a_registry_that_is_killed_finds_its_runs_again(attach, service):
    loader = attach("outlives", policy="shuffle")
    assert len(epoch(loader)) == 64
    (registry,) = actors(service.pid, "Registry")
    hosts = {process.pid for process in actors(service.pid, "RunHost")}
    registry.kill()
    assert len(epoch(loader)) == 64, "batches don't pass by the registry"
    with sampler.SamplerClient(service, timeouts=PATIENT) as client:
        until(lambda: "outlives" in _runs(client), "the run to be found again")
        assert client.statistics("outlives").reported_rows == 2 * 64
    assert {process.pid for process in actors(service.pid, "RunHost")} == hosts
    assert len(epoch(attach("after", policy="shuffle"))) == 64, "and opens others"


def test_a_registry_that_is_killed_knows_which_runs_were_closed(attach, service):
    former = iter(attach("ended", policy="shuffle"))
    next(former)
    with sampler.SamplerClient(service, timeouts=PATIENT) as client:
        client.close_run("ended")
        (registry,) = actors(service.pid, "Registry")
        registry.kill()
        with pytest.raises(sampler.Stale, match="run 'ended' was closed"):
            list(former)
        assert "ended" not in client.runs(), "its trainer did not open it again"


def _runs(client: sampler.SamplerClient) -> list[str]:
    try:
        return client.runs()
    except sampler.ServiceUnavailable:
        return []


def test_gpus_that_a_cluster_lacks_are_named_at_once(attach, head):
    address, _ = head
    with joining(address, "--gpus-per-shard", "1", shards=2) as service:
        assert "no run can be opened yet: the shards of each run: asked for 2 x 1 GPU" in service.log.read_text()
        with pytest.raises(sampler.ConfigError) as refused:
            attach("no-gpus", address=service)
        said = str(refused.value)
        assert "the shards of run 'no-gpus': asked for 2 x 1 GPU and 0.322 GB of memory" in said
        assert "for 1 of which the cluster has room beside 1 x 0.322 GB of memory of the actor of run" in said
        assert "its nodes having 1 GPU and" in said
        assert "request_resources(bundles=[{'GPU': 1.0}, {'GPU': 1.0}])" in said
    nothing_left(head)


def test_gpus_that_others_have_are_named_and_nothing_waits_for_them(attach, head, monkeypatch):
    address, _ = head
    with joining(address, "--gpus-per-shard", "1") as service:
        attach("has-it", address=service, policy="shuffle")
        with pytest.raises(sampler.Busy, match=r"asked for 1 x 1 GPU .* which the cluster has but others use"):
            attach("wants-it", address=service, policy="shuffle")
        with sampler.SamplerClient(service, timeouts=PATIENT) as client:
            client.close_run("has-it")
        assert len(epoch(attach("wants-it", address=service, policy="shuffle"))) == 64
    nothing_left(head)


def test_scorers_whose_gpus_others_have_are_named_and_started_when_there_is_room(attach, head):
    address, _ = head
    scoring = ("--scorers", "1", "--scoring", "tests.scoring_factories:numbers", "--scorer-gpus", "1")
    with joining(address, "--gpus-per-shard", "1") as one, joining(address, "--name", "two", *scoring) as two:
        attach("has-it", address=one, policy="shuffle")
        soon = dataclasses.replace(PATIENT, reconnect_s=3)
        loader = attach("wants-it", address=two, policy="shuffle", timeouts=soon)
        loader.publish(factories.model(1))
        with pytest.raises(
            sampler.Busy, match=r"the scorers of run 'wants-it': asked for 1 x 1 GPU, which the cluster"
        ):
            loader.flush()
        with sampler.SamplerClient(one, timeouts=PATIENT) as client:
            client.close_run("has-it")
        loader.publish(factories.model(1))
        loader.flush()
        with sampler.SamplerClient(two, timeouts=PATIENT) as client:
            until(lambda: client.statistics("wants-it").scored_rows == 64, "all examples to be scored")
    nothing_left(head)


def test_a_cluster_of_one_s_own_without_gpus_is_refused_before_it_serves():
    refused = cli("up", "--port", "0", "--no-page", "--gpus-per-shard", "1000", timeout_s=120)
    assert refused.returncode == 1
    assert "ConfigError: the shards of each run: asked for 1 x 1000 GPU" in refused.stdout
    assert "Traceback" not in refused.stdout + refused.stderr


def test_another_version_of_ray_is_named_with_what_to_do(head):
    address, _ = head  # which takes nobody after this
    python(f"""
import json, ray
ray.init(address={address!r}, logging_level="error")
gcs = ray._private.worker.global_worker.gcs_client
key, space = b"CLUSTER_METADATA", ray._private.ray_constants.KV_NAMESPACE_CLUSTER
metadata = json.loads(gcs.internal_kv_get(key, space))
gcs.internal_kv_put(key, json.dumps(metadata | {{"ray_version": "2.1.0"}}).encode(), True, space)
print("done")
""")
    refused = cli("up", "--port", "0", "--no-page", "--address", address, environment=OPEN_CLUSTER)
    assert refused.returncode == 1
    said = refused.stdout.strip().splitlines()[-1]
    assert "Version mismatch: The cluster was started with: Ray: 2.1.0" in said
    assert said.endswith("install the same versions of Ray and Python here as on the cluster's nodes")


def test_a_machine_without_ray_is_told_what_to_install():
    code = "import sys; sys.modules['ray'] = None; sys.argv[1:] = ['up']; from sampler_service.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert (
        done.stdout.splitlines()[-1]
        == "ConfigError: the service needs 'ray', which is not installed: pip install '.[service]'"
    )


@pytest.mark.parametrize(
    ("nodes", "gpus", "shards", "fits"),
    [
        ([{"GPU": 2.0}], 0.5, 4, True),
        ([{"GPU": 2.0}], 0.6, 3, False),  # a share is one of a single GPU
        ([{"GPU": 3.0}, {"GPU": 1.0}], 2.0, 2, False),  # and several are those of one node
        ([{"GPU": 3.0}, {"GPU": 2.0}], 2.0, 2, True),
        ([{}, {"CPU": 8.0}], 1.0, 1, False),
        ([], 1.0, 1, False),
        ([{}], 0.0, 4, True),
    ],
)
def test_room_is_counted_by_node_and_by_gpu(monkeypatch, nodes, gpus, shards, fits):
    listed = [{"Alive": True, "Resources": {"memory": 2e9, **node}} for node in nodes]
    monkeypatch.setattr(placement.ray, "nodes", lambda: [*listed, {"Alive": False, "Resources": {"GPU": 64.0}}])
    need = [placement.shards(ServiceConfig(gpus_per_shard=gpus, shards=shards), make_config(100))]
    if fits:
        placement.check_room(need)
    else:
        with pytest.raises(ConfigError, match="asked for"):
            placement.check_room(need)


def on_nodes(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    listed = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr(placement.ray, "nodes", lambda: listed)


def test_memory_that_no_node_has_is_named(monkeypatch):
    on_nodes(monkeypatch, {"memory": 8.2e9}, {"memory": 8.2e9})
    large = placement.shards(ServiceConfig(shards=3), make_config(3 * 52_000_000, sketch_dim=64))
    with pytest.raises(ConfigError, match=r"asked for 3 x 8\.17 GB of memory, for 2 of which the cluster has room"):
        placement.check_room([large])


def test_a_run_needs_room_for_its_actor_beside_that_of_its_shards(monkeypatch):
    service, run = ServiceConfig(shards=2), make_config(10**7, sketch_dim=64)
    needs = [placement.shards(service, run), placement.run_actor(run)]
    shard, actor = (need.bundle["memory"] for need in needs)
    on_nodes(monkeypatch, {"memory": shard}, {"memory": shard + actor})
    placement.check_room(needs)
    on_nodes(monkeypatch, {"memory": shard}, {"memory": shard}, {"memory": actor / 2})
    with pytest.raises(
        ConfigError, match=r"the actor of run 'run': asked for 1 x 2.04 GB .* for 0 of which .* beside 2 x"
    ):
        placement.check_room(needs)


def test_shards_and_scorers_share_the_gpus_that_there_are(monkeypatch):
    service = ServiceConfig(shards=2, gpus_per_shard=0.5, scorers=1, scorer_gpus=1.0, scoring="some:where")
    needs = [placement.shards(service), placement.scorers(service)]
    on_nodes(monkeypatch, {"GPU": 2.0})
    placement.check_room(needs)
    on_nodes(monkeypatch, {"GPU": 1.0})
    with pytest.raises(ConfigError, match=r"the shards of each run: .* for 0 of .* beside 1 x 1 GPU of the scorers"):
        placement.check_room(needs)


def test_bundles_that_lost_their_node_are_named(monkeypatch):
    monkeypatch.setattr(placement.ray, "nodes", lambda: [{"NodeID": "b", "Alive": True, "Resources": {}}])
    shards = {
        "name": "ns:run:token",
        "state": "RESCHEDULING",
        "bundles": {0: {"memory": 4e8}, 1: {"memory": 4e8, "GPU": 1.0}},
        "bundles_to_node_id": {0: "b", 1: ""},  # as Ray has it
    }
    others = {**shards, "name": "ns:other:token"}
    monkeypatch.setattr(placement, "placement_group_table", lambda: {"1": shards, "2": others})
    assert placement.unplaced("ns:run:token") == ["1 GPU and 0.4 GB of memory for number 1 of its shards"]
