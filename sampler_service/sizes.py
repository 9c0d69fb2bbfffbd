"""How much memory the parts of a run take: for those who place them, and for the table in deploy/README.md.

Bytes an example are asked of the columns themselves, so that this can't drift away from them.
"""

from __future__ import annotations

from sampler_service.drawn import Drawn
from sampler_service.shard import Shard
from sampler_service.table import Table

GIB = 1024**3

PROCESS_BYTES = 0.3 * GIB
"""of an actor before its first example: Python, Ray, numpy, FAISS and the rows that a shard converts at a time"""

WORKING_BYTES = 128
"""an example that a run holds beside its columns, at its peak: orders, cumulative rates, what statistics sort.
tests/deploy/test_sizes.py measures it."""

_ROWS = 1000
"""of the stores that are asked: the fixed parts vanish"""


def run_bytes(num_examples: int) -> float:
    """Of a run's actor."""
    columns = (Table(_ROWS).memory_bytes + Drawn(_ROWS).memory_bytes) / _ROWS
    return num_examples * (columns + WORKING_BYTES) + PROCESS_BYTES


def row_bytes(dim: int, dtype: str = "float16") -> float:
    """Of an example in its shard, whose sketch has `dim` numbers."""
    return Shard(0, 1, _ROWS, dim, dtype).stock()[2] / _ROWS


def shard_bytes(num_rows: float, dim: int, dtype: str = "float16") -> float:
    """Of a shard's actor that has so many examples."""
    return num_rows * row_bytes(dim, dtype) + PROCESS_BYTES
