"""Writing shards in this process, with a progress bar."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sampler_service.records.manifest import ShardInfo
from sampler_service.records.writing import Work, write_shard

MOST_WRITERS = 8
"""shards written at once, where there are so many cores"""


class _GivenUp(Exception):
    """Another shard has failed."""


def one_by_one(works: Sequence[Work]) -> Iterator[ShardInfo]:
    """Write shards in their order, and say nothing."""
    return (write_shard(work) for work in works)


def with_bar(works: Sequence[Work]) -> Iterator[ShardInfo]:
    """Write shards, several at once where they come from files, and show how far it is on standard error, where that
    is a terminal. When one fails, those under way are given up, and those that are finished stay."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("shards"))
    counts = TextColumn("{task.fields[rows]:,} records, {task.fields[bytes]:,.0f} MB")
    console = Console(stderr=True)
    with Progress(*columns, counts, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(works[0].path.parent.name, total=len(works), rows=0, bytes=0.0)
        rows = size = 0
        lock, given_up = threading.Lock(), threading.Event()

        def tell(more_rows: int, more_bytes: int) -> None:
            nonlocal rows, size
            if given_up.is_set():
                raise _GivenUp
            with lock:
                rows, size = rows + more_rows, size + more_bytes
                progress.update(task, rows=rows, bytes=size / 1e6)

        with ThreadPoolExecutor(_writers(works)) as pool:
            futures = [pool.submit(write_shard, work, tell) for work in works]
            try:
                for future in as_completed(futures):
                    yield future.result()
                    progress.advance(task)
            finally:
                given_up.set()
                pool.shutdown(wait=False, cancel_futures=True)


def _writers(works: Sequence[Work]) -> int:
    """A person's own objects may not be used by several threads."""
    if any(work.fragment.identity.kind == "memory" for work in works):
        return 1
    return min(os.cpu_count() or 1, MOST_WRITERS)
