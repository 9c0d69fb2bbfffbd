"""Nodes of a cluster without one: each is a data directory on this disk."""

from __future__ import annotations

import threading
from pathlib import Path

from sampler_service.errors import Unavailable
from sampler_service.records.copies import Fetch, serve_piece
from sampler_service.records.nodes import Holdings, NodeRecords
from sampler_service.types import Version

PATIENCE_S = 20.0


class FolderNodes:
    """The other nodes, as `data_dir`'s node sees them.

    Args:
        data_dir: of this node.
        others: data directories by name.
    """

    this = "node here"

    def __init__(self, data_dir: Path, **others: Path) -> None:
        self._data_dir = data_dir
        self._others = others
        self._holdings = Holdings()
        self.away: set[str] = set()
        """nodes from which nothing can be fetched"""
        self.slow: dict[str, threading.Event] = {}
        """data sets that are fetched when the event is set"""
        self.begun = threading.Event()
        """a slow one is being fetched"""

    def versions(self, folder: Path) -> dict[str, Version]:
        found = {name: self._holdings.version(self._there(name, folder)) for name in self._others}
        return {f"node {name}": version for name, version in found.items() if version is not None}

    def fetch(self, node: str, folder: Path) -> Fetch:
        name = node.removeprefix("node ")

        def fetch(file: str, start: int, length: int) -> bytes:
            if name in self.away:
                raise Unavailable(f"waited for {file} from {node}")
            if folder.name in self.slow:
                self.begun.set()
                assert self.slow[folder.name].wait(PATIENCE_S)
            return serve_piece(self._there(name, folder), file, start, length)

        return fetch

    def _there(self, name: str, folder: Path) -> Path:
        return self._others[name] / folder.relative_to(self._data_dir)


def records_of(data_dir: Path, **others: Path) -> tuple[NodeRecords, FolderNodes]:
    """What keeps the copies of a node up to date, and the other nodes."""
    nodes = FolderNodes(data_dir, **others)
    return NodeRecords(str(data_dir), nodes), nodes
