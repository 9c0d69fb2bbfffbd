"""Whether a data set is still what was registered: the bytes of its files, and where they came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pyarrow import fs as pafs

from sampler_service.errors import Damaged, NotFound, Stale
from sampler_service.records.addresses import Address, Found, StorageOptions, resolve
from sampler_service.records.checksums import checksum
from sampler_service.records.images import ImagesFragment, quiet_pillow, version_of
from sampler_service.records.ingestion import image_names
from sampler_service.records.manifest import FileInfo, Manifest, ShardInfo
from sampler_service.records.schemas import class_names
from sampler_service.records.sources import Files, format_of
from sampler_service.records.store import RecordStore
from sampler_service.records.writing import holds

SHOWN = 10
"""lines in a message"""

LOOKERS = 8
"""sources that are asked at once"""


def verify(
    store: RecordStore,
    *,
    sources: bool = True,
    storage_options: StorageOptions | None = None,
    tell: Callable[[FileInfo], None] = lambda _: None,
) -> None:
    """Read all files of a data set, and look whether its sources are still what they were.

    Args:
        store: the data set; it is refreshed.
        sources: False: look at the files alone. What had no address has no source to look at.
        storage_options: as they were for `ingest`: they are not kept, for there are passwords in them.
        tell: is called with each file that was read.

    Raises:
        Damaged: files are missing or have other bytes; the message names them.
        Stale: sources have changed or are gone; the message names them.
        ConfigError, Unavailable: a source can't be looked at.
    """
    store.refresh()
    manifest = store.manifest
    damaged = [wrong for file in manifest.files() if (wrong := _damage(store.path, file, tell))]
    if damaged:
        raise Damaged(
            f"data set {manifest.name!r} is not what was registered: {_lines(damaged)}; restore the files, or remove "
            f"{store.path} and ingest anew"
        )
    if sources:
        with quiet_pillow():
            changed = _changed_files(manifest, storage_options)
            changed += _changed_images(store.path, manifest, storage_options)
        if changed:
            raise Stale(
                f"data set {manifest.name!r} is whole, but {_lines(changed)}; its records are those of before: "
                "register what is there now under another name"
            )


def _damage(folder: Path, file: FileInfo, tell: Callable[[FileInfo], None]) -> str:
    """What is wrong with a file; empty: nothing."""
    path = folder / file.file
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != file.bytes:
        return f"{path} has {path.stat().st_size} bytes and should have {file.bytes}"
    if checksum(path) != file.checksum:
        return f"{path} has another checksum"
    tell(file)
    return ""


def _changed_files(manifest: Manifest, options: StorageOptions | None) -> list[str]:
    registered = {shard.source.uri: shard.source for shard in manifest.shards if shard.source.kind == "file"}

    def look(uri: str) -> str:
        try:
            address = resolve(uri, options)
            (found,) = address.files() or (None,)
        except NotFound:
            return f"{uri} is gone"
        then = registered[uri]
        if found is None:
            return f"{uri} is gone"
        if found.bytes != then.bytes:
            return f"{uri} has {found.bytes} bytes and had {then.bytes}"
        if found.version == then.version or _holds_file(manifest, address, found):
            return ""
        return f"{uri} was written again"

    with ThreadPoolExecutor(LOOKERS) as pool:
        return [wrong for wrong in pool.map(look, registered) if wrong]


def _holds_file(manifest: Manifest, address: Address, found: Found) -> bool:
    """Whether the records that a file holds are the registered ones, though it was written again."""
    form = format_of(found)
    if form is None:
        return False  # the format was told when it was registered, and is not kept
    return holds(manifest.shards_of(found.uri), partial(Files(address, form).fragments_of, found), manifest.schema)


def _changed_images(folder: Path, manifest: Manifest, options: StorageOptions | None) -> list[str]:
    wrong = []
    for uri in dict.fromkeys(shard.source.uri for shard in manifest.shards if shard.source.kind == "images"):
        try:
            address = resolve(uri, options)
            there = {found.name: found for found in address.files()}
        except NotFound:
            wrong.append(f"{uri} is gone")
            continue
        wrong += [_changed_part(folder, manifest, shard, address.fs, there) for shard in manifest.shards_of(uri)]
    return [each for each in wrong if each]


def _changed_part(
    folder: Path, manifest: Manifest, shard: ShardInfo, fs: pafs.FileSystem, there: Mapping[str, Found]
) -> str:
    names = image_names(folder, shard)
    gone = [name for name in names if name not in there]
    if gone:
        return f"{gone[0]} of {shard.source.uri} is gone" + (f", with {len(gone) - 1} others" if gone[1:] else "")
    found = tuple(there[name] for name in names)
    if version_of(found) == shard.source.version:
        return ""
    schema = manifest.schema
    classes = (class_names(schema.field("label")) or ()) if "label" in schema.names else ()
    fragment = ImagesFragment(fs, found, tuple(classes), shard.source)
    same = sum(each.bytes for each in found) == shard.source.bytes and holds([shard], lambda: [fragment], schema)
    return "" if same else f"files of {shard.source} were written again"


def _lines(said: Sequence[str]) -> str:
    return "; ".join(said[:SHOWN]) + (f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else "")
