"""WebDataset: tar files in which neighbours of one name, up to its first dot, are one sample."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
from pyarrow import fs as pafs

from sampler_service.errors import Damaged
from sampler_service.records.addresses import Found, reaching
from sampler_service.records.fragments import Bad
from sampler_service.records.images import EXTENSIONS, extension
from sampler_service.records.manifest import Identity
from sampler_service.records.schemas import IMAGE

KEY = "__key__"
"""column of the samples' names"""

LOOK = 100
"""samples that say which columns there are"""

SAMPLES_BYTES = 1 << 23
"""of samples that make a batch, about"""

_NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")

_TYPES = {"cls": pa.int64(), "json": pa.string(), "txt": pa.string(), "text": pa.string()}
"""by what a name ends with; all else is bytes"""


@dataclass(frozen=True)
class TarFragment:
    """A tar file, compressed or not: a column for each extension, and the key."""

    fs: pafs.FileSystem
    found: Found

    @property
    def identity(self) -> Identity:
        return self.found.identity

    def schema(self) -> pa.Schema:
        names: dict[str, None] = {}
        for number, sample in enumerate(self._samples()):
            names |= dict.fromkeys(name for name in sample if name != KEY)
            if number + 1 == LOOK:
                break
        return pa.schema([pa.field(KEY, pa.string()), *(_field(name) for name in sorted(names))])

    def batches(self, schema: pa.Schema, bad: Bad) -> Iterator[pa.RecordBatch]:
        samples, size = [], 0
        everything = set(self.schema().names) <= set(schema.names)
        for sample in self._samples():
            if everything and not sample.keys() <= set(schema.names):
                extra = sorted(sample.keys() - set(schema.names))[0]
                raise Damaged(
                    f"sample {sample[KEY]!r} of {self.found.uri} has a member .{extra}, and the first {LOOK} have "
                    "none: choose columns with columns=, --columns"
                )
            try:
                samples.append({name: _value(name, sample.get(name)) for name in schema.names})
            except ValueError as error:
                bad.found(f"sample {sample[KEY]!r}", self.found.uri, error)
            size += sum(len(value) for value in sample.values())
            if size > SAMPLES_BYTES:
                yield pa.RecordBatch.from_pylist(samples, schema)
                samples, size = [], 0
        if samples:
            yield pa.RecordBatch.from_pylist(samples, schema)

    def name_of(self, batch: pa.RecordBatch, row: int, before: int) -> str:
        if KEY in batch.schema.names:
            return f"sample {batch.column(KEY)[row].as_py()!r}"
        return f"sample {before + row}"

    def _samples(self) -> Iterator[dict[str, Any]]:
        """Members by extension, and the key, in the order of the file."""
        sample: dict[str, Any] = {}
        for name, data in self._members():
            matched = _NAME.match(name)
            if matched is None:
                continue
            key, column = matched[1], matched[2].lower()
            if sample and sample[KEY] != key:
                yield sample
                sample = {}
            if column in sample:
                raise Damaged(
                    f"sample {key!r} of {self.found.uri} has two members .{column}: name one of them otherwise"
                )
            sample |= {KEY: key, column: data}
        if sample:
            yield sample

    def _members(self) -> Iterator[tuple[str, bytes]]:
        with reaching(self.found.uri):
            stream = self.fs.open_input_stream(self.found.path, compression=None)
        try:
            with stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as tar:
                for member in tar:
                    if member.isfile():
                        yield member.name.removeprefix("./"), tar.extractfile(member).read()  # pyright: ignore[reportOptionalMemberAccess]
        except (tarfile.TarError, EOFError, OSError) as error:
            raise Damaged(
                f"{self.found.uri} is no tar file that can be read to its end: {error}; is it whole?"
            ) from error


_ENDS = (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError)  # pyright: ignore[reportAttributeAccessIssue]
"""what is raised in place of a member where a file has no more bytes"""


class _NoEndMark(tarfile.TarError):
    """A tar file ends where another member could begin."""


class _Member(tarfile.TarInfo):
    """Of a file that must have its end mark: without one it was cut off, or its writer died."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _ENDS as error:
            raise _NoEndMark("it has no end mark") from error


def _field(name: str) -> pa.Field:
    ending = extension(name)
    return pa.field(name, _TYPES.get(ending, pa.binary()), metadata=IMAGE if ending in EXTENSIONS else None)


def _value(name: str, data: Any) -> Any:
    """A member as its column has it.

    Raises:
        ValueError: a class is no number, or a text is none.
    """
    if data is None or name == KEY:
        return data
    kind = _TYPES.get(extension(name))
    if kind is None:
        return data
    text = data.decode("utf-8")
    return int(text) if kind == pa.int64() else text
