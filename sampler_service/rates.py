"""The rates that a run draws by at present: when they are made anew, and when its policy has to stand aside."""

from __future__ import annotations

import logging

from sampler_service.config import RunConfig
from sampler_service.leases import Chosen
from sampler_service.policies import Policy, choose, make_policy
from sampler_service.table import Table
from sampler_service.telemetry import stratum_sizes

log = logging.getLogger(__name__)

WORST_RATIO = 0.9
"""above this measured variance ratio the partition is stale and the policy stands aside (methods of staleness)"""

RATES_ROWS_PER_STEP = 1 << 17
"""examples per step at which new rates may be made: bounds their cost per batch, whatever n is"""


class PresentRates:
    """Rates of one run's policy over its table. Not thread-safe: the sampler holds its lock."""

    def __init__(self, config: RunConfig, policy: Policy, table: Table) -> None:
        self._config = config
        self._policy = policy
        self._table = table
        self._epoch, self._steps = -1, 0  # what the present rates were made for, and how many steps they have served
        self._aside = ""
        self._outdated = True
        self.chosen: Chosen | None = None
        """the present rates; None before the first batch"""
        self.steps_per_epoch = 0

    def choose(self, epoch: int, steps: int) -> Chosen:
        """Present rates, for `steps` steps. Made anew when the table has moved on, at most every few steps when n
        is large."""
        every = 1
        if self._policy.kind == "draw":
            every = min(self._config.max_lead, 1 + self._config.num_examples // RATES_ROWS_PER_STEP)
        if self.chosen is not None and not self._outdated and epoch == self._epoch:
            same = self.chosen.table_version == self._table.version
            if same or 0 < self._steps < every:
                self._steps += steps
                return self.chosen
        before, self.chosen = self.chosen, self._made(epoch)
        self._epoch, self._steps, self._outdated = epoch, steps, False
        if before is not None and self.chosen.reason not in ("", before.reason):
            log.info("run %s: %s", self._config.run, self.chosen.reason)
        return self.chosen

    def outdate(self) -> None:
        """The next batch is planned from new rates."""
        self._outdated = True

    def judge(self, ratio: float) -> None:
        """Stand aside when the measured variance ratio says that the clusters do no good; until there are others."""
        if ratio > WORST_RATIO and not self._aside:
            self._aside = f"shuffle: the measured variance ratio is {ratio:.2f}, above {WORST_RATIO}"
            self._outdated = True

    def clusters_changed(self) -> None:
        """What was measured of the old clusters holds no more."""
        self._aside = ""
        self._outdated = True

    def _made(self, epoch: int) -> Chosen:
        view = self._table.view()
        if self._aside:
            rates, reason = make_policy("shuffle", {}).rates(view, progress=0.0), self._aside
        else:
            max_age = int(self._config.fresh_epochs * max(1, self.steps_per_epoch))
            progress = min(1.0, epoch / self._config.epochs) if self._config.epochs else 0.0
            rates, reason = choose(self._policy, view, min_coverage=None, max_age=max_age, progress=progress)
        return Chosen(
            rates=rates,
            policy="shuffle" if reason else self._policy.name,
            reason=reason,
            table_version=view.version,
            cluster_n=view.cluster_n,
            size_k=stratum_sizes(rates),
        )
