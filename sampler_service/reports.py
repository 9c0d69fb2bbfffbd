"""Checks of what trainers send: whole reports that do not fit, rows that can't be used, geometry that can't be.

Shapes: r reported rows, b examples of a batch, d sketch length.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from sampler_service.config import RunConfig
from sampler_service.errors import ConfigError, Stale
from sampler_service.leases import Group
from sampler_service.policies import (
    POLICIES,
    HardNegative,
    Phases,
    Policy,
    TimeBudget,
    make_policy,
    read_options,
)
from sampler_service.policies.hard_negative import MOST_EQUIVALENT, largest_group
from sampler_service.population import Population
from sampler_service.sketch.store import finite_rows
from sampler_service.types import Float32, Int64, Report, ReportBlock

STEPS_AHEAD = 1 << 20
"""steps by which a report may be ahead of the run's clock: one from the far future would make all others look stale"""

TOGETHER_ROWS = 1 << 14
"""rows of reports that are taken in as one: each step costs as much for one report as for many"""


def policy_of(config: RunConfig) -> Policy:
    """The policy of a run.

    Raises:
        ConfigError: there is none of that name or with these options, it has no use for candidates and gets some, or
            the run lacks what it goes by.
    """
    policy = make_policy(config.policy, read_options(config.policy_options))
    if config.candidates > 1 and policy.kind == "sweep":
        draws = sorted(name for name, cls in POLICIES.items() if cls.kind == "draw")
        raise ConfigError(
            f"policy {config.policy!r} goes through each epoch's examples and proposes no candidates; leave "
            f"two_stage=… out, or use one of {draws}"
        )
    if isinstance(policy, TimeBudget) and not config.by_budget:
        raise ConfigError(
            f"policy {config.policy!r} goes by a clock, which run {config.run!r} has not: give "
            "budget=TimeBudget(seconds) and loop over budget.over(loader); by epochs, 'phases' does the same"
        )
    if getattr(policy, "by_progress", False) and not (config.epochs or config.by_budget):
        raise ConfigError(
            f"policy {config.policy!r} goes by the share of the run that is done; say how long: epochs=… or budget=…"
        )
    for mining in _mining(policy):
        if config.sketch_dim % 2:
            raise ConfigError(
                f"policy 'hard_negative' keeps the embeddings of a pair side by side, sketch_dim is "
                f"{config.sketch_dim}; make it twice the length of an embedding"
            )
        if mining.first >= config.num_examples:
            raise ConfigError(
                f"policy 'hard_negative' takes what is of rank {mining.first:g} or beyond, and run {config.run!r} has "
                f"{config.num_examples} pairs: lower its option 'first'"
            )
    return policy


def _mining(policy: Policy) -> list[HardNegative]:
    """Those that search for hard negatives: itself, or some of its phases'."""
    parts = [phase.policy for phase in policy.phases] if isinstance(policy, Phases) else [policy]
    return [part for part in parts if isinstance(part, HardNegative)]


def check_group(config: RunConfig, group: Group, rank: int, lead: int, alive: int) -> None:
    """Raise ConfigError unless a trainer can train like this.

    Args:
        config: the run's.
        group: of trainers.
        rank: its place in the group.
        lead: batches that it may hold.
        alive: examples that there are.
    """
    if group.world_size < 1 or group.workers < 1 or not 0 <= rank < group.places:
        raise ConfigError(
            f"rank must be 0 … world_size-1 and worker 0 … workers-1, got place {rank} of {group.world_size} ranks "
            f"with {group.workers} workers each"
        )
    if group.batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {group.batch_size}")
    total = group.batch_size * group.world_size
    if total > alive:
        raise ConfigError(
            f"the global batch of {group.world_size} x {group.batch_size} = {total} examples is larger than dataset "
            f"{config.dataset!r} with {alive}; use a smaller batch_size"
        )
    if total * config.candidates > alive:
        raise ConfigError(
            f"{config.candidates} candidates for each of {total} examples of a global batch are more than dataset "
            f"{config.dataset!r} has, {alive}; use fewer candidates or a smaller batch_size"
        )
    if not 1 <= lead <= config.max_lead:
        raise ConfigError(
            f"this trainer would hold {lead} batches (num_workers x prefetch_factor + 2), run {config.run!r} "
            f"allows 1 to {config.max_lead}; lower prefetch_factor or open the run with a larger max_lead"
        )


def check_serves(config: RunConfig, num_examples: int, size: int) -> None:
    """Raise Stale unless a trainer that can load so many examples can load those of a run: `size`."""
    if num_examples < size:
        raise Stale(
            f"run {config.run!r} has {size} examples, this trainer can load {num_examples}; extend its data set to "
            f"that of the others, or train under another run name"
        )


def check_reference(config: RunConfig, reference_loss_n: Float32, sizes: Collection[int]) -> None:
    """Raise ConfigError unless there is one finite loss for each example: of the run, or already of its data set."""
    if len(reference_loss_n) not in sizes:
        raise ConfigError(
            f"reference losses: got {len(reference_loss_n)}, run {config.run!r} has {_either(sizes)} examples"
        )
    if not np.isfinite(reference_loss_n).all():
        bad = int(np.flatnonzero(~np.isfinite(reference_loss_n))[0])
        raise ConfigError(f"reference loss of example {bad} is {reference_loss_n[bad]}; it must be finite")


def check_groups(config: RunConfig, group_n: Int64, sizes: Collection[int]) -> None:
    """Raise ConfigError unless there is one group for each example: of the run, or already of its data set; and where
    they are pairs that match, so few in each that others are left to be negatives."""
    if len(group_n) not in sizes:
        raise ConfigError(f"groups: got {len(group_n)}, run {config.run!r} has {_either(sizes)} examples")
    mining = _mining(make_policy(config.policy, read_options(config.policy_options)))
    if mining and (most := largest_group(group_n)) > MOST_EQUIVALENT:
        raise ConfigError(
            f"groups: the largest has {most} pairs; for policy 'hard_negative' pairs of a group match one "
            f"another, and {MOST_EQUIVALENT} may at most. Give groups of equivalent pairs, not classes"
        )


def _either(sizes: Collection[int]) -> str:
    return " or, from its next epoch on, ".join(map(str, sorted(set(sizes))))


def misfit(config: RunConfig, report: Report, now: int) -> str:
    """Why a report can't belong to this run, or an empty string. `now` is the latest step that the run has lent."""
    if report.sketches is not None and report.sketches.shape[1] != config.sketch_dim:
        return (
            f"sketches have width {report.sketches.shape[1]}, run {config.run!r} was opened with sketch_dim "
            f"{config.sketch_dim}; make the sketcher with dim={config.sketch_dim} or open another run"
        )
    if config.policy == HardNegative.name and report.sketches is not None and report.norms is not None:
        return (
            f"run {config.run!r} has policy 'hard_negative', which needs the embeddings of pairs, and got sketches of "
            "gradients, with their norms; say batch.report(losses, PairSketches(left, right))"
        )
    if report.step > now + STEPS_AHEAD:
        return (
            f"report of batch {report.batch_id} is of step {report.step}, the run is at step {now}; "
            "count optimiser steps from 0, or leave the step to the client"
        )
    return ""


def left_of(report: Report, population: Population) -> tuple[Report, int]:
    """A report without rows of deleted examples, and how many these were."""
    deleted_r = population.without(report.example_ids)
    if deleted_r is None:
        return report, 0
    columns = {name: getattr(report, name) for name in ("example_ids", "losses", "norms", "sketches")}
    left = {name: None if column is None else column[~deleted_r] for name, column in columns.items()}
    return replace(report, **left), int(np.count_nonzero(deleted_r))


def together(received: Sequence[Report]) -> Iterator[list[Report]]:
    """Neighbours, in order, that can be taken in as one: of the same columns, scores apart from what was trained on, no
    earlier step than those before it, and of TOGETHER_ROWS rows at most (or a single report).

    A trainer of two stages sends scores and losses in turn. Neither says what the other does, so that losses are put
    before scores: else each report would be alone.
    """
    trained = [report for report in received if not report.scores]
    apart = all(report.norms is None and report.sketches is None for report in trained)
    if apart and all(one.step <= next_.step for one, next_ in pairwise(received)):
        received = [*trained, *(report for report in received if report.scores)]
    group: list[Report] = []
    rows = 0
    for report in received:
        rows += len(report.example_ids)
        if group and (rows > TOGETHER_ROWS or report.step < group[-1].step or _columns(report) != _columns(group[-1])):
            yield group
            group, rows = [], len(report.example_ids)
        group.append(report)
    if group:
        yield group


def _columns(report: Report) -> tuple[bool, bool, bool, np.dtype | None]:
    dtype = None if report.sketches is None else report.sketches.dtype
    return report.scores, report.losses is None, report.norms is None, dtype


def sound_rows(group: Sequence[Report], num_examples: int, step_n: Int64) -> tuple[ReportBlock, int, dict[str, int]]:
    """What can be used of reports that belong `together`, as if they were taken one after the other.

    Of an id that comes twice the last row counts; in a single report it is also accepted only once.

    Args:
        group: at least one report.
        num_examples: ids are 0 … num_examples-1.
        step_n: (n,) steps of the rows that the table holds: a report that was overtaken on its way changes nothing.

    Returns:
        The rows to store, how many were accepted, and how many were not, by reason ("unknown_id", "nan",
        "negative_norm", "old").
    """
    ids = np.concatenate([report.example_ids for report in group])
    report_r = np.repeat(np.arange(len(group)), [len(report.example_ids) for report in group])
    step_r = np.array([report.step for report in group], np.int64)[report_r]
    losses, norms = _joined([report.losses for report in group]), _joined([report.norms for report in group])
    sketches = _joined([report.sketches for report in group])
    known = (ids >= 0) & (ids < num_examples)
    finite = np.ones(len(ids), dtype=bool) if sketches is None else finite_rows(sketches)
    for column in (losses, norms):
        if column is not None:
            finite &= np.isfinite(column)
    possible = np.ones(len(ids), dtype=bool) if norms is None else ~(norms < 0)
    recent = np.ones(len(ids), dtype=bool)
    recent[known] = step_n[ids[known]] <= step_r[known]
    sound = np.flatnonzero(known & finite & possible & recent)
    reasons = {
        "unknown_id": int(np.count_nonzero(~known)),
        "nan": int(np.count_nonzero(known & ~finite)),
        "negative_norm": int(np.count_nonzero(known & finite & ~possible)),
        "old": int(np.count_nonzero(known & finite & possible & ~recent)),
    }
    last, accepted = _last_of_each(ids[sound], report_r[sound])
    # Nearly always all rows are: a slice copies none of them.
    kept = slice(None) if len(last) == len(ids) else sound[last]
    nothing = np.full(len(last), np.nan, dtype=np.float32)
    block = ReportBlock(
        example_ids=ids[kept],
        losses=nothing if losses is None else losses[kept],
        norms=nothing if norms is None else norms[kept],
        sketches=None if sketches is None else sketches[kept],
        step=step_r[kept],
    )
    return block, accepted, {reason: count for reason, count in reasons.items() if count}


def _joined(columns: Sequence[Any]) -> Any:
    """The columns below each other; None when the reports have none."""
    return None if columns[0] is None else np.concatenate(columns)


def _last_of_each(id_r: Int64, report_r: Int64) -> tuple[Int64, int]:
    """Places of the last row of every id, rising, and the number of pairs (report, id)."""
    # Ids have 31 bits, so id and place go into one number; sorting it is ten times faster than np.unique's argsort.
    key_r = np.sort((id_r << 32) | np.arange(len(id_r)))
    place_r = key_r & 0xFFFFFFFF
    again_r = (key_r[1:] >> 32) == (key_r[:-1] >> 32)  # the next row is of the same example
    if not again_r.any():
        return np.arange(len(id_r)), len(id_r)
    in_one_report = again_r & (report_r[place_r[1:]] == report_r[place_r[:-1]])
    last = np.sort(place_r[np.append(~again_r, True)])
    return last, len(id_r) - int(np.count_nonzero(in_one_report))


def positions(batch_ids: Int64, reported_ids: Int64) -> np.ndarray | None:
    """Where the reported examples stand in the batch, (r,) intp; None when one does not."""
    if np.array_equal(batch_ids, reported_ids):
        return np.arange(len(batch_ids))
    order = np.argsort(batch_ids, kind="stable")
    found = np.searchsorted(batch_ids[order], reported_ids)
    found = order[np.minimum(found, len(order) - 1)]
    return found if np.array_equal(batch_ids[found], reported_ids) else None
