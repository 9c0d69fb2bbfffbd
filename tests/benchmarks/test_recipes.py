"""What the service adds to a recipe is measured on the example itself, at equal steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.recipes import __main__ as recipes
from tests.served import ServedService


def test_each_variant_runs_the_example_for_as_many_steps(
    served: ServedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "STEPS", 5)
    monkeypatch.setattr(recipes, "EPOCHS", 3)
    recipes.make_data(tmp_path)
    taken = {
        variant: recipes.measure("pytorch", variant, served.address, tmp_path) for variant in ("loader", "sketches")
    }
    assert [len(seconds) for seconds in taken.values()] == [1, 1]  # neither the first nor the last
    (run,) = served.service.runs()
    said = served.service.statistics(run)
    assert (said.batches, said.reported_rows) == (3 * 5, 3 * 5 * 64)


def test_the_overhead_is_that_of_the_medians() -> None:
    row = recipes.rows_of("ddp", {"loader": [1.0, 2.0, 9.0], "losses": [2.1], "sketches": [2.0, 3.0]})
    assert (row["processes"], row["overhead_losses"], row["overhead"]) == (2, 1.05, 1.25)
