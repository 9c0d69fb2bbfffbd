"""How much memory a run takes, how many shards and GPUs: the table of README.md, or a line for a set of your own.

    python deploy/sizing.py                # the table
    python deploy/sizing.py 3e8 128        # 300 million examples, sketches of 128 float16

Bytes an example are asked of the service's own columns, so that this can't drift away from them.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from sampler_service.drawn import Drawn
from sampler_service.shard import Shard
from sampler_service.table import Table

GIB = 1024**3

SHARD_BYTES = 2 * GIB
"""of rows that a shard should hold at most: a lost one loses little, and its pass over the rows stays short"""

WORKING_BYTES = 128
"""an example that a run holds beside its columns, at its peak: orders, cumulative rates, what statistics sort.
tests/deploy/test_sizes.py measures it."""

PROCESS_BYTES = 0.3 * GIB
"""of an actor before its first example: Python, Ray, numpy, FAISS and the rows that a shard converts at a time"""

SHARDS_PER_GPU = 8
"""rows stay in the host's memory; on the card a shard has a context and scratch space, about 1 GiB"""

SIZES = [(10**6, 64), (10**7, 64), (10**7, 256), (10**8, 64), (10**8, 256), (10**9, 64)]

_ROWS = 1000
"""of the stores that are asked: the fixed parts vanish"""


@dataclass(frozen=True, slots=True)
class Need:
    """What one run takes."""

    examples: int
    dim: int

    @property
    def run_bytes(self) -> float:
        """Of the run's actor."""
        columns = (Table(_ROWS).memory_bytes + Drawn(_ROWS).memory_bytes) / _ROWS
        return self.examples * (columns + WORKING_BYTES) + PROCESS_BYTES

    @property
    def row_bytes(self) -> float:
        """Of one example in its shard."""
        return Shard(0, 1, _ROWS, self.dim).stock()[2] / _ROWS

    @property
    def shards(self) -> int:
        return math.ceil(self.examples * self.row_bytes / SHARD_BYTES)

    @property
    def shard_bytes(self) -> float:
        """Of each shard's actor."""
        return self.examples * self.row_bytes / self.shards + PROCESS_BYTES

    @property
    def total_bytes(self) -> float:
        return self.run_bytes + self.shards * self.shard_bytes

    @property
    def gpus(self) -> int:
        """As many as hold all shards; more make them faster."""
        return math.ceil(self.shards / SHARDS_PER_GPU)


def row(need: Need) -> str:
    """A line of the table."""
    sizes = (f"{size / GIB:.1f} GiB" for size in (need.run_bytes, need.shard_bytes, need.total_bytes))
    run, shard, total = sizes
    return f"| {need.examples:g} | {need.dim} | {run} | {need.shards} | {shard} | {total} | {need.gpus} |".replace(
        "e+0", "e"
    )


HEAD = """\
| examples | d | run actor | shards | each | all | GPUs, if any |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def main(arguments: list[str]) -> None:
    sizes = [(int(float(arguments[0])), int(arguments[1]))] if arguments else SIZES
    print(HEAD, *(row(Need(*size)) for size in sizes), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
