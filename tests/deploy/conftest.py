"""What the checks of deploy/ share: the tools they call, Kubernetes' manifests as rendered, our own command lines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"

Tool = Callable[..., str]


@pytest.fixture
def tool() -> Tool:
    """Runs a tool of the virtual environment or of the machine: what it says; what it finds fails the test."""
    return run_tool


def run_tool(name: str, *arguments: str | Path) -> str:
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        missing = f"{name} is not on this machine, and what it checks in deploy/ goes unchecked"
        # CI must not pass by having fewer tools.
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session", params=["cpu", "gpu"])
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All that `kubectl apply -k` would send for an overlay, with a token as an operator makes it."""
    copy = tmp_path_factory.mktemp(request.param) / "kubernetes"
    shutil.copytree(DEPLOY / "kubernetes", copy)
    (copy / "base/ray-token.env").write_text("auth_token=" + 64 * "a" + "\n", encoding="utf-8")
    rendered = run_tool("kubectl", "kustomize", copy / "overlays" / request.param)
    return list(yaml.safe_load_all(rendered))


def only(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one manifest of a kind."""
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found
