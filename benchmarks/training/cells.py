"""Which runs there are, and their results so far: one line of JSON each, so that a stopped benchmark goes on.

Every method gets the same learning rates to try, on a seed of their own; its best one, by the accuracy at the end on
examples that are neither trained nor tested on, is then run with the seeds that count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.training.loop import Curve
from benchmarks.training.tasks import Setting

SEARCH_SEED = 1000
"""the learning rates are compared on this seed, which is not among those that count"""

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

    def of(self, task: str, method: str, seeds: range) -> list[Curve]:
        """The runs that count: at the method's best rate, one for each seed that is there."""
        rate = self.best_rate(task, method)
        found = [self._curves.get((task, method, rate, seed)) for seed in seeds] if rate is not None else []
        return [curve for curve in found if curve is not None]

    def best_rate(self, task: str, method: str) -> float | None:
        """The learning rate that did best on the search seed; None when none was tried."""
        tried = self.searched(task, method)
        return max(tried, key=merit).learning_rate if tried else None

    def searched(self, task: str, method: str) -> list[Curve]:
        """The runs on the search seed."""
        return [c for k, c in self._curves.items() if (k[0], k[1], k[3]) == (task, method, SEARCH_SEED)]

    def methods(self, task: str) -> list[str]:
        """Methods with any run of a task, in the order in which they came."""
        return list(dict.fromkeys(key[1] for key in self._curves if key[0] == task))

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(key[0] for key in self._curves))


def merit(curve: Curve) -> float:
    """What a learning rate is chosen by: accuracy. A low training loss is no merit where it comes of wrong labels."""
    return -math.inf if curve.diverged else curve.accuracies[-1]


def key_of(curve: Curve) -> Key:
    return curve.task, curve.method, curve.learning_rate, curve.seed


Plan = Sequence[tuple[Setting, Sequence[str]]]
"""tasks, each with the methods that are run on it"""


def run_all(results: Results, plan: Plan, seeds: range, run: Callable[[Setting, str, float, int], Curve]) -> None:
    """Make every run that is missing, task after task: first the searches, then the seeds.

    Methods take turns, so that a machine that gets slower gets slower for all.
    """
    for setting, methods in plan:
        for rate in setting.learning_rates:
            for method in methods:
                _make(results, (setting, method, rate, SEARCH_SEED), run)
        for seed in seeds:
            for method in methods:
                best = results.best_rate(setting.key, method)
                assert best is not None, "the search came first"
                _make(results, (setting, method, best, seed), run)


def count(results: Results, plan: Plan, seeds: range) -> tuple[int, int]:
    """How many runs of a plan there are, and how many there will be."""
    there = total = 0
    for setting, methods in plan:
        for method in methods:
            rates = {curve.learning_rate for curve in results.searched(setting.key, method)}
            searched = rates.issuperset(setting.learning_rates)
            there += len(rates.intersection(setting.learning_rates))
            there += len(results.of(setting.key, method, seeds)) if searched else 0
            total += len(setting.learning_rates) + len(seeds)
    return there, total


def _make(
    results: Results, wanted: tuple[Setting, str, float, int], run: Callable[[Setting, str, float, int], Curve]
) -> None:
    setting, method, rate, seed = wanted
    if results.find((setting.key, method, rate, seed)) is None:
        results.add(run(*wanted))


def _plain(value: object) -> object:
    """JSON has no NaN and no infinity: null, which `Curve` of a diverged run then holds."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value
