"""Checks of what trainers send: whole reports that do not fit, rows that can't be used, geometry that can't be.

Shapes: r reported rows, b examples of a batch, d sketch length.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sampler_service.config import RunConfig
from sampler_service.errors import ConfigError
from sampler_service.leases import Group
from sampler_service.types import Int64, Report, ReportBlock

STEPS_AHEAD = 1 << 20
"""steps by which a report may be ahead of the run's clock: one from the far future would make all others look stale"""


def option_values(options: Mapping[str, str]) -> dict[str, float | str | bool]:
    """Policy options from their texts: numbers where they read as such."""
    values: dict[str, float | str | bool] = {}
    for name, text in options.items():
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = text
    return values


def check_group(config: RunConfig, group: Group, rank: int, lead: int) -> None:
    """Raise ConfigError unless a trainer can train like this."""
    if group.world_size < 1 or not 0 <= rank < group.world_size:
        raise ConfigError(f"rank must be 0 … world_size-1, got rank {rank} of world_size {group.world_size}")
    if group.batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {group.batch_size}")
    total = group.batch_size * group.world_size
    if total > config.num_examples:
        raise ConfigError(
            f"the global batch of {group.world_size} x {group.batch_size} = {total} examples is larger than dataset "
            f"{config.dataset!r} with {config.num_examples}; use a smaller batch_size"
        )
    if not 1 <= lead <= config.max_lead:
        raise ConfigError(
            f"this trainer would hold {lead} batches (num_workers x prefetch_factor + 2), run {config.run!r} "
            f"allows 1 to {config.max_lead}; lower prefetch_factor or open the run with a larger max_lead"
        )


def misfit(config: RunConfig, report: Report, now: int) -> str:
    """Why a report can't belong to this run, or an empty string. `now` is the latest step that the run has lent."""
    if report.sketches is not None and report.sketches.shape[1] != config.sketch_dim:
        return (
            f"sketches have width {report.sketches.shape[1]}, run {config.run!r} was opened with sketch_dim "
            f"{config.sketch_dim}; make the sketcher with dim={config.sketch_dim} or open another run"
        )
    if report.step > now + STEPS_AHEAD:
        return (
            f"report of batch {report.batch_id} is of step {report.step}, the run is at step {now}; "
            "count optimiser steps from 0, or leave the step to the client"
        )
    return ""


def sound_rows(report: Report, num_examples: int, step_n: Int64) -> tuple[ReportBlock, dict[str, int]]:
    """Rows that can be used, and how many were not, by reason ("unknown_id", "nan", "negative_norm", "old").

    `step_n` are the steps of the rows that the table holds: a report that was overtaken on its way changes nothing.

    Of an id that comes twice the last row counts.
    """
    ids = report.example_ids
    known = (ids >= 0) & (ids < num_examples)
    finite = np.ones(len(ids), dtype=bool)
    for column in (report.losses, report.norms):
        if column is not None:
            finite &= np.isfinite(column)
    if report.sketches is not None:
        finite &= np.isfinite(report.sketches).all(axis=1)
    possible = np.ones(len(ids), dtype=bool) if report.norms is None else ~(report.norms < 0)
    recent = np.ones(len(ids), dtype=bool)
    recent[known] = step_n[ids[known]] <= report.step
    usable = np.flatnonzero(known & finite & possible & recent)
    _, last = np.unique(ids[usable][::-1], return_index=True)
    if len(last) < len(usable):
        usable = usable[np.sort(len(usable) - 1 - last)]
    reasons = {
        "unknown_id": int(np.count_nonzero(~known)),
        "nan": int(np.count_nonzero(known & ~finite)),
        "negative_norm": int(np.count_nonzero(known & finite & ~possible)),
        "old": int(np.count_nonzero(known & finite & possible & ~recent)),
    }
    nothing = np.full(len(usable), np.nan, dtype=np.float32)
    block = ReportBlock(
        example_ids=ids[usable],
        losses=nothing if report.losses is None else report.losses[usable],
        norms=nothing if report.norms is None else report.norms[usable],
        sketches=None if report.sketches is None else report.sketches[usable],
        step=report.step,
    )
    return block, {reason: count for reason, count in reasons.items() if count}


def positions(batch_ids: Int64, reported_ids: Int64) -> np.ndarray | None:
    """Where the reported examples stand in the batch, (r,) intp; None when one does not."""
    if np.array_equal(batch_ids, reported_ids):
        return np.arange(len(batch_ids))
    order = np.argsort(batch_ids, kind="stable")
    found = np.searchsorted(batch_ids[order], reported_ids)
    found = order[np.minimum(found, len(order) - 1)]
    return found if np.array_equal(batch_ids[found], reported_ids) else None
