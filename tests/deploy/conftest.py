"""What the checks of deploy/ share: the tools they call, Kubernetes' manifests as rendered, our own command lines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.kustomize import render

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

Tool = Callable[..., str]


@pytest.fixture
def tool() -> Tool:
    """Runs a tool of the virtual environment or of the machine: what it says; what it finds fails the test."""
    return run_tool


def path_of(name: str) -> str:
    """Path of a tool. Without it a test is skipped. In CI it fails, which must not pass by having fewer tools, unless
    CI has said aloud that it can't have this one."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        missing = f"{name} is not on this machine, and what it checks goes unchecked"
        fails = os.environ.get("CI") and name not in os.environ.get("CI_WITHOUT", "").split()
        pytest.fail(missing) if fails else pytest.skip(missing)
    return found


def run_tool(name: str, *arguments: str | Path) -> str:
    done = subprocess.run([path_of(name), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session", params=["cpu", "cpu+data", "gpu"])
def overlay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An overlay, with a token and a component as an operator adds them."""
    name, _, component = request.param.partition("+")
    copy = tmp_path_factory.mktemp(name) / "kubernetes"
    shutil.copytree(DEPLOY / "kubernetes", copy)
    (copy / "base/ray-token.env").write_text("auth_token=" + 64 * "a" + "\n", encoding="utf-8")
    if component:
        with (copy / "overlays" / name / "kustomization.yaml").open("a", encoding="utf-8") as file:
            file.write(f"components: [../../components/{component}]\n")
    return copy / "overlays" / name


@pytest.fixture
def manifests(overlay: Path) -> list[dict[str, Any]]:
    """All that `kubectl apply -k` would send for it."""
    return render(overlay)


def given_up_after_s(variables: Mapping[str, Any]) -> float:
    """Seconds after which Ray takes a node for dead, by the variables of its head."""
    period_ms, timeout_ms, times = (
        int(variables[f"RAY_health_check_{name}"]) for name in ("period_ms", "timeout_ms", "failure_threshold")
    )
    return (period_ms + timeout_ms) * times / 1e3


def only(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one manifest of a kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found
