"""Which runs there are, and their results so far: one line of JSON each, so that a stopped benchmark goes on.

Every method runs with every learning rate and seed. What counts are its runs at its best rate, which for accuracy is
another than for the training loss: the one with the highest mean accuracy, over the seeds, at the end and on examples
that are neither trained nor tested on; or the one with the lowest mean training loss at the end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.training.loop import Curve
from benchmarks.training.tasks import Setting

Merit = Callable[[Sequence[Curve]], float]
"""of the runs at one learning rate; the highest is best"""

Key = tuple[str, str, float, int]
"""task, method, learning rate, seed"""


class Results:
    """Finished runs, in a file of JSON lines.

    Args:
        path: the file.
        setup_of: (task, method) -> what its runs depend on; runs that depended on something else are left out, and made
            anew. None takes all.
    """

    def __init__(self, path: Path, setup_of: Callable[[str, str], str] | None = None) -> None:
        self._path = path
        self._curves: dict[Key, Curve] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            whole, _, torn = path.read_text().rpartition("\n")
            if torn:  # it was stopped while it wrote
                path.write_text(whole + "\n" if whole else "")
            for line in whole.splitlines():
                curve = Curve(**json.loads(line))
                if setup_of is None or curve.setup == setup_of(curve.task, curve.method):
                    self._curves[key_of(curve)] = curve

    def add(self, curve: Curve) -> None:
        self._curves[key_of(curve)] = curve
        with self._path.open("a") as file:
            file.write(json.dumps(_plain(curve.as_json())) + "\n")

    def find(self, key: Key) -> Curve | None:
        return self._curves.get(key)

    def of(self, task: str, method: str, seeds: range, merit: Merit | None = None) -> list[Curve]:
        """The runs that count: at the method's best rate, one for each seed; none while the search is under way.

        Args:
            merit: what the rate is best for; default: accuracy.
        """
        tried = self.searched(task, method, seeds)
        return max(tried.values(), key=merit or for_accuracy) if tried else []

    def searched(self, task: str, method: str, seeds: range) -> dict[float, list[Curve]]:
        """The runs of each learning rate that ran with all of the seeds."""
        rates = sorted({key[2] for key in self._curves if key[:2] == (task, method)})
        runs = {rate: [self._curves.get((task, method, rate, seed)) for seed in seeds] for rate in rates}
        return {rate: [c for c in found if c is not None] for rate, found in runs.items() if None not in found}

    def methods(self, task: str) -> list[str]:
        """Methods with any run of a task, in the order in which they came."""
        return list(dict.fromkeys(key[1] for key in self._curves if key[0] == task))

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(key[0] for key in self._curves))


def for_accuracy(curves: Sequence[Curve]) -> float:
    """What a learning rate is chosen by where accuracy is compared."""
    return -math.inf if any(curve.diverged for curve in curves) else mean(curve.validation for curve in curves)


def for_loss(curves: Sequence[Curve]) -> float:
    """What it is chosen by where training losses are compared, or when one is reached."""
    return -math.inf if any(curve.diverged for curve in curves) else -mean(curve.losses[-1] for curve in curves)


def key_of(curve: Curve) -> Key:
    return curve.task, curve.method, curve.learning_rate, curve.seed


Plan = Sequence[tuple[Setting, Sequence[str]]]
"""tasks, each with the methods that are run on it"""


def run_all(results: Results, plan: Plan, seeds: range, run: Callable[[Setting, str, float, int], Curve]) -> None:
    """Make every run that is missing, task after task.

    Methods take turns, so that a machine that gets slower gets slower for all.
    """
    for wanted in _cells(plan, seeds):
        setting, method, rate, seed = wanted
        if results.find((setting.key, method, rate, seed)) is None:
            results.add(run(*wanted))


def count(results: Results, plan: Plan, seeds: range) -> tuple[int, int]:
    """How many runs of a plan there are, and how many there will be."""
    cells = [(setting.key, method, rate, seed) for setting, method, rate, seed in _cells(plan, seeds)]
    return sum(results.find(cell) is not None for cell in cells), len(cells)


def _cells(plan: Plan, seeds: range) -> Iterator[tuple[Setting, str, float, int]]:
    for setting, methods in plan:
        for seed in seeds:
            for rate in setting.learning_rates:
                for method in methods:
                    yield setting, method, rate, seed


def _plain(value: object) -> object:
    """JSON has no NaN and no infinity: null, which `Curve` of a diverged run then holds."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value
