"""What a person may give as data, and in which format it is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

from sampler_service.errors import ConfigError
from sampler_service.records.addresses import Address, Found, StorageOptions, resolve, shown_uri
from sampler_service.records.fragments import Fragment, Known, Source
from sampler_service.records.images import EXTENSIONS, ImageFolders, extension
from sampler_service.records.items import hugging_face_fragments, items_fragments
from sampler_service.records.tables import StreamedFragment, parquet_fragments, table_fragments
from sampler_service.records.tars import TarFragment

Format = Literal["auto", "parquet", "arrow", "csv", "jsonl", "images", "webdataset"]

_FORMATS: dict[str, Format] = {
    **dict.fromkeys(("parquet", "pq"), "parquet"),
    **dict.fromkeys(("arrow", "feather", "ipc"), "arrow"),
    **dict.fromkeys(("csv", "tsv"), "csv"),
    **dict.fromkeys(("jsonl", "ndjson", "json"), "jsonl"),
    **dict.fromkeys(("tar", "tgz"), "webdataset"),
    **dict.fromkeys(EXTENSIONS, "images"),
}
"""by what a file's name ends with, but for compression"""

_COMPRESSED = frozenset(("gz", "bz2", "zst", "xz", "lz4"))


@dataclass(frozen=True)
class Files:
    """Files of one format, each of them a fragment or several."""

    address: Address
    format: Format

    def fragments(self, known: Known) -> Sequence[Fragment]:
        files = [found for found in self.address.files() if format_of(found) == self.format] or self.address.files()
        return [fragment for found in known.unknown(files, self.fragments_of) for fragment in self.fragments_of(found)]

    def fragments_of(self, found: Found) -> Sequence[Fragment]:
        """Of one of its files."""
        fs = self.address.fs
        if self.format == "parquet":
            return parquet_fragments(fs, found)
        if self.format == "webdataset":
            return [TarFragment(fs, found)]
        assert self.format in ("arrow", "csv", "jsonl")
        return [StreamedFragment(fs, found, self.format)]


@dataclass(frozen=True)
class InMemory:
    """What has no address."""

    found: Sequence[Fragment]

    def fragments(self, known: Known) -> Sequence[Fragment]:
        return [fragment for fragment in self.found if fragment.identity not in known.memory]


@dataclass(frozen=True)
class Several:
    """Sources one after the other."""

    sources: Sequence[Source]

    def fragments(self, known: Known) -> Sequence[Fragment]:
        return [fragment for source in self.sources for fragment in source.fragments(known)]


def source_of(data: Any, form: Format = "auto", storage_options: StorageOptions | None = None) -> Source:
    """What data can be taken from.

    Args:
        data: an address or several of them (see `addresses`), a `pyarrow.Table`, a `datasets.Dataset`, or a map-style
            dataset.
        form: of the files; "auto" goes by their names.
        storage_options: see `addresses.resolve`.

    Raises:
        ConfigError: it is none of these, or its files are of several formats or of none that is known.
        NotFound, Unavailable: see `Address.files`.
    """
    if form not in get_args(Format):
        raise ConfigError(f"the format {form!r} is none of {', '.join(get_args(Format))}")
    if isinstance(data, str | os.PathLike):
        address = resolve(os.fspath(data), storage_options)
        form = _detect(address) if form == "auto" else form
        return ImageFolders((address,)) if form == "images" else Files(address, form)
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        return InMemory(table_fragments(data))
    if isinstance(data, list | tuple) and data and all(isinstance(each, str | os.PathLike) for each in data):
        _check_different(data)
        return _together([source_of(each, form, storage_options) for each in data])
    if type(data).__module__.partition(".")[0] == "datasets":
        if not hasattr(data, "_fingerprint") or not hasattr(data, "with_format"):
            raise ConfigError(
                f"a {type(data).__name__} can't be registered: give one of its splits, such as data['train'], loaded "
                "without streaming=True"
            )
        return InMemory(hugging_face_fragments(data))
    return InMemory(items_fragments(data))


def _check_different(data: Sequence[str | os.PathLike[str]]) -> None:
    """Raise ConfigError for addresses that would be kept as one, though they are not."""
    given: dict[str, str] = {}
    for each in map(str, data):
        uri = shown_uri(each)
        if given.setdefault(uri, each) != each:
            raise ConfigError(
                f"{uri} is given twice, with something else behind its ?, which is not kept: register each as a data "
                "set of its own, or copy the files"
            )


def _together(sources: Sequence[Source]) -> Source:
    """Sources one after the other; folders of images number their classes together."""
    folders = [source for source in sources if isinstance(source, ImageFolders)]
    if len(folders) == len(sources):
        return ImageFolders(tuple(address for folder in folders for address in folder.addresses))
    return Several(sources)


def format_of(found: Found) -> Format | None:
    """The format that a file's name tells."""
    name = found.name.rpartition("/")[2]
    if extension(name) in _COMPRESSED:
        name = name.rpartition(".")[0]
    return _FORMATS.get(extension(name))


def _detect(address: Address) -> Format:
    files = address.files()
    formats = Counter(format_of(found) for found in files)
    formats.pop(None, None)
    if not formats:
        what = f"of {len(files)} files, such as {files[0].name}" if files else "for it is empty"
        raise ConfigError(f"the format of {address.uri} is not known {what}: choose one with format=, --format")
    if len(formats) > 1:
        counted = ", ".join(f"{count} of {form}" for form, count in formats.most_common())
        raise ConfigError(f"{address.uri} has files of several formats ({counted}): choose one with format=, --format")
    return next(iter(formats))  # pyright: ignore[reportReturnType] - None was taken out
