"""The images: what hadolint says, what is copied into them, and the promise of the trainer's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.deploy.conftest import DEPLOY, ROOT, Tool

DOCKERFILES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(params=DOCKERFILES, ids=lambda file: file.name)
def dockerfile(request: pytest.FixtureRequest) -> str:
    return request.param.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file: Path, tool: Tool) -> None:
    tool("hadolint", file)


def test_hadolint_would_find_something(tmp_path: Path, tool: Tool) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN pip install ray\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="DL3006"):
        tool("hadolint", bad)


def test_what_an_image_copies_is_there_and_reaches_the_build(dockerfile: str) -> None:
    copied = [name for line in re.findall(r"^COPY (.*)$", dockerfile, re.MULTILINE) for name in line.split()[:-1]]
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in allowed


def test_an_image_installs_the_pinned_versions_of_extras_that_exist(dockerfile: str) -> None:
    ((constraints, extras),) = re.findall(r"--constraint (\S+) '\.\[([\w,-]+)\]'", dockerfile)
    assert constraints.startswith("constraints")
    assert {*extras.split(",")} <= {*PROJECT["optional-dependencies"]}


def test_an_image_runs_as_nobody_special_with_a_python_that_we_support(dockerfile: str) -> None:
    assert re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE) == ["1000"]
    (python,) = re.findall(r"^FROM python:([\d.]+)-slim-\w+$", dockerfile, re.MULTILINE)
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


@pytest.mark.parametrize("name", ["service", "service-gpu"])
def test_a_volume_for_data_sets_is_its_users(name: str) -> None:
    text = (DEPLOY / f"docker/{name}.Dockerfile").read_text(encoding="utf-8")
    user = re.findall(r"useradd --uid 1000 --create-home (\w+)", text)
    ((owner, at),) = re.findall(r"install --directory --owner=(\w+) (\S+)$", text, re.MULTILINE)
    (data_dir,) = re.findall(r'"--data-dir", "(\S+)"', text)
    assert user == [owner]
    assert Path(at) in Path(data_dir).parents


def test_faiss_gpu_is_pinned_where_faiss_cpu_is() -> None:
    rename = "sed 's/^faiss-cpu==/faiss-gpu==/'"
    assert rename in (DEPLOY / "docker/service-gpu.Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^faiss-cpu==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)


def test_no_image_says_which_gpus_it_sees(dockerfile: str) -> None:
    assert not re.search(r"^ENV.*NVIDIA_VISIBLE_DEVICES", dockerfile, re.MULTILINE)


def trainers_check() -> str:
    text = (DEPLOY / "docker/trainer.Dockerfile").read_text(encoding="utf-8")
    (check,) = re.findall(r'python -c "(.*)"$', text, re.MULTILINE)
    return check


def python_with(tmp_path: Path, *modules: str) -> subprocess.CompletedProcess[str]:
    """Run the trainer's check where of all that is installed only these are to be found."""
    for module in modules:
        spec = find_spec(module)
        assert spec is not None
        places = spec.submodule_search_locations or [spec.origin or ""]
        for place in [*places, *(other for other in [f"{places[0]}.libs"] if Path(other).exists())]:
            (tmp_path / Path(place).name).symlink_to(place)
    path = os.pathsep.join([str(ROOT / "client"), str(tmp_path)])
    command = [sys.executable, "-S", "-c", trainers_check()]  # -S: no site-packages
    return subprocess.run(command, env={"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, check=False)


CLIENT = ("numpy", "grpc", "google", "typing_extensions")


def test_a_trainer_without_ray_is_built(tmp_path: Path) -> None:
    done = python_with(tmp_path, *CLIENT)
    assert done.returncode == 0, done.stderr


def test_a_trainer_with_ray_is_not_built(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/__init__.py").touch()
    done = python_with(tmp_path, *CLIENT)
    assert done.returncode == 1
    assert "['ray']" in done.stderr


def test_a_trainer_whose_client_lacks_something_is_not_built(tmp_path: Path) -> None:
    done = python_with(tmp_path, "numpy")
    assert done.returncode == 1


def test_tags_are_the_version_of_the_project() -> None:
    tags: list[str] = []
    for file in (file for file in DEPLOY.rglob("*") if file.suffix in (".yaml", ".Dockerfile", ".md")):
        text = file.read_text(encoding="utf-8")
        tags += re.findall(r"gradient-sampler/[\w-]+:([\w.]+)", text) + re.findall(r"newTag: (\S+)", text)
    assert {*tags} == {PROJECT["version"]}
