"""The rates that a run draws by at present: when they are made anew, and when its policy has to stand aside."""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import replace

from sampler_service.config import RunConfig
from sampler_service.errors import ConfigError
from sampler_service.leases import Chosen
from sampler_service.mixing import MixTuner
from sampler_service.picks import Picks
from sampler_service.policies import REDUNDANT, Auto, Phases, Pick, Policy, Shuffle, TwoStage, choose
from sampler_service.population import Population
from sampler_service.stages import StageMonitor
from sampler_service.table import Table
from sampler_service.telemetry import stratum_sizes
from sampler_service.types import Batch, Bool, Float32, Report, StratifiedDraw, Sweep, TableView, WeightedDraw

log = logging.getLogger(__name__)

RATES_ROWS_PER_STEP = 1 << 17
"""examples per step at which new rates may be made: bounds their cost per batch, whatever n is"""

CHANGED_SHARE = 1 / 16
"""of the examples must have been reported anew for new rates: fewer change little, and planning from rates that stay is
far cheaper; after `max_lead` steps less will do"""

KEPT_RATES = 2
"""of the epochs that ranks are in; each is some arrays of n"""

KEPT_TOLD = 8
"""epochs of which is known how far the run was; slow ranks may be some behind"""

RECENT = 1024
"""planned steps of which it is known how old their rates were"""

FIXED = 0.5
"""the share of uniform draws of policies that do not adapt it"""


class PresentRates:
    """Rates of one run's policy over its table. Not thread-safe: the sampler holds its lock."""

    def __init__(self, config: RunConfig, policy: Policy, table: Table) -> None:
        self._config = config
        self._policy = policy
        self._table = table
        # Ranks may be in two epochs at once. Rates know of theirs only how far it is through the run, which is 0 for
        # all when nobody said how many there will be; by it, by the policy, by the number of candidates and by the
        # examples that there are, the latest rates, and how many steps were planned and rows reported when they were
        # made.
        self._served: dict[tuple[float, Pick, int, str], tuple[Chosen, int, int]] = {}
        self._told: dict[int, float] = {}  # by epoch
        self._steps = 0  # planned
        self._picks = Picks(policy, config.candidates)
        self._ratio = math.nan  # measured of the present clusters
        self.stage = StageMonitor(config.candidates, shuffles=isinstance(policy, TwoStage | Auto | Phases))
        fixed = policy.alpha if isinstance(policy, TwoStage) else 0.0 if isinstance(policy, Auto | Phases) else FIXED
        self.mix = MixTuner(fixed)
        self.ages: deque[int] = deque(maxlen=RECENT)
        """of the latest drawn steps, how many had been planned since their rates were made; 0 where nothing was
        reported since"""
        self.chosen: Chosen | None = None
        """the present rates; None before the first batch"""
        self.steps_per_epoch = 0
        self.sketched = False
        """whether trainers report sketches; those of scorers are measured by nobody"""

    @property
    def uniform_share(self) -> float:
        """Of the proposals, at present; NaN for a policy that does not adapt it."""
        return self.mix.alpha if isinstance(self.policy, TwoStage) else float("nan")

    @property
    def by_clusters(self) -> bool:
        """Whether the present rates draw by the clusters: the variance ratio of other draws says nothing of them."""
        return self.chosen is not None and isinstance(self.chosen.rates, StratifiedDraw)

    @property
    def policy(self) -> Policy:
        """The run's, or what it picked last."""
        return self._picks.latest.policy

    @property
    def since(self) -> float:
        """Epoch in which that came into force, if it is a phase's; else minus infinity."""
        return self._picks.since

    def ends_with(self, epoch: int) -> bool:
        """Whether the policy in force is known to serve that epoch and none after it."""
        if self._config.by_budget or not self._config.epochs:
            return False
        if isinstance(self._policy, Phases):
            here, following = (self._policy.at(self._progress(at)).policy for at in (epoch, epoch + 1))
            if here is not self.policy or here is not following:
                return here is self.policy
        return epoch + 1 >= self._config.epochs

    def choose(self, epoch: int, steps: int, population: Population) -> Chosen:
        """Present rates of these examples, for `steps` steps (0: the epoch begins); made anew when the table has moved
        on far enough.

        Raises:
            ConfigError: no example is left.
        """
        if not population.alive:
            raise ConfigError(
                f"all {population.size} examples that the trainers of run {self._config.run!r} can load were deleted; "
                "close it"
            )
        progress = self._progress(epoch)
        pick = self._in_force(epoch, progress, population, begins=steps == 0)
        candidates = self.stage.plan(steps) if pick.policy.kind == "draw" else 1
        key = progress, pick, candidates, population.name
        known, made_at, rows = self._served.pop(key, (None, 0, 0))
        age, changed = self._steps - made_at, self._table.rows - rows
        if known is None or not self._serves(known, pick, age, changed, begins=steps == 0):
            known, made_at, rows = self._made(progress, pick, candidates, population), self._steps, self._table.rows
            if self.chosen is not None and known.reason not in ("", self.chosen.reason):
                log.info("run %s: %s", self._config.run, known.reason)
        self._served[key] = known, made_at, rows
        if not isinstance(known.rates, Sweep):  # an order that is fixed when the epoch begins does not grow old
            current = known.table_version == self._table.version
            self.ages.extend([0 if current else self._steps - made_at] * min(steps, RECENT))
        self._steps += steps
        if len(self._served) > KEPT_RATES:
            del self._served[next(iter(self._served))]  # asked for the longest ago
        self.chosen = known
        return known

    def told(self, epoch: int, progress: float) -> None:
        """A trainer begins an epoch, with such a share of its budget spent; of several the first counts."""
        self._told.setdefault(epoch, progress)
        if len(self._told) > KEPT_TOLD:
            del self._told[min(self._told)]

    def outdate(self) -> None:
        """The next batch is planned from new rates."""
        self._served.clear()

    def judge(self, ratio: float) -> None:
        """Stand aside when the measured variance ratio says that the clusters do no good; until there are others."""
        if math.isnan(ratio) or self._stale or not self.by_clusters:
            return
        self._ratio = ratio
        if self._stale:
            self.outdate()

    def clusters_changed(self) -> None:
        """What was measured of the old clusters holds no more."""
        self._ratio = math.nan
        self.outdate()

    def heed(self, report: Report, batch: Batch, sound_r: Bool, weight_r: Float32) -> None:
        """Learn from a scoring pass, before its scores are in the table.

        Args:
            report: its ids and norms, and what the second stage measured.
            batch: what it scored.
            sound_r: (r,) norms that can be used.
            weight_r: (r,) weights of the proposals.
        """
        if report.stage is not None and batch.keep:
            self.stage.add(report.stage, round(len(batch.rows) / batch.keep))
        chosen = self.chosen if self.chosen and self.chosen.policy == TwoStage.name else None
        if chosen and isinstance(chosen.rates, WeightedDraw) and report.norms is not None and sound_r.any():
            ids, size = report.example_ids, chosen.population.size
            sound_r = sound_r & (ids < size)  # of an epoch that began with fewer, if a slow rank came last
            probability_r = chosen.rates.probability_n[ids[sound_r]] * chosen.rates.over
            self.mix.add(probability_r, weight_r[sound_r], report.norms[sound_r], alpha=chosen.alpha)

    def _progress(self, epoch: int) -> float:
        """Share of the run that is done when an epoch begins; 0 when nobody said how long it is going to be."""
        if self._config.by_budget:
            return self._told.get(epoch, 0.0)
        return min(1.0, epoch / self._config.epochs) if self._config.epochs else 0.0

    @property
    def _stale(self) -> bool:
        """Whether the present clusters were measured to do no good."""
        return self._ratio > REDUNDANT

    def _serves(self, known: Chosen, pick: Pick, age: int, changed: int, *, begins: bool) -> bool:
        """Whether rates do for the next steps that were made so many steps, and so many reported rows, ago."""
        if known.table_version == self._table.version:
            return True
        if pick.policy.kind == "sweep":
            return not begins
        n, most = known.population.alive, self._config.max_lead
        if age < min(most, 1 + n // RATES_ROWS_PER_STEP):
            return age > 0
        return age < most and changed < CHANGED_SHARE * n

    def _in_force(self, epoch: int, progress: float, population: Population, *, begins: bool) -> Pick:
        """The policy of an epoch."""
        return self._picks.of(
            epoch,
            lambda: self._view(population),
            begins=begins,
            rows=self._table.rows,
            sketched=self.sketched,
            ratio=self._ratio,
            progress=progress,
        )

    def _view(self, population: Population) -> TableView:
        return population.view(self._table.view(max(1, self.steps_per_epoch)))

    def _made(self, progress: float, pick: Pick, candidates: int, population: Population) -> Chosen:
        view, said = self._view(population), ""
        if isinstance(pick.policy, TwoStage) and candidates == 1:
            said = self.stage.reason
            if self.stage.witness.doubts:  # norms and sketches in the table may be the doubted scorer's
                pick = Pick(Shuffle())
            else:
                pick = Pick(pick.policy) if self.stage.proposes else pick.otherwise or Pick(Shuffle())
        policy = replace(pick.policy, alpha=self.mix.alpha) if isinstance(pick.policy, TwoStage) else pick.policy
        if self._stale and "cluster" in policy.needs:
            rates = Shuffle().rates(view, progress=0.0)
            aside = f"shuffle: the measured variance ratio is {self._ratio:.2f}, above {REDUNDANT}"
        else:
            max_age = int(self._config.fresh_epochs * max(1, self.steps_per_epoch))
            rates, aside = choose(policy, view, min_coverage=None, max_age=max_age, progress=progress)
        if isinstance(self._policy, Phases):
            rates = self._policy.included(rates, progress)
        rates = population.spread(rates)
        name, _, why = (aside or f"{policy.name}: {pick.why}").partition(": ")
        why = "; ".join(part for part in (said, why) if part)
        return Chosen(
            rates=rates,
            policy=name,
            reason=f"{name}: {why}" if why else "",
            table_version=view.version,
            population=population,
            cluster_n=self._table.cluster_n,
            size_k=stratum_sizes(rates),
            candidates=1 if isinstance(rates, Sweep) else candidates,
            alpha=self.mix.alpha,
        )
