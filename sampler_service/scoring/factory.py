"""Finds the operator's factory by its name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sampler_service.errors import ConfigError

NEEDED = ("torch", "safetensors")


def check_installed() -> None:
    """Raise ConfigError unless what scorers run on is installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--scorers needs {' and '.join(missing)}, which this environment lacks; install "
            "'gradient-sampler[service,torch]', or leave --scorers out"
        )


def find_factory(name: str) -> Callable[[str], Any]:
    """The factory of a "package.module:name", looked for in the working directory too.

    Raises:
        ConfigError: there is none of that name, or its module fails.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise ConfigError(f"--scoring must be package.module:factory, got {name!r}")
    if str(Path.cwd()) not in sys.path:  # a console script's path begins elsewhere
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(
            f"--scoring {name!r}: {type(error).__name__}: {error}; it must be importable where the service runs"
        ) from error
    if not callable(found):
        raise ConfigError(f"--scoring {name!r} is a {type(found).__name__}, not a function of the dataset's name")
    return found
