"""All data sets of a node: a folder each, below one."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sampler_service.config import check_name, default_data_dir
from sampler_service.errors import Busy, ConfigError, Conflict, NotFound, SamplerError
from sampler_service.records.manifest import MANIFEST
from sampler_service.records.store import RecordStore
from sampler_service.records.writing import full

LOCK = ".lock"
"""file that is locked by who changes a data set"""


class DataDirectory:
    """The data sets below one folder, opened when they are asked for and kept open.

    Example:
        datasets = DataDirectory("/data")
        datasets.open("mnist").take(ids)
        datasets.refresh()  # what grew, what was deleted, what is new

    Args:
        path: of the folder, which need not be there; None: in the user's cache, as `sampler-service` has it.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path or default_data_dir()).expanduser().absolute()
        self._lock = threading.Lock()
        self._open: dict[str, RecordStore] = {}

    def names(self) -> list[str]:
        """Of all data sets that are registered, sorted."""
        return sorted(str(found.parent.relative_to(self.path)) for found in self.path.rglob(MANIFEST))

    def folder(self, name: str) -> Path:
        """Where a data set is, or would be.

        Raises:
            ConfigError: it is no name.
        """
        check_name("dataset", name)
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise ConfigError(f"dataset name {name!r} must not have a part that is empty, . or ..")
        return self.path / name

    def holds(self, name: str) -> bool:
        """Whether there is a data set of this name."""
        try:
            return (self.folder(name) / MANIFEST).exists()
        except ConfigError:
            return False

    def open(self, name: str) -> RecordStore:
        """A data set; the same object each time, until other data is seen under its name.

        Raises:
            NotFound: none of this name is registered; the message says which are.
            Damaged: see `RecordStore.open`.
        """
        with self._lock:
            if name not in self._open:
                try:
                    self._open[name] = RecordStore.open(self.folder(name))
                except NotFound as error:
                    there = ", ".join(self.names()) or "none"
                    raise NotFound(
                        f"no data set {name!r} in {self.path}; there: {there}; sampler-service ingest URI --name {name}"
                    ) from error
            return self._open[name]

    def newest(self, name: str) -> RecordStore:
        """A data set as it is by now; another object than before where other data is registered under its name.

        Raises:
            NotFound, Damaged: see `open`.
        """
        store = self.open(name)
        try:
            store.refresh()
        except Conflict:  # who reads the old one goes on with it
            with self._lock:
                if self._open.get(name) is store:
                    del self._open[name]
            return self.open(name)
        return store

    def open_all(self) -> dict[str, RecordStore]:
        """All data sets by name."""
        return {name: self.open(name) for name in self.names()}

    def refresh(self) -> list[str]:
        """Look at all of them again; names of those that are new or have changed. A removed one is forgotten.

        Raises:
            Damaged: one of them can't be read; all others are refreshed then.
        """
        names = self.names()
        with self._lock:
            known = {name: self._open[name] for name in names if name in self._open}
            self._open = dict(known)
        before = {name: store.version for name, store in known.items()}
        changed, failed = [], None
        for name in names:
            try:
                if self.newest(name).version != before.get(name):
                    changed.append(name)
            except SamplerError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return changed


def open_all(data_dir: str | Path | None = None) -> dict[str, RecordStore]:
    """All data sets below a folder, by name."""
    return DataDirectory(data_dir).open_all()


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Be the only one, of all processes of this machine, who changes a data set.

    Raises:
        Busy: somebody else does.
        Unavailable: the folder can't be written to, or its disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / LOCK).open("w")
    except OSError as error:
        raise full(error, folder) from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"another process is changing the data set in {folder}: wait until it has ended") from error
        yield
