"""The committed protobuf code is what `make proto` makes of the proto."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "client/sampler_client/_pb"


def recipe() -> list[str]:
    """Arguments of protoc in the Makefile."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    found = re.search(r"grpc_tools\.protoc (.*)", text)
    assert found, "the Makefile has no proto target any more"
    return shlex.split(found.group(1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("proto")
    arguments = [re.sub(r"(_out)=client$", rf"\1={out}", argument) for argument in recipe()]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], cwd=ROOT, check=True)
    return out / "sampler_client/_pb"


@pytest.mark.parametrize("name", ["sampler_pb2.py", "sampler_pb2.pyi", "sampler_pb2_grpc.py"])
def test_the_generated_code_is_fresh(made: Path, name: str):
    assert (GENERATED / name).read_bytes() == (made / name).read_bytes(), "run `make proto`"


def test_nothing_else_is_generated(made: Path):
    assert {path.name for path in made.iterdir()} == {
        path.name for path in GENERATED.iterdir() if path.suffix in (".py", ".pyi") and path.name != "__init__.py"
    }
