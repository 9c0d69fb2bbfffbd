"""The nodes of a Ray cluster, asked for the data sets that they have."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sampler_service.errors import SamplerError
from sampler_service.records.copies import Fetch
from sampler_service.records.nodes import Holdings
from sampler_service.remarks import Remarks
from sampler_service.runtime import names
from sampler_service.runtime.calls import answer
from sampler_service.runtime.copies import fetch_from
from sampler_service.types import Version

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""within which the nodes must have said what they have; one that did not is asked again next time"""


class RayNodes:
    """See `records.nodes.Nodes`. On each other node an actor looks: for a task, which comes every few seconds, a busy
    node would start a process each time. All gateways of a service ask the same ones, which end with the gateway that
    was the first to ask.

    Args:
        namespace: of the service.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._here = ray.get_runtime_context().get_node_id()
        self._lock = threading.Lock()
        self._asked: dict[str, Any] = {}
        self._ids: dict[str, str] = {}
        self._remarks = Remarks(log)
        self.this = next((_name(node) for node in ray.nodes() if node["NodeID"] == self._here), "this node")

    def versions(self, folder: Path) -> dict[str, Version]:
        """By name of a node: what those that answer have in a folder, DATA_DIR/dataset."""
        others = {_name(node): node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != self._here}
        self._ids.update(others)
        asked = {node: self._holdings(node).version.remote(folder) for node in others}
        found, until = {}, time.monotonic() + LOOK_S
        for node, reference in asked.items():
            try:
                found[node] = answer(reference, max(0.0, until - time.monotonic()), node)
            except (SamplerError, RayError) as error:
                self._remarks.warn("%s does not say what it has in %s: %s", node, folder, error)
                with self._lock:  # its actor may have ended; the next look makes another
                    self._asked.pop(node, None)
        return {node: version for node, version in found.items() if version is not None}

    def fetch(self, node: str, folder: Path) -> Fetch:
        """Reads files in a folder of the node of this name."""
        return fetch_from(self._ids[node], folder)

    def _holdings(self, node: str) -> Any:
        with self._lock:
            if node not in self._asked:
                actor: Any = ray.remote(Holdings).options(
                    name=names.join("holdings", self._ids[node]),
                    namespace=self._namespace,
                    get_if_exists=True,
                    num_cpus=0,
                    max_concurrency=4,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(self._ids[node], soft=False),
                )
                self._asked[node] = actor.remote()
            return self._asked[node]


def _name(node: dict[str, Any]) -> str:
    """What a person calls it; machines may share a name, and one may have several nodes."""
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
