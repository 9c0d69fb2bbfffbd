"""Which runs there are, and their results so far: one line of JSON each, so that a stopped benchmark goes on.

Every method gets the same learning rates to try, on a seed of their own; its best one is then run with the seeds that
count. Best is the lowest training loss at the end for a run that is judged by loss, the highest accuracy for others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.training.loop import Curve
from benchmarks.training.tasks import Setting

SEARCH_SEED = 1000
"""the learning rates are compared on this seed, which is not among those that count"""

Key = tuple[str, str, float, int]
"""task, method, learning rate, seed"""


class Results:
    """Finished runs, in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._curves: dict[Key, Curve] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text().splitlines():
                curve = Curve(**json.loads(line))
                self._curves[key_of(curve)] = curve

    def __len__(self) -> int:
        return len(self._curves)

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
        tried = [c for k, c in self._curves.items() if (k[0], k[1], k[3]) == (task, method, SEARCH_SEED)]
        return min(tried, key=lambda curve: merit(task, curve)).learning_rate if tried else None

    def methods(self, task: str) -> list[str]:
        """Methods with any run of a task, in the order in which they came."""
        return list(dict.fromkeys(key[1] for key in self._curves if key[0] == task))

    def tasks(self) -> list[str]:
        return list(dict.fromkeys(key[0] for key in self._curves))


def merit(task: str, curve: Curve) -> float:
    """What a learning rate is chosen by; lower is better. With wrong labels a low training loss is no merit."""
    if curve.diverged:
        return math.inf
    return -curve.accuracies[-1] if "noise" in task or "longtail" in task or "cifar" in task else curve.losses[-1]


def key_of(curve: Curve) -> Key:
    return curve.task, curve.method, curve.learning_rate, curve.seed


def run_all(
    results: Results,
    settings: list[Setting],
    methods: list[str],
    seeds: range,
    run: Callable[[Setting, str, float, int], Curve],
) -> None:
    """Make every run that is missing: first each method's search, then its seeds, task after task."""
    for setting in settings:
        for method in methods:
            for rate, seed in _wanted(results, setting, method, seeds):
                if results.find((setting.key, method, rate, seed)) is None:
                    results.add(run(setting, method, rate, seed))


def _wanted(results: Results, setting: Setting, method: str, seeds: range) -> Iterator[tuple[float, int]]:
    for rate in setting.learning_rates:
        yield rate, SEARCH_SEED
    best = results.best_rate(setting.key, method)
    assert best is not None, "the search came first"
    for seed in seeds:
        yield best, seed


def _plain(value: object) -> object:
    """JSON has no NaN and no infinity: null, which `Curve` of a diverged run then holds."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value
