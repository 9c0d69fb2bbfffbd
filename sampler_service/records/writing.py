"""One fragment becomes one shard: wholly or not at all, and not again when it is there already."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from sampler_service.errors import Damaged, Unavailable
from sampler_service.records.checksums import HashedFile, checksum_of
from sampler_service.records.fragments import Bad, Fragment, OnBad
from sampler_service.records.images import sound_rows
from sampler_service.records.manifest import PART, ShardInfo, fits, shard_from_json, write_atomically
from sampler_service.records.schemas import conform, is_image

BLOCK_BYTES = 4 * 1024**2
"""of records in one batch of a shard, at least. Reading by id costs the same for any number of batches, but each is an
object in memory: small ones are joined, and those of readers, which are larger than this, are not copied"""

Tell = Callable[[int, int], None]
"""(rows, bytes) that were written since the last call"""


@dataclass(frozen=True)
class Work:
    """A shard to be written; goes to other processes."""

    fragment: Fragment
    path: Path
    """of the shard"""
    schema: pa.Schema
    on_bad: OnBad = "fail"

    @property
    def note(self) -> Path:
        """Where it is said, until the manifest does, what the shard holds."""
        return self.path.with_suffix(".json")


def write_shard(work: Work, tell: Tell = lambda *_: None) -> ShardInfo:
    """Write a shard, or find it written by an ingestion that was interrupted.

    Raises:
        Damaged: the fragment, or a record of it, can't be used.
        Unavailable: the disk is full, or the source can't be reached.
    """
    written = finished(work)
    if written is not None:
        tell(written.rows, written.bytes)
        return written
    part = work.path.with_name(f"{work.path.name}{PART}{uuid.uuid4().hex}")
    try:
        with open_part(part) as file:
            shard = _write(work, file, tell)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, work.path)
        write_note(work, shard)
    except OSError as error:
        raise full(error, work.path) from error
    finally:
        part.unlink(missing_ok=True)
    return shard


def holds(shards: Sequence[ShardInfo], fragments_of: Callable[[], Sequence[Fragment]], schema: pa.Schema) -> bool:
    """Whether fragments still make the shards that were made of them. They are read for that, and nothing is written.

    Args:
        shards: all of one source, in their order.
        fragments_of: gives that source's fragments as they are now.
        schema: of the data set.

    Raises:
        Unavailable, ConfigError: the source can't be read.
    """
    try:
        fragments = fragments_of()
        if [fragment.identity.part for fragment in fragments] != [shard.source.part for shard in shards]:
            return False
        for shard, fragment in zip(shards, fragments, strict=True):
            made = _write(Work(fragment, Path(shard.file), schema, "skip"), None, lambda *_: None)
            if (made.bytes, made.checksum) != (shard.bytes, shard.checksum):
                return False
    except Damaged:
        return False
    return True


def open_part(path: Path) -> IO[bytes]:
    """A file for a shard that is being written."""
    return path.open("wb")


def full(error: OSError, path: Path) -> Exception:
    """What to raise for an error of the disk: in our own words where it is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable(
            f"the disk of {path.parent} is full: shards that were finished are kept; make room, give the same command "
            "again, and it goes on from there"
        )
    return Unavailable(f"{path} can't be written: {error}")


def finished(work: Work) -> ShardInfo | None:
    """The shard, if it is there, was made of the same, and has the bytes that were written."""
    try:
        said = json.loads(work.note.read_text(encoding="utf-8"))
        shard = shard_from_json(said["shard"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    same = said["made"] == _made(work) and shard.source == work.fragment.identity
    return shard if same and fits(work.path, shard) else None


def write_note(work: Work, shard: ShardInfo) -> None:
    """Say that a shard is finished."""
    write_atomically(work.note, json.dumps({"shard": asdict(shard), "made": _made(work)}).encode())


def _made(work: Work) -> str:
    """A hash of what a shard depends on beside its fragment."""
    return checksum_of(work.schema.serialize().to_pybytes() + work.on_bad.encode())


def _write(work: Work, file: IO[bytes] | None, tell: Tell) -> ShardInfo:
    hashed, bad, rows = HashedFile(file), Bad(work.on_bad), 0
    with pa.ipc.new_file(pa.PythonFile(hashed, mode="w"), work.schema) as writer:
        for block in _blocks(_records(work, bad)):
            before = hashed.bytes
            writer.write_batch(block)
            rows += block.num_rows
            tell(block.num_rows, hashed.bytes - before)
    return ShardInfo(
        file=work.path.name,
        bytes=hashed.bytes,
        checksum=hashed.checksum,
        rows=rows,
        source=work.fragment.identity,
        skipped=tuple(bad.skipped),
    )


def _records(work: Work, bad: Bad) -> Iterator[pa.RecordBatch]:
    """Records of the schema whose images decode."""
    identity, before = str(work.fragment.identity), 0
    looks = any(is_image(field) for field in work.schema)
    for read in work.fragment.batches(work.schema, bad):
        batch = conform(read, work.schema, identity)
        if looks:
            sound, why = sound_rows(batch)
            for row, reason in why.items():
                bad.found(work.fragment.name_of(read, row, before), identity, reason)
            if why:
                batch = batch.filter(pa.array(sound))
        before += read.num_rows
        yield batch


def _blocks(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same records in batches of BLOCK_BYTES or more, but for the last."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if batch.num_rows:
            waiting.append(batch)
            size += batch.nbytes
        if size >= BLOCK_BYTES:
            yield _joined(waiting)
            waiting, size = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.concat_batches(batches) if batches[1:] else batches[0]
