"""How a run's figures came to be what they are: some hundred points over its whole life. Pure.

Shapes: p points.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Mapping
from typing import Any

MOST_POINTS = 600
"""of one run: when there are more, neighbours become one, and later ones stand for twice the time"""


class History:
    """Named curves over time. Threads may share it."""

    def __init__(self, most_points: int = MOST_POINTS) -> None:
        self._most = most_points
        self._lock = threading.Lock()
        self._points: list[dict[str, float]] = []  # no point changes once it is in
        self._open: list[dict[str, float]] = []
        self._stride = 1
        self.generation = _new_generation()
        """another one when points that were seen before have changed; no two histories share one"""

    def add(self, point: Mapping[str, float]) -> None:
        """Take a point in; points come in order of their "time", Unix seconds."""
        with self._lock:
            self._open.append(dict(point))
            if len(self._open) < self._stride:
                return
            self._points.append(_mean(self._open))
            self._open = []
            if len(self._points) >= self._most:
                halves = zip(self._points[::2], self._points[1::2], strict=False)
                self._points = [_mean([first, second]) for first, second in halves]
                self._stride *= 2
                self.generation = _new_generation()

    def since(self, generation: int, count: int) -> dict[str, Any]:
        """Points after the first `count` of a generation, or all when it is another: JSON-safe columns."""
        with self._lock:
            present = self.generation
            start = count if generation == present and 0 <= count <= len(self._points) else 0
            points = self._points[start:]
        names = points[0] if points else {}
        return {
            "generation": present,
            "start": start,
            "columns": {name: [_finite(point[name]) for point in points] for name in names},
        }

    def tail(self, name: str, count: int) -> list[float | None]:
        """The last `count` values of one curve, JSON-safe."""
        with self._lock:
            points = self._points[-count:]
        return [_finite(point[name]) for point in points]

    def last(self, name: str) -> float | None:
        """The last value of one curve that was known."""
        with self._lock:
            known = (point[name] for point in reversed(self._points) if math.isfinite(point[name]))
            return next(known, None)


def _new_generation() -> int:
    """Drawn, not counted: a browser that slept over a restart must not take the new curves for the rest of the old.
    Within what JavaScript holds exactly."""
    return random.SystemRandom().getrandbits(52)


def _mean(points: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure where it is known; the last point's time."""
    merged = {}
    for name in points[-1]:
        known = [point[name] for point in points if not math.isnan(point[name])]
        merged[name] = sum(known) / len(known) if known else math.nan
    merged["time"] = points[-1]["time"]
    return merged


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
