"""What the servers of a node ask of its records: streams read them, the page shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sampler_service.records.directory import DataDirectory
from sampler_service.records.looks import look_of
from sampler_service.records.manifest import MANIFEST
from sampler_service.records.reading import RecordReader
from sampler_service.records.store import RecordStore
from sampler_service.types import Decoding, Recorded


class RecordDesk:
    """See `rpc.records.Records` for what a call does. Whatever has changed on disk is there at the next one.

    Args:
        directory: of the node's data sets.
        bring: has a dataset here if another node has it; None: there are no other nodes.
    """

    def __init__(self, directory: DataDirectory, bring: Callable[[str], None] | None = None) -> None:
        self._directory = directory
        self._bring = bring
        self._seen: dict[str, int] = {}

    def describe(self, dataset: str) -> Recorded:
        store = self._store(dataset)
        schema = store.schema.serialize().to_pybytes()
        return Recorded(num_examples=store.num_examples, deleted=store.deleted, schema=schema)

    def generation(self, dataset: str) -> int:
        store = self._directory.open(dataset)
        # A look at the file's time instead of into it: this is asked for before each batch.
        changed = (store.path / MANIFEST).stat().st_mtime_ns
        if self._seen.get(dataset) != changed:
            store.refresh()
            self._seen[dataset] = changed
        return store.generation

    def reader(self, dataset: str, columns: Sequence[str], decode: Sequence[Decoding]) -> RecordReader:
        return RecordReader(self._store(dataset), columns, decode)

    def look(self, dataset: str) -> Callable[[int], Any] | None:
        """What makes an example of a dataset visible, for `web.previews`; None: there are no records of it here."""
        here = (self._directory.folder(dataset) / MANIFEST).exists()
        if not here:
            return None
        look = look_of(self._directory.open(dataset))

        def present(example_id: int) -> Any:
            self.generation(dataset)  # what was appended is there then, what was deleted is not
            return look(example_id)

        return present

    def _store(self, dataset: str) -> RecordStore:
        folder = self._directory.folder(dataset)  # its errors first: what comes over the wire is a name, or refused
        if self._bring is not None:
            self._bring(folder.relative_to(self._directory.path).as_posix())
        store = self._directory.open(dataset)
        store.refresh()
        return store
