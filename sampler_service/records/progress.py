"""Writing shards in this process, with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sampler_service.records.manifest import ShardInfo
from sampler_service.records.writing import Work, write_shard


def in_process(works: Sequence[Work]) -> Iterator[ShardInfo]:
    """Write shards one after the other, and say nothing."""
    return (write_shard(work) for work in works)


def with_bar(works: Sequence[Work]) -> Iterator[ShardInfo]:
    """Write shards one after the other, and show how far it is on standard error, where that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"))
    counts = TextColumn("{task.fields[rows]:,} records, {task.fields[bytes]:,.0f} MB")
    console = Console(stderr=True)
    with Progress(*columns, counts, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(works[0].path.parent.name, total=len(works), rows=0, bytes=0.0)
        rows = size = 0

        def tell(more_rows: int, more_bytes: int) -> None:
            nonlocal rows, size
            rows, size = rows + more_rows, size + more_bytes
            progress.update(task, rows=rows, bytes=size / 1e6)

        for work in works:
            yield write_shard(work, tell)
            progress.advance(task)
