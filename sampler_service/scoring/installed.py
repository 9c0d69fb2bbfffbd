"""Looks whether scorers can run here."""

from __future__ import annotations

from importlib.util import find_spec

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
