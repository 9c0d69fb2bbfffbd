"""Every example can be started as it says: its options read, with their defaults."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import typer

import trainer_examples

pytestmark = pytest.mark.ray  # one of them imports it

EXAMPLES = sorted(
    path.stem for path in Path(trainer_examples.__path__[0]).glob("*.py") if "typer.run(main)" in path.read_text()
)


def test_examples_are_found() -> None:
    assert {"data_weights", "retrieval", "train"} <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_defaults_are_values_of_its_options(name: str) -> None:
    app = typer.Typer()
    app.command()(import_module(f"trainer_examples.{name}").main)
    typer.main.get_command(app).make_context(name, [])
