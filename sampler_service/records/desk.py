"""What the servers of a node ask of its records: streams read them, the page shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sampler_service.errors import NotFound
from sampler_service.records.directory import DataDirectory
from sampler_service.records.looks import look_of
from sampler_service.records.manifest import MANIFEST
from sampler_service.records.reading import RecordReader
from sampler_service.records.store import RecordStore
from sampler_service.types import Decoding, Recorded, Version


class RecordDesk:
    """See `rpc.records.Records` for what a call does. Whatever has changed on disk is there at the next one.

    Args:
        directory: of the node's data sets.
        bring: see `nodes.NodeRecords`; None: there are no other nodes.
    """

    def __init__(self, directory: DataDirectory, bring: Callable[[str], bool] | None = None) -> None:
        self._directory = directory
        self._from_others = bring or (lambda _: True)
        self._seen: dict[str, int] = {}

    def bring(self, dataset: str) -> bool:
        folder = self._directory.folder(dataset)  # its errors first: what comes over the wire is a name, or refused
        return self._from_others(folder.relative_to(self._directory.path).as_posix())

    def describe(self, dataset: str) -> Recorded:
        store = self._directory.newest(dataset)
        schema = store.schema.serialize().to_pybytes()
        return Recorded(uid=store.version.uid, num_examples=store.num_examples, deleted=store.deleted, schema=schema)

    def version(self, dataset: str) -> Version:
        return self._newest(dataset).version

    def reader(self, dataset: str, columns: Sequence[str], decode: Sequence[Decoding]) -> RecordReader:
        return RecordReader(self._directory.newest(dataset), columns, decode)

    def look(self, dataset: str) -> Callable[[int], Any] | None:
        """What makes an example of a dataset visible, for `web.previews`; None: there are no records of it here."""
        if not self._directory.holds(dataset):
            return None
        seen = self._directory.open(dataset)
        look = look_of(seen)

        def present(example_id: int) -> Any:
            nonlocal seen, look
            store = self._newest(dataset)  # what was appended is there then, what was deleted is not
            if store is not seen:
                seen, look = store, look_of(store)
            return look(example_id)

        return present

    def _newest(self, dataset: str) -> RecordStore:
        # A look at the file's time instead of into it: this is asked for before each batch.
        folder = self._directory.folder(dataset)
        try:
            changed = (folder / MANIFEST).stat().st_mtime_ns
        except FileNotFoundError:
            raise NotFound(
                f"there are no records in {folder}; `sampler-service ingest URI --name {dataset}` adds some"
            ) from None
        if self._seen.get(dataset) == changed:
            return self._directory.open(dataset)
        store = self._directory.newest(dataset)
        self._seen[dataset] = changed
        return store
