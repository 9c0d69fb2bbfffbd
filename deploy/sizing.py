"""How much memory a run takes, how many shards and GPUs: the table of README.md, or a line for a set of your own.

    python deploy/sizing.py                # the table
    python deploy/sizing.py 3e8 128        # 300 million examples, sketches of 128 float16

The service places runs by the same figures.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from sampler_service import sizes
from sampler_service.sizes import GIB

SHARD_BYTES = 2 * GIB
"""of rows that a shard should hold at most: a lost one loses little, and its pass over the rows stays short"""

SHARDS_PER_GPU = 8
"""rows stay in the host's memory; on the card a shard has a context and scratch space, about 1 GiB"""

SIZES = [(10**6, 64), (10**7, 64), (10**7, 256), (10**8, 64), (10**8, 256), (10**9, 64)]


@dataclass(frozen=True, slots=True)
class Need:
    """What one run takes."""

    examples: int
    dim: int

    @property
    def run_bytes(self) -> float:
        """Of the run's actor."""
        return sizes.run_bytes(self.examples)

    @property
    def row_bytes(self) -> float:
        """Of one example in its shard."""
        return sizes.row_bytes(self.dim)

    @property
    def shards(self) -> int:
        return math.ceil(self.examples * self.row_bytes / SHARD_BYTES)

    @property
    def shard_bytes(self) -> float:
        """Of each shard's actor."""
        return sizes.shard_bytes(self.examples / self.shards, self.dim)

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
