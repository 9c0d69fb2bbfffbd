"""Records of a node that other nodes have too: before a stream reads them, what is newer elsewhere is copied here."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sampler_service.errors import NotFound, SamplerError, Unavailable
from sampler_service.records.manifest import read_manifest
from sampler_service.runtime.calls import answer
from sampler_service.runtime.copies import copy_from

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""deadline for a node's answer, and how long what the nodes said is believed"""


class NodeRecords:
    """Keeps this node's copies up to date.

    Args:
        data_dir: folder of all data sets, the same path on every node.
    """

    def __init__(self, data_dir: str) -> None:
        self._data_dir = Path(data_dir).expanduser().absolute()
        self._lock = threading.Lock()
        self._looked: dict[str, float] = {}

    def bring(self, dataset: str) -> None:
        """Have of a dataset what the node with the newest generation has, if that is not this one.

        Raises:
            Damaged, Unavailable, Busy: it could not be copied, and there is nothing of it here.
        """
        with self._lock:
            if time.monotonic() < self._looked.get(dataset, float("-inf")) + LOOK_S:
                return
            folder = self._data_dir / dataset
            here = generation_of(folder)
            others = _elsewhere(folder)
            node = max(others, key=lambda node: others[node], default="")
            if node and others[node] > here:
                try:
                    fetched = copy_from(node, folder)
                    log.info("data set %s: %d bytes copied from node %s", dataset, fetched, node)
                except SamplerError as error:
                    if here < 0:
                        raise
                    log.warning("data set %s is served as it was, generation %d: %s", dataset, here, error)
            self._looked[dataset] = time.monotonic()


def generation_of(folder: Path) -> int:
    """Of a data set in a folder of this node; -1 where there is none."""
    try:
        return read_manifest(folder).generation
    except NotFound:
        return -1


def _elsewhere(folder: Path) -> dict[str, int]:
    """Generations on the other nodes that answer and have any."""
    this = ray.get_runtime_context().get_node_id()
    asked: dict[str, Any] = {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != this:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look: Any = ray.remote(generation_of).options(num_cpus=0, scheduling_strategy=where)
            asked[node["NodeID"]] = look.remote(folder)
    found = {}
    for node, reference in asked.items():
        try:
            found[node] = answer(reference, LOOK_S, f"node {node}")
        except (Unavailable, RayError) as error:
            log.warning("node %s was not asked for data sets: %s", node, error)
    return {node: generation for node, generation in found.items() if generation >= 0}
