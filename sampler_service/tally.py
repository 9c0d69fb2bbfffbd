"""How much was handed out, and how far ahead. Counters: they only rise."""

from __future__ import annotations

from collections import Counter, deque

from sampler_service.types import Batch

RECENT_LEADS = 1024
"""batches whose leads tell how far ahead the run is planned now"""


class Tally:
    """Counts of one run over all its geometries. Not thread-safe: the sampler holds its lock."""

    def __init__(self) -> None:
        self.batches = 0
        self.examples = 0
        self.by_policy: Counter[str] = Counter()
        """batches, by the policy that planned them"""
        self.expired = 0
        """batches whose trainer was lost for good"""
        self.leads: Counter[int] = Counter()
        """batches, by how many their trainer held"""
        self.recent_leads: deque[int] = deque(maxlen=RECENT_LEADS)
        """how many it held, of the latest batches"""

    def add(self, batch: Batch) -> None:
        """A batch is lent for the first time."""
        self.batches += 1
        self.examples += len(batch.rows)
        self.by_policy[batch.policy] += 1
        self.leads[batch.lead] += 1
        self.recent_leads.append(batch.lead)
