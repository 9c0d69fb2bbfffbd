"""One version, everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import sampler_client
import sampler_service

ROOT = Path(__file__).parents[2]


def test_changelog_project_and_both_packages_have_the_same_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert sampler_client.__version__ == sampler_service.__version__ == project
    versions = re.findall(r"^## \[?(\d+\.\d+\.\d+\S*?)\]?(?: |$)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions, "CHANGELOG.md has no version heading such as `## [0.1.0] - 2026-11-21`"
    assert versions[0] == project
