"""The port between where data comes from and how it is written: a source lists fragments, each becomes one shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import pyarrow as pa

from sampler_service.errors import Damaged, Stale
from sampler_service.records.addresses import Found
from sampler_service.records.manifest import Identity

OnBad = Literal["fail", "skip"]

SHARD_BYTES = 256 * 1024**2
"""of a source, about, that become one shard where it can be divided: what an interruption loses at most"""


class Bad:
    """What is done with a record that can't be used: fail, or leave it out and remember which."""

    def __init__(self, on_bad: OnBad) -> None:
        self._on_bad = on_bad
        self.skipped: list[str] = []

    def found(self, name: str, where: object, why: object) -> None:
        """Take note of a bad record.

        Raises:
            Damaged: with on_bad="fail".
        """
        if self._on_bad == "fail":
            raise Damaged(
                f"{name} of {where} can't be used: {why}; mend it, or leave such records out: on_bad='skip', "
                "--on-bad skip"
            )
        self.skipped.append(name)


class Fragment(Protocol):
    """A part of a source. It goes to other processes, and must give the same records each time it is read."""

    @property
    def identity(self) -> Identity: ...

    def schema(self) -> pa.Schema:
        """The columns it has, by as short a look as will do."""
        ...

    def batches(self, schema: pa.Schema, bad: Bad) -> Iterator[pa.RecordBatch]:
        """Its records in order, with at least the columns of `schema`, a few megabytes at a time.

        Raises:
            Damaged: it can't be read as what it should be.
        """
        ...

    def name_of(self, batch: pa.RecordBatch, row: int, before: int) -> str:
        """What to call a record: by its row in this batch, and the rows before it in this fragment."""
        ...


class RowsByNumber:
    """Of fragments whose records have no names."""

    def name_of(self, batch: pa.RecordBatch, row: int, before: int) -> str:  # noqa: ARG002
        return f"row {before + row}"


@dataclass(frozen=True, slots=True)
class Known:
    """What of a source is registered already, when more is appended.

    Attributes:
        versions: by uri of a file, (bytes, version).
        memory: identities of what had no address.
        names: by uri of a folder of images, a function that gives the names of its registered files.
        classes: names of the classes of images, in the order of their labels.
        holds: whether all fragments of a file, by its uri, still make what is registered of it.
    """

    versions: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    memory: frozenset[Identity] = frozenset()
    names: Mapping[str, Callable[[], set[str]]] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    holds: Callable[[str, Callable[[], Sequence[Fragment]]], bool] = lambda *_: False

    def unknown(self, files: Sequence[Found], fragments_of: Callable[[Found], Sequence[Fragment]]) -> list[Found]:
        """Files that are not registered.

        Raises:
            Stale: one of them was registered, and is another now.
        """
        for found in files:
            registered = self.versions.get(found.uri)
            if registered is None or registered == (found.bytes, found.version):
                continue
            if registered[0] != found.bytes or not self.holds(found.uri, partial(fragments_of, found)):
                raise Stale(
                    f"{found.uri} has changed since it was registered ({registered[0]} bytes then, {found.bytes} now): "
                    "its records keep their ids, so register what it holds now under another name"
                )
        return [found for found in files if found.uri not in self.versions]


class Source(Protocol):
    """Something that data can be taken from."""

    def fragments(self, known: Known) -> Sequence[Fragment]:
        """All of it that is not registered yet, in the order of the ids.

        Raises:
            NotFound, ConfigError, Unavailable: see `addresses`.
            Stale: a registered file has changed.
        """
        ...


def divide(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of neighbours whose sizes add up to `most` at most; one alone may be larger."""
    start = total = 0
    for number, size in enumerate(sizes):
        if number > start and total + size > most:
            yield start, number
            start, total = number, 0
        total += size
    if start < len(sizes):
        yield start, len(sizes)
