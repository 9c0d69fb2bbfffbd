"""Records that several nodes have: what is newer elsewhere is copied here.

Asked for before a stream begins to read, and again and again while runs go on (`rpc.following`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from sampler_service.errors import Conflict, SamplerError, Unavailable
from sampler_service.records.copies import Fetch, bring_up_to_date, two_kinds
from sampler_service.records.manifest import MANIFEST, read_manifest
from sampler_service.remarks import Remarks
from sampler_service.types import Version

log = logging.getLogger(__name__)

LOOKING_S = 1.0
"""within which a look at the nodes is over, when nothing is copied: who has a copy waits no longer for one under way"""

WAIT_S = 60.0
"""within which a first copy must be made by another thread"""


class Nodes(Protocol):
    """The other nodes."""

    this: str
    """what this one is called"""

    def versions(self, folder: Path) -> Mapping[str, Version]:
        """By name of a node: what those that answer have in a folder, DATA_DIR/dataset."""
        ...

    def fetch(self, node: str, folder: Path) -> Fetch:
        """Reads files in a folder of the node of this name."""
        ...


class Holdings:
    """What a node has of data sets; a look at one that has not changed costs microseconds."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, Version]] = {}

    def version(self, folder: Path) -> Version | None:
        """What is registered in a folder; None: nothing.

        Raises:
            Damaged: its manifest can't be read.
        """
        try:
            changed = (folder / MANIFEST).stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return None
        seen = self._seen.get(folder)
        if seen is None or seen[0] != changed:
            seen = self._seen[folder] = changed, read_manifest(folder).version
        return seen[1]


class NodeRecords:
    """Keeps this node's copies up to date. Any number of threads may ask.

    Args:
        data_dir: folder of all data sets, the same path on every node.
        nodes: the others.
    """

    def __init__(self, data_dir: str, nodes: Nodes) -> None:
        self._data_dir = Path(data_dir).expanduser().absolute()
        self._nodes = nodes
        self._holdings = Holdings()
        self._locks: dict[str, threading.Lock] = {}
        self._remarks = Remarks(log)

    def bring(self, dataset: str) -> bool:
        """Have of a dataset what the node with the newest generation has, if that is not this one.

        Returns:
            whether that is here now; False: what is here stays as it was for now, for it can't be copied, or is being
            copied by another thread.

        Raises:
            Conflict: nodes have different data under this name, or changes that don't go together.
            Damaged, Unavailable, Busy: it could not be copied, and there is nothing of it here.
        """
        folder = self._data_dir / dataset
        here = self._holdings.version(folder)
        # One for each: a large copy keeps nobody from another data set.
        lock = self._locks.setdefault(dataset, threading.Lock())
        if not lock.acquire(timeout=WAIT_S if here is None else LOOKING_S):
            if here is None:
                raise Unavailable(
                    f"waited {WAIT_S:g} s for data set {dataset!r} to be copied to {self._nodes.this}; that goes on: "
                    "try again"
                )
            return False
        try:
            return self._look(dataset, folder)
        finally:
            lock.release()

    def _look(self, dataset: str, folder: Path) -> bool:
        this, here = self._nodes.this, self._holdings.version(folder)
        found = dict(self._nodes.versions(folder))
        if here is not None:
            found[this] = here
        if not found:
            return True
        newest = max(found, key=lambda node: found[node].generation)
        for node, version in found.items():
            if version.uid != found[newest].uid:
                raise two_kinds(folder, node, version, newest, found[newest])
        if found[newest] == here:
            return True
        try:
            fetched = bring_up_to_date(folder, self._nodes.fetch(newest, folder), newest, this)
            log.info("data set %s: %d bytes copied from %s", dataset, fetched, newest)
            return True
        except Conflict:
            raise
        except SamplerError as error:
            if here is None:
                raise
            self._remarks.warn("data set %s is served as it was, generation %d: %s", dataset, here.generation, error)
            return False
