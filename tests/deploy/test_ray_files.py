"""The files for Ray itself, as Ray reads them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml

from sampler_client.config import Timeouts
from tests.deploy.conftest import DEPLOY, ROOT, given_up_after_s

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

AS_RAY_UP = """
import json, sys
from ray.autoscaler._private.util import prepare_config, validate_config
config = prepare_config(json.load(sys.stdin))
validate_config(config)
print(json.dumps(config))
"""

PIPES: dict[str, Any] = {"capture_output": True, "text": True, "check": False}


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "ray/cluster.yaml").read_text(encoding="utf-8"))


def prepared(cluster: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """What `ray up` makes of a cluster, after its own checks. Another process: Ray is out of reach in this one."""
    return subprocess.run([sys.executable, "-c", AS_RAY_UP], input=json.dumps(cluster), **PIPES)


def test_the_cluster_is_what_ray_up_takes(cluster) -> None:
    done = prepared(cluster)
    assert done.returncode == 0, done.stderr
    (node_type,) = json.loads(done.stdout.splitlines()[-1])["available_node_types"].values()
    assert (node_type["min_workers"], node_type["max_workers"]) == (2, 2)


def test_a_mistake_in_the_cluster_would_be_found(cluster) -> None:
    done = prepared(cluster | {"worker_setup": []})
    assert done.returncode == 1
    assert "worker_setup" in done.stderr


def test_all_workers_are_there_always(cluster) -> None:
    workers = len(cluster["provider"]["worker_ips"])
    assert cluster["min_workers"] == cluster["max_workers"] == workers


def test_every_node_starts_ray_with_the_token_that_was_sent(cluster) -> None:
    mounts = cluster["file_mounts"]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = cluster[key][-1]
        assert "RAY_AUTH_MODE=token" in start
        (path,) = re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", start)
        assert mounts[path] == "./ray-token"
        assert "ray start" in start


def test_a_node_is_given_up_before_trainers_give_up(cluster) -> None:
    start = cluster["head_start_ray_commands"][-1]
    assert given_up_after_s(dict(re.findall(r"(RAY_\w+)=(\S+)", start))) < Timeouts().reconnect_s / 2


def test_our_package_is_that_of_the_wheel_and_no_index_is_asked_for_it(cluster) -> None:
    _, dependencies, ours, _ = cluster["setup_commands"]
    wheel = f"~/sampler/wheels/gradient_sampler-{PROJECT['version']}-py3-none-any.whl"
    assert dependencies.split()[-1] == f"{wheel}[service]"
    assert ours.split()[-3:] == ["--no-deps", "--force-reinstall", wheel], "also one of the same version"
    assert not re.search(r"(?<!/)gradient-sampler", " ".join(cluster["setup_commands"]))


def test_what_is_sent_to_the_nodes_is_made_as_the_file_says(cluster) -> None:
    text = (DEPLOY / "ray/cluster.yaml").read_text(encoding="utf-8")
    for source in cluster["file_mounts"].values():
        made = re.search(rf"{re.escape(source)} # .*{re.escape(source.removeprefix('./'))}", text)
        assert made or (ROOT / source).exists(), source


def test_the_runtime_environment_installs_this_checkout_with_its_pins() -> None:
    environment = yaml.safe_load((DEPLOY / "ray/runtime_env.yaml").read_text(encoding="utf-8"))
    here = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
    assert environment["pip"] == [f"--constraint {here}/constraints.txt", f"{here}[service]"]
    for left_out in environment["excludes"]:
        needed = ("client", "sampler_service", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
        assert left_out.strip("/") not in needed
