"""A copy of a data set on another node: brought up to the manifest of the node that has it.

What a shard holds never changes under its name, so a copy is made once, in pieces, checked by its checksum, and the
manifest is replaced last. Nodes that share a file system find the files there, and copy nothing. A copy becomes what
its own data has become elsewhere, and nothing else: other data under its name, or a change that was made to it alone,
is a Conflict.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sampler_service.errors import Conflict, Damaged, NotFound
from sampler_service.records.checksums import HashedFile
from sampler_service.records.directory import changing
from sampler_service.records.manifest import (
    MANIFEST,
    PART,
    FileInfo,
    Manifest,
    fits,
    manifest_from_json,
    read_deleted,
    read_manifest,
    write_manifest,
)
from sampler_service.records.writing import full
from sampler_service.types import Version

PIECE_BYTES = 8 * 1024**2
"""of a file that are fetched at a time"""

MANIFEST_BYTES = 1 << 30
"""of a manifest, at most"""

Fetch = Callable[[str, int, int], bytes]
"""(file, start, length) -> bytes of a file of the data set on the node that has it"""


def serve_piece(folder: Path, file: str, start: int, length: int) -> bytes:
    """Part of a file of a data set; less than `length` where the file ends. The other side of a `Fetch`.

    Raises:
        Damaged: there is no such file.
    """
    try:
        with (folder / Path(file).name).open("rb") as opened:
            opened.seek(start)
            return opened.read(length)
    except FileNotFoundError as error:
        raise Damaged(f"{folder / file} is missing: `sampler-service verify` says what else is") from error


def fetch_manifest(fetch: Fetch, where: str) -> Manifest:
    """The manifest of the node that has the data set; `where` is for messages."""
    # In one piece: the file is replaced as a whole when the data set changes.
    return manifest_from_json(fetch(MANIFEST, 0, MANIFEST_BYTES).decode(), where)


def bring_up_to_date(folder: Path, fetch: Fetch, where: str = "the other node", this: str = "this node") -> int:
    """Have in a folder what the node that is asked has, if that is newer. What is here is never overwritten by data
    that it did not become.

    Args:
        folder: DATA_DIR/dataset of this node.
        fetch: asks the node that has it.
        where: that node, and
        this: this one, for messages.

    Returns:
        bytes that were fetched; 0 where all was here.

    Raises:
        Conflict: what is here is other data, or was changed here and there; nothing has changed then.
        Damaged: what came is not what its manifest says.
        Unavailable: the disk is full; or whatever `fetch` raises. What was fetched is kept, and not fetched again.
        Busy: another process is changing this copy.
    """
    wanted = fetch_manifest(fetch, where)
    here = _registered(folder)
    if here == wanted and _checked(folder, here).issuperset(wanted.files()):
        return 0
    with changing(folder):
        here = _registered(folder)  # once more: it may have been changed just now
        checked, fetched = _checked(folder, here), 0
        if here is not None and not _may_become(here, wanted):
            raise two_kinds(folder, this, here.version, where, wanted.version)
        if here is not None and here.generation > wanted.generation:
            return 0
        # Deleted ids come first: if some of ours are not among them, no more is fetched.
        for file in sorted(wanted.files(), key=lambda file: file is not wanted.deleted):
            if file not in checked and not fits(folder / file.file, file):
                fetch_file(folder, file, fetch, where)
                fetched += file.bytes
            if here is not None and file is wanted.deleted and _loses(folder, here, wanted):
                raise two_kinds(folder, this, here.version, where, wanted.version)
        write_manifest(folder, wanted)
    return fetched


def two_kinds(folder: Path, one: str, of_one: Version, other: str, of_other: Version) -> Conflict:
    """What to raise where two nodes have under one name what can't be brought together.

    Args:
        folder: DATA_DIR/dataset, on both.
        one, of_one: a node, and what it has.
        other, of_other: another.
    """
    both = " and on ".join(
        f"{node} (registered as {version.uid[:8]}, generation {version.generation})"
        for node, version in ((one, of_one), (other, of_other))
    )
    if of_one.uid != of_other.uid:
        return Conflict(
            f"data set {folder.name!r} on {both} is different data under one name: remove {folder} from the node "
            "whose data is not wanted any more, or ingest one of them under another name; nothing was copied"
        )
    return Conflict(
        f"data set {folder.name!r} was changed on {both}, each without the change of the other: remove {folder} from "
        "one of them, which then copies the other's, and make its changes again; nothing was copied"
    )


def _may_become(here: Manifest, wanted: Manifest) -> bool:
    """Whether one of two is what the other became, as far as manifests tell: deleted ids are in a file."""
    if here.uid != wanted.uid:
        return False
    older, newer = sorted((here, wanted), key=lambda manifest: manifest.generation)
    if newer.shards[: len(older.shards)] != older.shards:
        return False
    if older.deleted is None:
        return older.generation < newer.generation or older == newer
    return newer.deleted is not None and (newer.deleted.file != older.deleted.file or newer.deleted == older.deleted)


def _loses(folder: Path, here: Manifest, wanted: Manifest) -> bool:
    """Whether an example would come back that is deleted here."""
    if here.deleted is None or not _there(folder, here.deleted):
        return False
    return not np.isin(read_deleted(folder, here.deleted), read_deleted(folder, wanted.deleted)).all()


def _registered(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except NotFound:
        return None


def _checked(folder: Path, manifest: Manifest | None) -> set[FileInfo]:
    return {file for file in manifest.files() if _there(folder, file)} if manifest else set()


def fetch_file(folder: Path, file: FileInfo, fetch: Fetch, where: str) -> None:
    """Fetch one file, in pieces; it appears whole, or not at all."""
    path = folder / file.file
    part = path.with_name(f"{path.name}{PART}copy-{os.getpid()}")
    try:
        with part.open("wb") as opened:
            hashed = HashedFile(opened)
            while hashed.bytes < file.bytes:
                piece = fetch(file.file, hashed.bytes, min(PIECE_BYTES, file.bytes - hashed.bytes))
                if not piece:
                    break
                hashed.write(piece)
            if (hashed.bytes, hashed.checksum) != (file.bytes, file.checksum):
                raise Damaged(f"{file.file} of {where} is not what its manifest says: verify the data set there")
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(part, path)
    except OSError as error:
        raise full(error, path) from error
    finally:
        part.unlink(missing_ok=True)


def _there(folder: Path, file: FileInfo) -> bool:
    path = folder / file.file
    return path.is_file() and path.stat().st_size == file.bytes
