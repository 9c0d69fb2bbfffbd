"""Data sets of one node, copied to another over Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sampler_service.errors import Unavailable
from sampler_service.records.copies import Fetch, serve_piece
from sampler_service.runtime.calls import answer

PIECE_S = 60.0
"""deadline for a piece of a file"""


def fetch_from(node: str, folder: Path) -> Fetch:
    """Reads files of a data set on another node.

    Args:
        node: its id, as Ray has it.
        folder: DATA_DIR/dataset there.
    """
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    serve: Any = ray.remote(serve_piece).options(num_cpus=0, scheduling_strategy=where)

    def fetch(file: str, start: int, length: int) -> bytes:
        what = f"{file} of {folder.name} from node {node}"
        try:
            return answer(serve.remote(folder, file, start, length), PIECE_S, what)
        except RayError as error:  # a task, unlike an actor, says in many ways that its node is gone
            raise Unavailable(f"waited for {what}: {error}") from error

    return fetch
