"""Finds what an operator names on the command line: "package.module:factory"."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from sampler_service.errors import ConfigError


def find_factory(option: str, name: str) -> Callable[[str], Any]:
    """The factory of a "package.module:name", looked for in the working directory too.

    Args:
        option: of the command line, for errors.
        name: what it was given.

    Raises:
        ConfigError: there is none of that name, or its module fails.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise ConfigError(f"{option} must be package.module:factory, got {name!r}")
    if str(Path.cwd()) not in sys.path:  # a console script's path begins elsewhere
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(
            f"{option} {name!r}: {type(error).__name__}: {error}; it must be importable where the service runs"
        ) from error
    if not callable(found):
        raise ConfigError(f"{option} {name!r} is a {type(found).__name__}, not a function of the dataset's name")
    return found
