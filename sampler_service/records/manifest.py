"""What is registered of a data set: one JSON file beside its shards, replaced as a whole.

DATA_DIR/mnist/
    manifest.json           schema, number of examples, one entry for each shard, and the two files below
    00000.arrow …           records, in Arrow's IPC file format; never changed once they are there
    keys-00001.arrow        keys in order, and the example_id of each (where the data set has an id column)
    deleted-00002.npy       deleted example_ids, int64 in order (where any were deleted)

The numbers in the last two names are generations. Readers that hold an older manifest keep what they have mapped.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sampler_service.errors import ConfigError, Damaged, NotFound
from sampler_service.records.checksums import checksum, checksum_of
from sampler_service.types import Version

FORMAT = 2
"""of the manifest; a later one is not read"""

WITHOUT_UID = 1
"""format of manifests that said no uid: that of a first shard stands for it, which all copies have"""

MANIFEST = "manifest.json"

PART = ".part-"
"""in the names of files that are not whole yet"""

Kind = Literal["file", "images", "memory"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a shard was made of, so that a change of it is noticed."""

    kind: Kind
    """one file; files of a folder of images; or what had no address"""
    uri: str
    part: str = ""
    """which part of it; empty: the whole"""
    bytes: int = 0
    version: str = ""
    """when the file was changed (or its etag); for others a hash"""

    def __str__(self) -> str:
        return f"{self.uri} ({self.part})" if self.part else self.uri


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of a data set, with what it must hold."""

    file: str
    bytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class ShardInfo(FileInfo):
    rows: int
    source: Identity
    first_id: int = 0
    """example_id of its first row"""
    skipped: tuple[str, ...] = ()
    """records of the source that were left out, for they were bad"""


@dataclass(frozen=True, slots=True)
class Deleted(FileInfo):
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A data set as it is registered.

    Attributes:
        uid: of the registration. Copies have it too, appending and deleting keep it, and data that is registered anew
            under the same name has another.
        generation: 1 at first, and one more after each change.
        schema: of the records; extension types and metadata of fields included.
        num_examples: rows of all shards, deleted ones too; ids are 0 … num_examples - 1.
        id_column: column of the keys, if there is one.
        selected: whether columns of the source were left out.
    """

    name: str
    generation: int
    schema: pa.Schema
    num_examples: int
    shards: tuple[ShardInfo, ...]
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)
    id_column: str | None = None
    selected: bool = False
    keys: FileInfo | None = None
    deleted: Deleted | None = None

    @property
    def bytes(self) -> int:
        """Of all its shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def version(self) -> Version:
        content = checksum_of("".join(file.checksum for file in self.files()).encode())
        return Version(self.uid, self.generation, content)

    def shards_of(self, uri: str) -> list[ShardInfo]:
        """Those that were made of one source, in its order."""
        return [shard for shard in self.shards if shard.source.uri == uri]

    def files(self) -> Iterator[FileInfo]:
        """All files but the manifest itself."""
        yield from self.shards
        yield from (file for file in (self.keys, self.deleted) if file is not None)

    def to_json(self) -> str:
        said: dict[str, Any] = {"format": FORMAT, "name": self.name, "uid": self.uid, "generation": self.generation}
        said |= {"num_examples": self.num_examples, "id_column": self.id_column, "selected": self.selected}
        said["columns"] = {field.name: str(field.type) for field in self.schema}  # for people; read is the next line
        said["schema"] = base64.b64encode(self.schema.serialize()).decode()
        said |= {"keys": self.keys and asdict(self.keys), "deleted": self.deleted and asdict(self.deleted)}
        said["shards"] = [asdict(shard) for shard in self.shards]
        return json.dumps(said, indent=1)


def shard_from_json(said: Mapping[str, Any]) -> ShardInfo:
    """A shard as `dataclasses.asdict` and JSON have it."""
    return ShardInfo(**{**said, "source": Identity(**said["source"]), "skipped": tuple(said["skipped"])})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data set.

    Raises:
        NotFound: nothing is registered in this folder.
        Damaged: the file can't be read.
    """
    path = folder / MANIFEST
    try:
        return manifest_from_json(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise NotFound(
            f"no data set is registered in {folder}: `sampler-service datasets` lists those there are"
        ) from None


def manifest_from_json(text: str, where: str) -> Manifest:
    """See `read_manifest`; `where` is for the message."""
    try:
        said = json.loads(text)
        if said["format"] not in (FORMAT, WITHOUT_UID):
            raise ConfigError(
                f"{where} has format {said['format']}, and this version reads up to {FORMAT}: install the version that "
                "wrote it, or ingest the data set anew"
            )
        return Manifest(
            name=said["name"],
            uid=said["shards"][0]["checksum"] if said["format"] == WITHOUT_UID else said["uid"],
            generation=said["generation"],
            schema=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(said["schema"]))),
            num_examples=said["num_examples"],
            shards=tuple(shard_from_json(shard) for shard in said["shards"]),
            id_column=said["id_column"],
            selected=said["selected"],
            keys=FileInfo(**said["keys"]) if said["keys"] else None,
            deleted=Deleted(**said["deleted"]) if said["deleted"] else None,
        )
    except (LookupError, TypeError, ValueError, pa.ArrowException) as error:
        if isinstance(error, ConfigError):
            raise
        raise Damaged(f"{where} can't be read ({type(error).__name__}: {error}): ingest the data set anew") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest, and remove what only older ones knew."""
    write_atomically(folder / MANIFEST, manifest.to_json().encode())
    known = {file.file for file in manifest.files()}
    for pattern in ("keys-*.arrow", "deleted-*.npy"):
        for path in folder.glob(pattern):
            if path.name not in known:
                path.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """A file that is there wholly or not at all, also after a power cut."""
    part = path.with_name(f"{path.name}{PART}{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def fits(path: Path, info: FileInfo) -> bool:
    """Whether a file is there, whole and with these bytes in it."""
    return path.is_file() and path.stat().st_size == info.bytes and checksum(path) == info.checksum


def read_deleted(folder: Path, deleted: Deleted | None) -> np.ndarray:
    """Deleted example_ids, int64, ascending.

    Raises:
        Damaged: the file does not hold what the manifest says.
    """
    if deleted is None:
        return np.empty(0, np.int64)
    path = folder / deleted.file
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise Damaged(f"{path}, the deleted ids, can't be read ({error}): restore it from another node") from error
    if ids.dtype != np.int64 or ids.shape != (deleted.count,):
        raise Damaged(f"{path} has {ids.shape} of {ids.dtype}, not {deleted.count} deleted ids: restore it")
    return ids
