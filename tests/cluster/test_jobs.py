"""The service as a job of Ray's, with the environment that is checked in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cluster.support import OPEN_CLUSTER, OURS, actors, beside, cli, free_ports, ray_head, until

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(600)


def job(url: str, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`ray job`, from the checkout as the README has it."""
    command = [beside("ray"), "job", verb, "--address", url, *arguments]
    environment = {**os.environ, **OPEN_CLUSTER}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=False)


def test_a_job_with_the_checked_in_environment_serves_drains_when_it_is_stopped_and_leaves_nothing(tmp_path):
    (dashboard,) = free_ports(1)
    url, ready = f"http://127.0.0.1:{dashboard}", tmp_path / "ready"
    patient = {**OPEN_CLUSTER, "RAY_JOB_STOP_WAIT_TIME_S": "30"}
    with ray_head("--include-dashboard=true", f"--dashboard-port={dashboard}", environment=patient) as (_, head):
        until(lambda: job(url, "list").returncode == 0, "the jobs' server to answer")
        up = ["python", "-m", "sampler_service", "up", "--address", "auto", "--port", "0", "--no-page"]
        environment = ("--working-dir", ".", "--runtime-env", "deploy/ray/runtime_env.yaml")
        named = ("--submission-id", "gateway", "--no-wait")

        def submitted() -> bool:
            said = job(url, "submit", *named, *environment, "--", *up, "--ready-file", str(ready))
            assert said.returncode == 0 or "No available agent" in said.stderr, said.stderr
            return said.returncode == 0

        until(submitted, "Ray's agent of jobs to be there")

        def serves() -> bool:
            status = job(url, "status", "gateway").stdout
            assert "FAILED" not in status, status + job(url, "logs", "gateway").stdout
            return ready.exists()

        until(serves, "the job to serve", 400)
        shown = cli("status", ready.read_text().split()[0])
        assert (shown.returncode, "serves no run yet" in shown.stdout) == (0, True), shown.stdout
        assert job(url, "stop", "gateway").returncode == 0
        assert job(url, "logs", "gateway").stdout.rstrip().endswith("stopped"), "it drained"
        until(lambda: not any(actors(head, name) for name in OURS), "the cluster to be empty of us", 20)
