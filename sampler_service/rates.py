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

KEPT_RATES = 2
"""of the epochs that ranks are in; each is some arrays of n"""


class PresentRates:
    """Rates of one run's policy over its table. Not thread-safe: the sampler holds its lock."""

    def __init__(self, config: RunConfig, policy: Policy, table: Table) -> None:
        self._config = config
        self._policy = policy
        self._table = table
        # Ranks may be in two epochs at once. Rates know of theirs only how far it is through the run, which is 0 for
        # all when nobody said how many there will be; by it, the latest rates and how many steps they have served.
        self._served: dict[float, tuple[Chosen, int]] = {}
        self._aside = ""
        self.chosen: Chosen | None = None
        """the present rates; None before the first batch"""
        self.steps_per_epoch = 0

    def choose(self, epoch: int, steps: int) -> Chosen:
        """Present rates, for `steps` steps. Made anew when the table has moved on, at most every few steps when n
        is large."""
        every = 1
        if self._policy.kind == "draw":
            every = min(self._config.max_lead, 1 + self._config.num_examples // RATES_ROWS_PER_STEP)
        progress = min(1.0, epoch / self._config.epochs) if self._config.epochs else 0.0
        known, served = self._served.pop(progress, (None, 0))
        same = known is not None and known.table_version == self._table.version
        if known is None or not (same or 0 < served < every):
            known, served = self._made(progress), 0
            if self.chosen is not None and known.reason not in ("", self.chosen.reason):
                log.info("run %s: %s", self._config.run, known.reason)
        self._served[progress] = known, served + steps
        if len(self._served) > KEPT_RATES:
            del self._served[next(iter(self._served))]  # asked for the longest ago
        self.chosen = known
        return known

    def outdate(self) -> None:
        """The next batch is planned from new rates."""
        self._served.clear()

    def judge(self, ratio: float) -> None:
        """Stand aside when the measured variance ratio says that the clusters do no good; until there are others."""
        if ratio > WORST_RATIO and not self._aside:
            self._aside = f"shuffle: the measured variance ratio is {ratio:.2f}, above {WORST_RATIO}"
            self.outdate()

    def clusters_changed(self) -> None:
        """What was measured of the old clusters holds no more."""
        self._aside = ""
        self.outdate()

    def _made(self, progress: float) -> Chosen:
        view = self._table.view()
        if self._aside:
            rates, reason = make_policy("shuffle", {}).rates(view, progress=0.0), self._aside
        else:
            max_age = int(self._config.fresh_epochs * max(1, self.steps_per_epoch))
            rates, reason = choose(self._policy, view, min_coverage=None, max_age=max_age, progress=progress)
        return Chosen(
            rates=rates,
            policy="shuffle" if reason else self._policy.name,
            reason=reason,
            table_version=view.version,
            cluster_n=view.cluster_n,
            size_k=stratum_sizes(rates),
        )
