"""The README's first command, made short: a service on Ray of its own, and a comparison through it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.ray
def test_the_demo_starts_a_service_compares_and_ends(tmp_path: Path) -> None:
    out = tmp_path / "demo.png"
    command = [sys.executable, "-m", "trainer_examples.demo", "--policies", "gradient_clustering", "--steps", "6"]
    options = ["--seeds", "1", "--out", str(out)]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    assert out.exists()
    assert "gradient_clustering" in done.stdout
    assert "where shuffle ends" in " ".join(done.stdout.split())


def test_a_set_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer_examples.demo", "--data", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stdout.startswith("DataError: ")
    assert done.stderr == ""
