"""Every command line in deploy/ is one that we have, with its options; where data lies is the same in all of them."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from sampler_service.cli import app
from tests.deploy.conftest import DEPLOY, ROOT

OURS = r"(?:^|\s|bin/)(?:sampler-service|python -m sampler_service) ([a-z]+\b.*)"

Parts = list[str]


def parsed(command: Parts) -> dict[str, Any]:
    """The options of a verb and its arguments, as our own command line takes them."""
    verb, *arguments = command
    ours = typer.main.get_command(app).commands[verb]  # pyright: ignore[reportAttributeAccessIssue]
    return ours.make_context(verb, arguments, resilient_parsing=False).params


def commands() -> Iterator[tuple[str, Parts]]:
    """(where, a verb of ours and its arguments) of every file that has one."""
    for file in sorted(DEPLOY.glob("docker/service*.Dockerfile")):
        (command,) = re.findall(r"^CMD (\[.*\])$", file.read_text(encoding="utf-8"), re.MULTILINE)
        yield file.name, yaml.safe_load(command)[1:]
    for name in ("compose.yaml", "compose.gpu.yaml"):
        yield name, yaml.safe_load(text_of(name))["services"]["sampler"]["command"][1:]
    (start,) = re.findall(r"^ExecStart=(.*)$", text_of("systemd/sampler-service.service"), re.MULTILINE)
    for options in re.findall(r"^#?SAMPLER_OPTIONS=(.*)$", text_of("systemd/sampler-service.env"), re.MULTILINE):
        yield "sampler-service.env", shlex.split(start.replace("$SAMPLER_OPTIONS", options))[1:]
    joined = text_of("README.md").replace("\\\n", "")
    for line in re.findall(OURS, "\n".join(re.findall(r"^```sh\n(.*?)^```", joined, re.MULTILINE | re.DOTALL))):
        yield "README.md", shlex.split(line, comments=True)


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("where", "command"), [pytest.param(*each, id=f"{each[0]} {each[1][0]}") for each in commands()]
)
def test_a_command_takes_the_options_it_is_given(where: str, command: Parts) -> None:
    parsed(command)


def test_an_option_that_is_not_ours_is_found() -> None:
    with pytest.raises(Exception, match="no-such-option"):
        parsed(["up", "--no-such-option"])


def test_every_file_that_starts_the_service_is_among_them() -> None:
    assert {where for where, (verb, *_) in commands() if verb == "up"} == {
        *("service.Dockerfile", "service-gpu.Dockerfile", "compose.yaml", "compose.gpu.yaml", "sampler-service.env"),
        "README.md",
    }
    verbs = Counter(verb for where, (verb, *_) in commands() if where == "README.md")
    assert (verbs["up"], verbs["ingest"]) == (2, 3), "both jobs; into compose's volume, a machine's folder, a cluster's"


def test_data_is_registered_where_the_service_looks_for_it() -> None:
    folders = {verb: {parsed(c)["data_dir"] for _, c in commands() if c[0] == verb} for verb in ("up", "ingest")}
    assert folders["up"] == folders["ingest"]
    assert "" not in folders["up"], "each says where"


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
