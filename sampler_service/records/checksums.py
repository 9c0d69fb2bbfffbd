"""Checksums of files: blake2b of 16 bytes, in hex."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, Any

READ_BYTES = 1 << 22
"""at a time"""


def checksum(path: Path) -> str:
    """Of a whole file."""
    hashed = HashedFile()
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            hashed.write(data)
    return hashed.checksum


class HashedFile:
    """A file that is written from its beginning, and the checksum of what was written.

    Args:
        file: None: the bytes go nowhere, and only the checksum is wanted.
    """

    closed = False

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._file = file
        self._digest: Any = hashlib.blake2b(digest_size=16)
        self.bytes = 0

    @property
    def checksum(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: Any) -> int:
        if self._file is not None:
            self._file.write(data)
        self._digest.update(data)
        size = memoryview(data).nbytes
        self.bytes += size
        return size

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None: ...


def checksum_of(data: bytes) -> str:
    hashed = HashedFile()
    hashed.write(data)
    return hashed.checksum
