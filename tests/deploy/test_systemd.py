"""The unit, as systemd reads it."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.conftest import DEPLOY, Tool
from tests.deploy.test_commands import parsed

UNIT, NODE = DEPLOY / "systemd/sampler-service.service", DEPLOY / "systemd/ray-node.service"


@pytest.fixture(params=[UNIT, NODE], ids=lambda unit: unit.stem)
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit with a program that is on this machine: systemd looks whether it is there."""
    copy = tmp_path / request.param.name
    text = request.param.read_text(encoding="utf-8")
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE), encoding="utf-8")
    return copy


def test_systemd_takes_the_unit(installed: Path, tool: Tool) -> None:
    assert tool("systemd-analyze", "verify", installed) == ""  # it passes over what it does not understand, and says so


def test_systemd_would_find_a_mistake(installed: Path, tool: Tool) -> None:
    installed.write_text(installed.read_text(encoding="utf-8").replace("KillMode=mixed", "KillMode=nobody"), "utf-8")
    assert "kill mode" in tool("systemd-analyze", "verify", installed)


def service_of(unit: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    parser.read(unit, encoding="utf-8")
    return parser["Service"]


def test_a_stop_reaches_the_gateway_alone_and_waits_for_it() -> None:
    service = service_of(UNIT)
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) >= 15
    assert service["Restart"] == "on-failure"
    assert service["User"] == "sampler"


def test_data_sets_are_where_the_units_may_write() -> None:
    lines = (DEPLOY / "systemd/sampler-service.env").read_text(encoding="utf-8")
    options = re.findall(r"^#?SAMPLER_OPTIONS=(.*)$", lines, re.MULTILINE)
    folders = {Path("/var/lib", service_of(unit)["StateDirectory"]) for unit in (UNIT, NODE)}
    assert len(options) == 2
    for each in options:
        assert folders == {Path(parsed(["up", *each.split()])["data_dir"]).parent}


def test_a_node_that_ended_itself_is_started_anew_as_the_user_of_the_service() -> None:
    node = service_of(NODE)
    assert (node["Restart"], node["User"]) == ("always", service_of(UNIT)["User"])
    assert node["ExecStart"].startswith("/opt/sampler/bin/ray start --block ")


def test_ray_takes_the_options_of_a_node() -> None:
    lines = (DEPLOY / "systemd/ray-node.env").read_text(encoding="utf-8")
    options = re.findall(r"^#?RAY_OPTIONS=(.*)$", lines, re.MULTILINE)
    assert len(options) == 2
    code = "import sys; from ray.scripts.scripts import start; start.make_context('start', sys.argv[1:])"
    for each in options:
        done = subprocess.run([sys.executable, "-c", code, "--block", *each.split()], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_both_units_read_the_token_where_the_readme_puts_it() -> None:
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    (path,) = re.findall(r"install -o sampler -g sampler -m 400 ray-token (\S+)", readme)
    for name in ("ray-node.env", "sampler-service.env"):
        assert f"RAY_AUTH_TOKEN_PATH={path}\n" in (DEPLOY / "systemd" / name).read_text(encoding="utf-8")
