"""Ingestion: from a source to a registered data set, once.

source ─▶ fragments ─▶ schema of all ─▶ a shard of each, anywhere ─▶ ids by counting ─▶ keys ─▶ manifest

Whatever interrupts it, the data set is as it was before, and the same call goes on with the shards that were finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from sampler_service.config import check_size
from sampler_service.errors import ConfigError, Conflict, NotFound
from sampler_service.records.addresses import StorageOptions, without_secrets
from sampler_service.records.directory import DataDirectory, changing
from sampler_service.records.fragments import Known, OnBad
from sampler_service.records.images import quiet_pillow
from sampler_service.records.keys import key_type, write_keys
from sampler_service.records.looking import check_fragments, schema_of
from sampler_service.records.manifest import PART, FileInfo, Manifest, ShardInfo, read_manifest, write_manifest
from sampler_service.records.progress import with_bar
from sampler_service.records.schemas import class_names
from sampler_service.records.sources import Format, source_of
from sampler_service.records.store import RecordStore, map_shard
from sampler_service.records.writing import Work, full, holds

Execute = Callable[[Sequence[Work]], Iterable[ShardInfo]]
"""writes shards, in any order and anywhere, so that they are in the data set's folder here when it is through"""


def ingest(  # noqa: PLR0913 - one argument for each thing that a person may say of data
    data: Any,
    name: str,
    *,
    data_dir: str | Path | None = None,
    format: Format = "auto",  # noqa: A002 - the word that everybody uses
    id_column: str | None = None,
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    append: bool = False,
    on_bad: OnBad = "fail",
    storage_options: StorageOptions | None = None,
    execute: Execute = with_bar,
) -> RecordStore:
    """Register data under a name, with ids 0 … N-1 in the order of its files (by name) and of the rows in them.

    Doing so again changes nothing; with `append` it adds the files that are new. An object in memory is the same again
    where a hash says so: of all of a table, of a `datasets.Dataset` its fingerprint, of a map-style one its class, its
    length and 64 items of each part of 256 MB. `append` takes any other object as all new, but for such parts.

    Example:
        store = ingest("s3://bucket/mnist/*.parquet", "mnist", id_column="id")

    Args:
        data: a path or URI, or several; a `pyarrow.Table`, a `datasets.Dataset`, or a map-style dataset, whose items
            are tuples, dicts or single values of tensors, numbers, bytes, texts and PIL images.
        name: of the data set.
        data_dir: folder of all data sets; None: in the user's cache.
        format: of the files; "auto" goes by their names.
        id_column: a column of unique int64 or texts: the examples' keys.
        columns: those to keep; None: all.
        schema: types of some columns, in the place of those that are found.
        append: add to what is registered under the name. Its columns, their types and its id column stay what they are.
        on_bad: "skip" leaves out, and counts, images that do not decode, and samples and items that can't be used.
        storage_options: for the file system of a URI, such as {"endpoint_override": "http://host:9000"}.
        execute: writes the shards; in this process, or on Ray: `sampler_service.runtime.ingestion.on_ray`.

    Returns:
        the data set, opened.

    Raises:
        NotFound: there is nothing at the address; or nothing to append to.
        ConfigError: a column that there is not, files whose columns don't go together, a key that is there twice, an
            address that asks for credentials, a source with nothing in it.
        Conflict: the name stands for something else, or for other columns or types than are asked for; or what is
            appended has other columns.
        Stale: a file that is registered has changed.
        Damaged: a file is cut off, a value is none of its type, an image does not decode.
        Unavailable: the disk is full, or the source can't be reached; what was done is kept.
        Busy: another process is changing the same data set.
    """
    if on_bad not in get_args(OnBad):
        raise ConfigError(f"on_bad must be 'fail' or 'skip', got {on_bad!r}")
    folder = DataDirectory(data_dir).folder(name)
    source = source_of(data, format, storage_options)
    with changing(folder), quiet_pillow():
        registered = _registered(folder, name, append)
        fragments = source.fragments(_known(folder, registered))
        if registered is not None:
            _check_same(registered, id_column, columns, schema)
            if not fragments:
                return RecordStore.open(folder)
            if not append:
                raise Conflict(
                    f"data set {name!r} is registered and does not hold {fragments[0].identity}: add it with "
                    "append=True, --append, or choose another name"
                )
            check_fragments(fragments, registered, columns, schema)
        if not fragments:
            raise ConfigError(
                f"there is nothing in {without_secrets(data) if isinstance(data, str) else type(data).__name__}: no "
                "records"
            )
        before = registered or Manifest(
            name=name,
            generation=0,
            schema=schema_of(fragments, columns, schema, id_column),
            num_examples=0,
            shards=(),
            id_column=id_column,
            selected=columns is not None,
        )
        _remove_parts(folder)
        paths = [folder / f"{len(before.shards) + number:05d}.arrow" for number in range(len(fragments))]
        works = [Work(fragment, path, before.schema, on_bad) for fragment, path in zip(fragments, paths, strict=True)]
        by_file = {shard.file: shard for shard in execute(works)}
        _register(folder, before, [by_file[path.name] for path in paths])
        _tidy(folder)
    return RecordStore.open(folder)


def _registered(folder: Path, name: str, append: bool) -> Manifest | None:
    try:
        return read_manifest(folder)
    except NotFound:
        if append:
            raise NotFound(
                f"data set {name!r} is not registered yet: ingest it without append=True, --append"
            ) from None
        return None


def _known(folder: Path, registered: Manifest | None) -> Known:
    if registered is None:
        return Known()
    sources = [shard.source for shard in registered.shards]
    label = registered.schema.field("label") if "label" in registered.schema.names else None
    return Known(
        versions={each.uri: (each.bytes, each.version) for each in sources if each.kind == "file"},
        memory=frozenset(each for each in sources if each.kind == "memory"),
        names={
            each.uri: partial(_image_names, folder, registered, each.uri) for each in sources if each.kind == "images"
        },
        classes=None if label is None else class_names(label),
        holds=lambda uri, fragments_of: holds(registered.shards_of(uri), fragments_of, registered.schema),
    )


def _image_names(folder: Path, registered: Manifest, uri: str) -> set[str]:
    names = set[str]()
    for shard in registered.shards:
        if shard.source.kind == "images" and shard.source.uri == uri:
            names |= set(image_names(folder, shard))
    return names


def image_names(folder: Path, shard: ShardInfo) -> list[str]:
    """Which files of a folder of images a shard was made of, sorted: those that it holds, and those that were bad."""
    held = [name for batch in map_shard(folder, shard) for name in batch.column("path").to_pylist()]
    return sorted([*held, *shard.skipped])


def _check_same(
    registered: Manifest, id_column: str | None, columns: Sequence[str] | None, given: pa.Schema | None
) -> None:
    """Raise Conflict where something else is asked for than is registered."""
    name, schema = registered.name, registered.schema
    if id_column is not None and id_column != registered.id_column:
        raise Conflict(f"data set {name!r} has the id column {registered.id_column!r}, not {id_column!r}: it stays")
    always = {"path"} if any(shard.source.kind == "images" for shard in registered.shards) else set[str]()
    if columns is not None and {*columns} | always != {*schema.names} | always:
        raise Conflict(
            f"data set {name!r} has the columns {', '.join(schema.names)}: they stay, so ask for these or for none; "
            "register others under another name"
        )
    for field in given or ():
        if field.name not in schema.names:
            raise Conflict(f"data set {name!r} has no column {field.name!r}: it has {', '.join(schema.names)}")
        kind = key_type(field, "schema=, --type") if field.name == registered.id_column else field.type
        if kind != schema.field(field.name).type:
            raise Conflict(
                f"column {field.name!r} of data set {name!r} is {schema.field(field.name).type}, not {field.type}: it "
                "stays; register it with other types under another name"
            )


def _remove_parts(folder: Path) -> None:
    """What an ingestion that was killed had not finished."""
    for part in folder.glob(f"*{PART}*"):
        part.unlink(missing_ok=True)


def _tidy(folder: Path) -> None:
    """Remove notes, and shards of ingestions that were given up."""
    known = {shard.file for shard in read_manifest(folder).shards}
    for path in (*folder.glob("[0-9]*.arrow"), *folder.glob("[0-9]*.json")):
        if path.name not in known and path.is_file():
            path.unlink()


def _register(folder: Path, before: Manifest, written: Sequence[ShardInfo]) -> None:
    """Give ids, look at keys, and make it known."""
    shards, first_id = list(before.shards), before.num_examples
    for shard in written:
        shards.append(replace(shard, first_id=first_id))
        first_id += shard.rows
    if first_id == before.num_examples:
        sound = " that are sound" if written[0].skipped else ""
        raise ConfigError(f"there are no records in {written[0].source}{sound}")
    check_size(before.name, first_id)
    now = replace(before, generation=before.generation + 1, num_examples=first_id, shards=tuple(shards))
    try:
        write_manifest(folder, replace(now, keys=_keys(folder, now)))
    except OSError as error:
        raise full(error, folder) from error


def _keys(folder: Path, manifest: Manifest) -> FileInfo | None:
    column, shards = manifest.id_column, manifest.shards
    if column is None:
        return None
    arrays = [batch.column(column) for shard in shards for batch in map_shard(folder, shard)]
    places = [(shard.first_id, str(shard.source)) for shard in shards]
    return write_keys(folder / f"keys-{manifest.generation:05d}.arrow", pa.chunked_array(arrays), column, places)
