"""What the service answers: plain values, the same whether it runs in process or on Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sampler_service.types import Batch, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    session: str
    steps_per_epoch: int
    max_lead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochStarted:
    epoch: int
    num_steps: int
    """batches that this trainer will get in the rest of the epoch"""
    policy: str
    reason: str
    population: str
    """names the examples that the epoch began with, for whoever resumes it"""
    num_examples: int
    """how many these are"""
    epoch_steps: int
    """steps of the whole epoch, if it keeps all of them"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    batches: list[Batch]
    ended: bool
    """the epoch is over; when not, and there are no batches, ask again a little later"""

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes the batches' arrays travel joined: pickling four small ones for each batch costs
        # more than planning it.
        return _unpack, (_pack(self.batches), self.ended)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSummary:
    table_version: int
    accepted: int
    rejected: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    version: int
    """of the weights; rises"""
    scorers: int
    """that work for the run now; they start with its first weights"""
    scorer_error: str
    """the latest failure that no success followed; empty when there is none"""


Packed = tuple[list[tuple[Any, ...]], list[int], np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _pack(batches: list[Batch]) -> Packed | None:
    """Scalars of each batch, where each one's rows end, and the joined arrays; without what only the run counts by."""
    if not batches:
        return None
    scalars = [
        (
            *(b.batch_id, b.epoch, b.step, b.table_version, b.policy),
            *(b.lease_deadline, b.lead, b.global_batch_size, b.world_size, b.keep, b.choice_seed),
        )
        for b in batches
    ]
    return (
        scalars,
        np.cumsum([len(b.rows) for b in batches]).tolist(),
        np.concatenate([b.rows.example_ids for b in batches]),
        np.concatenate([b.rows.weights for b in batches]),
        np.concatenate([b.rows.probabilities for b in batches]),
        np.concatenate([b.cluster_ids for b in batches]),
    )


def _unpack(packed: Packed | None, ended: bool) -> Taken:
    if packed is None:
        return Taken(batches=[], ended=ended)
    scalars, ends, *joined = packed
    for array in joined:
        array.flags.writeable = False
    batches, start = [], 0
    for values, end in zip(scalars, ends, strict=True):
        batch_id, epoch, step, version, policy, deadline, lead, size, world, keep, choice_seed = values
        ids, weights, probabilities, clusters = (array[start:end] for array in joined)
        start = end
        batches.append(
            Batch(
                batch_id=batch_id,
                epoch=epoch,
                step=step,
                table_version=version,
                policy=policy,
                rows=Rows(example_ids=ids, weights=weights, probabilities=probabilities),
                cluster_ids=clusters,
                lease_deadline=deadline,
                lead=lead,
                global_batch_size=size,
                world_size=world,
                keep=keep,
                choice_seed=choice_seed,
            )
        )
    return Taken(batches=batches, ended=ended)
