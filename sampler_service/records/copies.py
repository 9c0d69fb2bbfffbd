"""A copy of a data set on another node: brought up to the manifest of the node that has it.

What a shard holds never changes under its name, so a copy is made once, in pieces, checked by its checksum, and the
manifest is replaced last. Nodes that share a file system find the files there, and copy nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sampler_service.errors import Damaged
from sampler_service.records.checksums import HashedFile
from sampler_service.records.directory import changing
from sampler_service.records.manifest import (
    MANIFEST,
    PART,
    FileInfo,
    Manifest,
    fits,
    manifest_from_json,
    read_manifest,
    write_manifest,
)
from sampler_service.records.writing import full

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


def bring_up_to_date(folder: Path, fetch: Fetch, where: str = "the other node") -> int:
    """Have in a folder what the node that is asked has.

    Args:
        folder: DATA_DIR/dataset of this node.
        fetch: asks the node that has it.
        where: that node, for messages.

    Returns:
        bytes that were fetched; 0 where all was here.

    Raises:
        Damaged: what came is not what its manifest says.
        Unavailable: the disk is full; or whatever `fetch` raises. What was fetched is kept, and not fetched again.
        Busy: another process is changing this copy.
    """
    wanted = fetch_manifest(fetch, where)
    here = read_manifest(folder) if (folder / MANIFEST).exists() else None
    # What a manifest of ours names was checked when it came; after an interruption there are files without one.
    checked = {file for file in here.files() if _there(folder, file)} if here else set[FileInfo]()
    if here == wanted and checked.issuperset(wanted.files()):
        return 0
    with changing(folder):
        fetched = 0
        for file in wanted.files():
            if file not in checked and not fits(folder / file.file, file):
                fetch_file(folder, file, fetch, where)
                fetched += file.bytes
        write_manifest(folder, wanted)
    return fetched


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
