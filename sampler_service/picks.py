"""Which policy each epoch runs under: the run's own, that of its phase, or the one that `auto` picks as it begins."""

from __future__ import annotations

import math
from collections.abc import Callable

from sampler_service.policies import Auto, Phases, Pick, Policy
from sampler_service.types import TableView

KEPT_PICKS = 8
"""epochs of which is known what was picked for them; slow ranks may be some behind"""


class Picks:
    """What was picked for the latest epochs. Not thread-safe: the sampler holds its lock.

    Args:
        policy: the run's.
        candidates: most for each example of a batch; 1: there is no second stage.
    """

    def __init__(self, policy: Policy, candidates: int) -> None:
        self._policy = policy
        self._candidates = candidates
        self._picks: dict[int, Pick] = {}
        self._rows = 0  # reported when it was last asked
        self._sketched = False  # the same
        self.latest = Pick(policy)
        self.since = -math.inf
        """epoch that the present phase began with; without phases the policy has been there for ever"""

    def of(
        self,
        epoch: int,
        view: Callable[[], TableView],
        *,
        begins: bool,
        rows: int,
        sketched: bool,
        ratio: float,
        progress: float,
    ) -> Pick:
        """The policy of an epoch, and why.

        Args:
            epoch: which.
            view: what is known; only asked for when a policy is picked.
            begins: whether the epoch begins just now.
            rows: reported since the run began.
            sketched: whether trainers report sketches.
            ratio: share of a batch's variance that the present clusters were measured to leave; NaN: not measured.
            progress: share of the run that is done.
        """
        if isinstance(self._policy, Phases):
            phase = self._policy.at(progress)
            if phase.policy is not self.latest.policy:
                self.since = epoch
            self.latest = Pick(phase.policy, f"the phase up to {phase.until:.0%} of the run")
        if not isinstance(self._policy, Auto):
            return self.latest
        known = self._picks.get(epoch)
        if known is not None and not begins and not self._sees_more(known, sketched):
            return known
        noisy = self.latest.noisy
        pick = self._policy.pick(
            view(),
            candidates=self._candidates,
            sketched=sketched,
            noisy=noisy,
            fresh=rows > self._rows or not noisy,
            ratio=ratio,
        )
        self._picks.pop(epoch, None)  # so that it is the newest
        self._picks[epoch] = self.latest = pick
        self._rows, self._sketched = rows, sketched
        if len(self._picks) > KEPT_PICKS:
            del self._picks[next(iter(self._picks))]
        return pick

    def _sees_more(self, pick: Pick, sketched: bool) -> bool:
        """Whether the first sketches came in an epoch that shuffled, or would without its second stage, for want of
        any."""
        alone = pick.otherwise or pick
        return sketched and not self._sketched and alone.policy.name == "shuffle" and not pick.noisy
