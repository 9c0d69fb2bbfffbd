"""Where data lies: local paths and object stores, by one form of address.

"digits/", "/data/*.parquet", "file:///data/a.csv", "s3://bucket/train?region=eu-west-1", "gs://…": pyarrow's own file
systems where it has one for the scheme, fsspec's otherwise ("https://…", "az://…", "memory://…").
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from pyarrow import fs as pafs

from sampler_service.errors import ConfigError, NotFound, SamplerError, Unavailable
from sampler_service.records.manifest import Identity

StorageOptions = Mapping[str, Any]


def _s3(**options: Any) -> pafs.FileSystem:
    # As for URIs without options, where pyarrow looks at this itself.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return pafs.S3FileSystem(**({"endpoint_override": endpoint} if endpoint else {}) | options)


_NATIVE: dict[str, Callable[..., pafs.FileSystem]] = {
    "s3": _s3,
    "gs": lambda **options: pafs.GcsFileSystem(**options),
}
"""by scheme: file systems of pyarrow that take storage options"""

_BY_URI = ("file", "s3", "gs", "gcs", "hdfs", "viewfs")
"""schemes of addresses that pyarrow takes, without further options"""

_DENIED = ("ACCESS_DENIED", "FORBIDDEN", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "credentials", "401", "403")
"""what errors of object stores say, which pyarrow hands on as text, where they want to know who is asking"""


_USER = r"(?<=://)[^/?#\s'\"]*@"

_SIGNED = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]*")


def without_secrets(uri: str) -> str:
    """An address without a user and a password, and without its query, which may be a signature; paths as they are."""
    return re.sub(_USER, "", uri).partition("?")[0] if "://" in uri else uri


def shown_uri(uri: str) -> str:
    """An address as it is shown and kept: queries only for pyarrow's file systems, where they say where a store is."""
    return re.sub(_USER, "", uri) if uri.partition("://")[0] in _BY_URI else without_secrets(uri)


def _said(error: Exception) -> str:
    """What other libraries say, with addresses in it."""
    return _SIGNED.sub(r"\1", re.sub(_USER, "", str(error)))


@dataclass(frozen=True, slots=True)
class Found:
    """A file at the source.

    Attributes:
        path: on its file system.
        name: the path below the address that was listed; of a single file, its name.
        uri: of the file.
        bytes: its size.
        version: time of the last change in ns, or an etag; empty where the store tells neither.
    """

    path: str
    name: str
    uri: str
    bytes: int
    version: str

    @property
    def identity(self) -> Identity:
        return Identity("file", self.uri, bytes=self.bytes, version=self.version)


@dataclass(frozen=True, slots=True)
class Address:
    """A file, a folder, or files by a pattern with `*`."""

    uri: str
    """as it is shown and kept: local ones are absolute paths, others have no password (see `shown_uri`)"""
    fs: pafs.FileSystem
    path: str

    def files(self) -> list[Found]:
        """All files below it, sorted by name; hidden ones, whose names begin with . or _, are left out.

        Raises:
            NotFound: there is nothing of this name.
            ConfigError: the store wants other credentials.
            Unavailable: the store can't be reached.
        """
        shown = without_secrets(self.path)
        pattern = "*" in shown
        fits = re.compile(".*".join(map(re.escape, shown.split("*"))), re.DOTALL)  # [ and ? stand for themselves
        base = self.path[: self.path.index("*")].rpartition("/")[0] if pattern else self.path.rstrip("/")
        with reaching(self.uri):
            listed = list(self._list(base))
        files = [
            Found(path, _name_of(path, base), self._uri_of(path), size, version)
            for path, size, version in listed
            if not pattern or fits.fullmatch(without_secrets(path))
        ]
        if pattern and not files:
            raise NotFound(f"no file fits {self.uri}: look at the pattern")
        shown = [each for each in files if not any(part.startswith((".", "_")) for part in each.name.split("/"))]
        return sorted(shown, key=lambda found: found.path)

    def _uri_of(self, path: str) -> str:
        """Address of one file of this one's file system, with the same query."""
        if "://" in path:
            return without_secrets(path)
        base, _, query = self.uri.partition("?")
        if "://" not in base:
            return path
        prefix = base[: len(base) - len(self.path)] if base.endswith(self.path) else base.partition("://")[0] + "://"
        return f"{prefix}{path}?{query}" if query else prefix + path

    def _list(self, base: str) -> Iterator[tuple[str, int, str]]:
        """(path, bytes, version) of each file."""
        if isinstance(self.fs, pafs.PyFileSystem):
            store = self.fs.handler.fs
            found = {base: store.info(base)} if store.isfile(base) else store.find(base, detail=True)
            if not found and not store.exists(base):
                raise FileNotFoundError
            for path, info in found.items():
                told = (info.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "created"))
                yield path, info.get("size") or 0, _version(next((each for each in told if each), ""))
            return
        infos = [self.fs.get_file_info(base)]
        if infos[0].type == pafs.FileType.NotFound:
            raise FileNotFoundError
        if infos[0].type == pafs.FileType.Directory:
            infos = self.fs.get_file_info(pafs.FileSelector(base, recursive=True))
        for info in infos:
            if info.type == pafs.FileType.File:
                yield info.path, info.size, "" if info.mtime_ns is None else str(info.mtime_ns)


def _name_of(path: str, base: str) -> str:
    """Of a file below an address, or of the one file that is there."""
    shown = without_secrets(path)
    return shown.removeprefix(without_secrets(base)).strip("/") or shown.rpartition("/")[2]


def resolve(uri: str, storage_options: StorageOptions | None = None) -> Address:
    """The file system and the path of an address.

    Args:
        uri: a local path, or scheme://…
        storage_options: for the file system, such as endpoint_override, access_key and secret_key for s3; those of
            `pyarrow.fs.S3FileSystem` and `GcsFileSystem`, of fsspec for all other schemes.

    Raises:
        ConfigError: nobody knows the scheme, what it needs is not installed, or it does not take the options.
    """
    scheme, separator, rest = uri.partition("://")
    shown = shown_uri(uri)
    options = dict(storage_options or {})
    try:
        if not separator:
            path = pafs.LocalFileSystem().normalize_path(str(Path(uri).expanduser().absolute()))
            return Address(path, pafs.LocalFileSystem(), path)
        if options and scheme in _NATIVE:
            return Address(shown, _NATIVE[scheme](**options), rest.partition("?")[0].rstrip("/"))
        if not options and scheme in _BY_URI:
            with reaching(shown):
                filesystem, path = pafs.FileSystem.from_uri(uri)
            return Address(path if scheme == "file" else shown, filesystem, path)
        filesystem, path = fsspec.core.url_to_fs(uri, **options)
        return Address(shown, pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path)
    except (ValueError, TypeError, ImportError, pa.ArrowInvalid) as error:
        if isinstance(error, SamplerError):
            raise
        using = f" with the storage options {', '.join(sorted(options))}" if options else ""
        raise ConfigError(f"the address {shown!r}{using} can't be used: {_said(error)}") from error


def _version(told: Any) -> str:
    """An etag, or a time: one store may tell it now as a datetime, and now as seconds."""
    seconds = told.timestamp() if isinstance(told, datetime) else told
    return str(round(seconds * 1e6)) if isinstance(seconds, float) else str(told)


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Say in our own words why a store did not answer as it should."""
    try:
        yield
    except SamplerError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"there is nothing at {uri}: look at the spelling, and whether it is mounted") from error
    except Exception as error:  # of any library that fsspec has found for the scheme
        said = _said(error)
        if isinstance(error, PermissionError) or any(word in str(error) for word in _DENIED):
            raise ConfigError(
                f"{uri} may not be read ({said}): give credentials in the environment, such as AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or as storage options"
            ) from error
        raise Unavailable(f"{uri} can't be read ({type(error).__name__}: {said}): try again, or look at it") from error
