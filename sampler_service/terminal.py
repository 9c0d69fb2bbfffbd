"""What a terminal shows of a service: a table of its runs, a live view, an explanation."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import MappingProxyType

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sampler_client._pb import sampler_pb2 as pb

Runs = Mapping[str, pb.GetStatisticsResponse]


def runs_table(title: str, runs: Runs) -> Table:
    """A row per run, its policy below its name. In 80 columns long names are folded, and numbers stay whole."""
    table = _table(title, "run", ("examples", "sketched", "batches", "ratio", "lead", "trainers"))
    for run, s in runs.items():
        table.add_row(
            f"{escape(run)}\n  {_policy(s)}",
            f"{s.num_examples - s.deleted:,}",
            f"{s.sketch_coverage:.0%}",
            f"{s.batches:,}",
            number(s.variance_ratio),
            f"{s.lead}/{s.max_lead}",
            str(s.trainers),
        )
    return table


def remarks(runs: Runs, unanswered: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """What a person should know of them besides; and of runs that did not answer, why."""
    missing = [f"{run} does not answer: {why}" for run, why in unanswered.items()]
    return missing + [
        f"{run}: {word}"
        for run, said in runs.items()
        for word in (said.reason, deletions(said), shard_trouble(said), scoring(said))
        if word
    ]


def deletions(said: pb.GetStatisticsResponse) -> str:
    """How many examples were deleted; empty when none were."""
    return f"{said.deleted:,} of {said.num_examples:,} examples were deleted" if said.deleted else ""


def shard_trouble(said: pb.GetStatisticsResponse) -> str:
    """What became of shards that failed; empty when none did."""
    away = f"{said.shards_away} of {said.shards} shards do not answer" if said.shards_away else ""
    lost = f"shards came back empty {said.shards_lost} times, their sketches are lost" if said.shards_lost else ""
    return "; ".join(filter(None, (away, lost)))


def scoring(said: pb.GetStatisticsResponse) -> str:
    """What scorers do; empty when there was nothing for them to do."""
    if not said.weights_version:
        return said.scorer_error
    words = (
        f"{said.scorers} scorers at work, {said.scored_rows:,} rows scored, weights {said.weights_version} of step "
        f"{said.weights_step:,}; median age {number(said.median_age_steps, ',.0f')} steps"
    )
    return f"{words}; {said.scorer_error}" if said.scorer_error else words


class Top:
    """A live view: each call of `frame` is what changed since the last one."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._before: dict[str, tuple[float, pb.GetStatisticsResponse]] = {}

    def frame(self, runs: Runs, unanswered: Mapping[str, str] = MappingProxyType({})) -> RenderableType:
        """The service now: its runs, and why others did not answer."""
        now = time.monotonic()
        clock = time.strftime("%H:%M:%S")
        if not runs and not unanswered:
            return Text(f"{self._service}  {clock}\n\nno run yet: attach a DataLoader to it, and it shows here")
        parts: list[RenderableType] = [self._runs(f"{self._service}  {clock}", runs, now)]
        for run, said in runs.items():
            if said.ranks:
                parts.append(self._ranks(run, said, now))
        parts += [Text(remark, style="dim") for remark in remarks(runs, unanswered)]
        self._before = {run: (now, said) for run, said in runs.items()}
        return Group(*parts)

    def _runs(self, title: str, runs: Runs, now: float) -> Table:
        table = _table(title, "run", ("epoch", "covered", "ex/s", "reports/s", "ratio", "ESS", "age", "lead", "memory"))
        for run, s in runs.items():
            table.add_row(
                f"{escape(run)}\n  {_policy(s)}",
                f"{s.epoch}" if math.isnan(s.progress) else f"{s.epoch} ({s.progress:.0%})",
                f"{s.epoch_coverage:.0%}",
                number(self._rate(run, "examples", now, s.examples), ",.0f"),
                number(self._rate(run, "reported_rows", now, s.reported_rows), ",.0f"),
                number(s.variance_ratio),
                number(s.effective_sample_ratio),
                number(s.median_age_steps, ",.0f"),
                f"{s.lead}/{s.max_lead}",
                _size(s.memory_bytes),
            )
        return table

    def _ranks(self, run: str, said: pb.GetStatisticsResponse, now: float) -> Table:
        table = _table(f"trainers of {run}", "trainer", ("rank", "epoch", "held", "examples", "waited"))
        _, before = self._before.get(run, (now, None))
        waited = {rank.rank: rank.waited_seconds for rank in before.ranks} if before else {}
        seconds = now - self._before[run][0] if before else math.nan
        for rank in said.ranks[:32]:
            share = (rank.waited_seconds - waited.get(rank.rank, math.nan)) / seconds if seconds else math.nan
            table.add_row(
                escape(rank.trainer) + ("" if rank.connected else " [red](gone)[/red]"),
                str(rank.rank),
                "-" if rank.epoch < 0 else str(rank.epoch),
                f"{rank.held}/{rank.lead}",
                f"{rank.examples:,}",
                number(max(0.0, share) if not math.isnan(share) else share, ".0%"),
            )
        return table

    def _rate(self, run: str, field: str, now: float, value: int) -> float:
        at, before = self._before.get(run, (now, None))
        return (value - getattr(before, field)) / (now - at) if before is not None and now > at else math.nan


def explanation(run: str, found: pb.ExplainResponse) -> RenderableType:
    """Why an example was drawn."""
    example = found.example
    lines: list[RenderableType] = [Text(f"example {example.example_id} of {run}", style="bold")]
    lines += [Text(sentence) for sentence in found.why]
    if not found.neighbours:
        return Group(*lines, Text(found.no_neighbours, style="dim"))
    table = _table(
        "nearest in gradient space", "example", ("similarity", "loss", "norm", "drawn", "expected", "cluster")
    )
    for near in found.neighbours:
        other = near.example
        table.add_row(
            str(other.example_id),
            f"{near.similarity:.3f}",
            number(other.loss, ".3g"),
            number(other.norm, ".3g"),
            f"{other.drawn:,}",
            number(other.rate),
            "-" if other.cluster < 0 else str(other.cluster),
        )
    return Group(*lines, Text(), table)


def number(value: float, form: str = ".2f") -> str:
    """A figure, "-" while it is not known."""
    return "-" if math.isnan(value) else format(value, form)


def _policy(said: pb.GetStatisticsResponse) -> str:
    return said.policy if said.active_policy in ("", said.policy) else f"{said.policy} ({said.active_policy})"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _table(title: str, first: str, others: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
