"""Tables of the examples keep their figures whole where they can, and a spread is that of a sample."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from trainer_examples.results import new_table, spread


def shown(width: int, *, left: int, wrap: bool = False) -> list[str]:
    table = new_table("title", "method", "rule", "seconds", left=left, wrap=wrap)
    table.add_row("a method of many words", "one", "12.5 ± 0.5 of them all")
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return [line.strip() for line in console.export_text().splitlines() if line.strip()]


def test_figures_stay_on_one_line_and_words_give_way() -> None:
    assert shown(60, left=2)[0] == "title"
    (wide,) = shown(60, left=2)[3:]
    assert re.split(" {2,}", wide) == ["a method of many words", "one", "12.5 ± 0.5 of them all"]
    narrow = shown(40, left=2)[3:]
    assert re.split(" {2,}", narrow[0]) == ["a method", "one", "12.5 ± 0.5 of them all"]
    assert narrow[1:] == ["of many", "words"]


def test_figures_wrap_where_they_may() -> None:
    narrow = shown(40, left=1, wrap=True)[3:]
    assert "12.5 ± 0.5 of them all" not in narrow[0]
    assert not any("…" in line for line in narrow)


def test_a_spread_of_one_run_is_none() -> None:
    assert spread([3.0]) == (3.0, 0.0)
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
