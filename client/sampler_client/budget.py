"""Training for a fixed time: a deadline that holds, and learning rates that end with it.

Source: the setting is that of Khan, Hamila, Menouar, "Accelerating Deep Learning with Fixed Time Budget",
arXiv 2410.03790, whose procedure is not public; what is here, and the policy `time_budget` of the service, is our own.
That a schedule fitted to the budget is the baseline to beat: Li, Yumer, Ramanan, "Budgeted Training",
ICLR 2020, arXiv 1905.04753.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from sampler_client.config import check_within
from sampler_client.errors import ConfigError

Item = TypeVar("Item")

RECENT = 64
"""steps that the next one's duration is judged by"""

LONGEST = 0.95
"""of them the quantile that must still fit before the deadline"""


class TimeBudget:
    """Seconds to train in, counted from the first batch asked for.

        budget = TimeBudget(600)
        loader = sampler.attach(loader, address, run=run, policy="time_budget", budget=budget)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, budget.cosine)
        for item, batch in budget.over(loader): ...; optimizer.step(); schedule.step()

    Args:
        seconds: > 0.
        clock: seconds that only rise.
        spent: seconds of the budget that are gone: `elapsed` as a checkpoint has it, for a run that goes on.

    Raises:
        ConfigError: seconds that are none.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic, *, spent: float = 0.0) -> None:
        check_within("seconds", seconds, "(0, inf)")
        check_within("spent", spent, "[0, inf)")
        self.seconds = seconds
        self._clock = clock
        self._spent = float(spent)
        self._began: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the first batch was asked for, and what was spent before that."""
        return self._spent + (0.0 if self._began is None else self._clock() - self._began)

    @property
    def begun(self) -> bool:
        """Whether a batch was asked for by `over`."""
        return self._began is not None

    @property
    def share(self) -> float:
        """Of the budget that is spent, 0 … 1."""
        return min(1.0, self.elapsed / self.seconds)

    def cosine(self, step: int = 0) -> float:  # noqa: ARG002 - the face of LambdaLR, which counts steps
        """Factor on the learning rate: 1 at first, falling along half a cosine to 0 at the deadline."""
        return (1 + math.cos(math.pi * self.share)) / 2

    def linear(self, step: int = 0) -> float:  # noqa: ARG002
        """The same, falling evenly."""
        return 1 - self.share

    def over(self, loader: Iterable[Item]) -> Iterator[Item]:
        """Pass after pass over a loader, up to the last step that still fits before the deadline.

        Steps are judged by those before: one is begun while nearly all of the latest would have ended in time, and none
        whose batch came after the deadline. The first is made in any case.

        Raises:
            ConfigError: the loader yields nothing.
        """
        if self._began is None:
            self._began = self._clock()
        took_s: deque[float] = deque(maxlen=RECENT)
        while True:
            asked, empty = self._clock(), True
            for item in loader:
                empty = False
                if took_s and self.elapsed > self.seconds:
                    return
                yield item
                now = self._clock()
                took_s.append(now - asked)
                asked = now
                if self._over(took_s):
                    return
            if empty:
                raise ConfigError("the loader yields no batches: there is nothing to spend the time budget on")

    def _over(self, took_s: deque[float]) -> bool:
        longest = sorted(took_s)[math.ceil(LONGEST * len(took_s)) - 1]
        return self.elapsed + longest > self.seconds


def share_of(budget: Any) -> Callable[[], float]:
    """What tells the share of a budget that is spent; a ConfigError if nobody counts it.

    Raises:
        ConfigError: it is no TimeBudget.
    """
    if not isinstance(budget, TimeBudget):
        raise ConfigError(f"budget must be a TimeBudget, got {budget!r}")

    def share() -> float:
        if not budget.begun:
            raise ConfigError("nobody counts the time of this run's budget: loop over budget.over(loader), not loader")
        return budget.share

    return share
