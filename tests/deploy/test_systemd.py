"""The unit, as systemd reads it."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from tests.deploy.conftest import DEPLOY, Tool

UNIT = DEPLOY / "systemd/sampler-service.service"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with a program that is on this machine: systemd looks whether it is there."""
    copy = tmp_path / UNIT.name
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    copy.write_text(text, encoding="utf-8")
    return copy


def test_systemd_takes_the_unit(installed: Path, tool: Tool) -> None:
    assert tool("systemd-analyze", "verify", installed) == ""  # it passes over what it does not understand, and says so


def test_systemd_would_find_a_mistake(installed: Path, tool: Tool) -> None:
    installed.write_text(installed.read_text(encoding="utf-8").replace("KillMode=mixed", "KillMode=nobody"), "utf-8")
    assert "kill mode" in tool("systemd-analyze", "verify", installed)


def test_a_stop_reaches_the_gateway_alone_and_waits_for_it() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    unit.read(UNIT, encoding="utf-8")
    service = unit["Service"]
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) >= 15
    assert service["Restart"] == "on-failure"
    assert service["User"] == "sampler"
