"""Every command line in deploy/ is one that we have, with its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer.main
import yaml

from sampler_service.cli import app
from tests.deploy.conftest import DEPLOY, ROOT

OURS = r"(?:sampler-service|python -m sampler_service) up\b.*"

Parts = list[str]


def up(arguments: Parts) -> None:
    """Parse the arguments of `up`, as our own command line does."""
    command = typer.main.get_command(app).commands["up"]  # pyright: ignore[reportAttributeAccessIssue]
    command.make_context("up", list(arguments), resilient_parsing=False)


def commands() -> Iterator[tuple[str, Parts]]:
    """(where, arguments of `up`) of every file that starts the service."""
    for file in sorted(DEPLOY.glob("docker/service*.Dockerfile")):
        (command,) = re.findall(r"^CMD (\[.*\])$", file.read_text(encoding="utf-8"), re.MULTILINE)
        yield file.name, after_up(yaml.safe_load(command))
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    yield "compose.yaml", after_up(services["sampler"]["command"])
    (start,) = re.findall(r"^ExecStart=(.*)$", text_of("systemd/sampler-service.service"), re.MULTILINE)
    for options in re.findall(r"^#?SAMPLER_OPTIONS=(.*)$", text_of("systemd/sampler-service.env"), re.MULTILINE):
        yield "sampler-service.env", after_up(shlex.split(start.replace("$SAMPLER_OPTIONS", options)))
    joined = text_of("README.md").replace("\\\n", "")
    for line in re.findall(OURS, "\n".join(re.findall(r"^```sh\n(.*?)^```", joined, re.MULTILINE | re.DOTALL))):
        yield "README.md", after_up(shlex.split(line, comments=True))


def after_up(command: Parts) -> Parts:
    return command[command.index("up") + 1 :]


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(("where", "arguments"), [pytest.param(*each, id=each[0]) for each in commands()])
def test_the_service_takes_the_options_it_is_started_with(where: str, arguments: Parts) -> None:
    up(arguments)


def test_an_option_that_is_not_ours_is_found() -> None:
    with pytest.raises(Exception, match="no-such-option"):
        up(["--no-such-option"])


def test_every_file_that_starts_the_service_is_among_them() -> None:
    wheres = [where for where, _ in commands()]
    assert {*wheres} == {
        *("service.Dockerfile", "service-gpu.Dockerfile", "compose.yaml", "sampler-service.env", "README.md")
    }
    assert wheres.count("README.md") == 2, "both jobs"


@pytest.mark.parametrize("file", ["docker/trainer.Dockerfile", "compose.yaml"])
def test_the_example_trainer_is_one_of_ours_and_takes_its_options(file: str) -> None:
    command = re.findall(r"\[(\"?python\"?,.*)\]", text_of(file))[-1]
    _, dash_m, module, *options = yaml.safe_load(f"[{command}]")
    assert dash_m == "-m"
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    for option in filter(lambda option: option.startswith("--"), options):
        assert f"    {option.removeprefix('--')}: Annotated" in source


def test_the_ports_are_those_of_the_command_line() -> None:
    options = {name: option.default for name, option in options_of_up().items()}
    ports = {options["port"], options["page_port"]}
    assert ports == {50051, 50052}
    for file in ("docker/service.Dockerfile", "docker/service-gpu.Dockerfile"):
        assert f"EXPOSE {' '.join(map(str, sorted(ports)))}\n" in text_of(file)


def options_of_up() -> dict:
    return {option.name: option for option in typer.main.get_command(app).commands["up"].params}


def test_what_readme_links_to_is_all_that_is_here() -> None:
    links = re.findall(r"\]\(([\w./-]+)\)", text_of("README.md"))
    for file in sorted(file for file in DEPLOY.rglob("*") if file.is_file() and file.suffix not in (".pyc", ".json")):
        name = str(file.relative_to(DEPLOY))
        above = {str(parent) for parent in Path(name).parents} | {name}
        assert name in ("README.md", "kubernetes/base/ray-token.env") or above & {*links}, (
            f"{name} is explained nowhere"
        )


def test_secrets_are_ignored_by_git() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {"ray-token", "ray-token.env"} <= {*ignored}
