"""`sampler-service ingest | datasets | verify | delete`: data sets of this machine's data directory."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sampler_service.errors import ConfigError, SamplerError

if TYPE_CHECKING:
    from sampler_service.records import RecordStore

# A pipe has no columns to fit: there, nothing is folded.
console = Console(width=None if sys.stdout.isatty() else 10_000)

Name = Annotated[str, typer.Argument(help="of the data set")]

DataDir = Annotated[str, typer.Option(help="folder of all data sets; by default in your cache")]

StorageOption = Annotated[
    list[str] | None, typer.Option(help="key=value for the file system, such as endpoint_override=http://host:9000")
]


def ingest(  # noqa: PLR0913 - the options of a command line
    uris: Annotated[
        list[str], typer.Argument(metavar="URI...", help="paths, or s3://… and the like; * stands for any")
    ],
    name: Annotated[str, typer.Option(help="of the data set")],
    file_format: Annotated[
        str, typer.Option("--format", help="parquet, arrow, csv, jsonl, images or webdataset; auto goes by names")
    ] = "auto",
    id_column: Annotated[str | None, typer.Option(help="column of unique int64 or texts: the keys")] = None,
    columns: Annotated[str | None, typer.Option(help="to keep, with commas between them; all otherwise")] = None,
    column_type: Annotated[
        list[str] | None,
        typer.Option("--type", help="column=type, where the first records tell another: score=float64"),
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="add what is new to a data set that is registered")] = False,
    on_bad: Annotated[str, typer.Option(help="fail, or skip images that do not decode and bad samples")] = "fail",
    storage_option: StorageOption = None,
    data_dir: DataDir = "",
    address: Annotated[str | None, typer.Option(help="Ray cluster that does it (auto, host:port); none: here")] = None,
) -> None:
    """Register data, once, for all runs; the same command again goes on where it was interrupted."""
    directory = _records().DataDirectory(data_dir or None)
    before = directory.open(name).num_examples if name in directory.names() else 0
    store = _records().ingest(
        uris,
        name,
        data_dir=data_dir or None,
        format=file_format,
        id_column=id_column,
        columns=None if columns is None else [column.strip() for column in columns.split(",")],
        schema=_records().schema_of_types(_pairs("--type", column_type)) if column_type else None,
        append=append,
        on_bad=on_bad,
        storage_options=_pairs("--storage-option", storage_option),
        **_on(address),
    )
    new, megabytes = store.num_examples - before, store.manifest.bytes / 1e6
    console.print(f"{name}: {new:,} new examples, {store.num_examples:,} in all, {megabytes:,.1f} MB", highlight=False)
    skipped = [bad for shard in store.manifest.shards for bad in shard.skipped]
    if skipped:
        console.print(f"[yellow]{len(skipped)} bad records are left out, the first is {skipped[0]}[/yellow]")
    registered = f"registered as {store.version.uid[:8]}, generation {store.generation}, in {store.path}"
    console.print(registered, style="dim", highlight=False)


def datasets(data_dir: DataDir = "") -> None:
    """List the data sets that are registered. Fails when one of them can't be read."""
    directory = _records().DataDirectory(data_dir or None)
    names = directory.names()
    if not names:
        console.print(f"no data set is registered in {directory.path}: sampler-service ingest URI --name NAME")
        return
    table, damaged = Table("name", title=f"data sets in {directory.path}", title_justify="left"), []
    for heading in ("examples", "deleted", "skipped", "MB", "generation"):
        table.add_column(heading, justify="right")
    table.add_column("columns")
    for name in names:
        try:
            table.add_row(name, *_row(directory.open(name)))
        except SamplerError as error:
            damaged.append(f"{name}: {error}")
    console.print(table)
    for line in damaged:
        console.print(line, style="red", markup=False, highlight=False)
    if damaged:
        raise typer.Exit(1)


def _row(store: RecordStore) -> list[str]:
    manifest = store.manifest
    skipped = sum(len(shard.skipped) for shard in manifest.shards)
    counts = [f"{count:,}" for count in (manifest.num_examples, store.deleted.size, skipped)]
    names = [f"{field.name} (key)" if field.name == manifest.id_column else field.name for field in manifest.schema]
    return [*counts, f"{manifest.bytes / 1e6:,.1f}", str(manifest.generation), ", ".join(names)]


def verify(
    name: Name,
    no_sources: Annotated[bool, typer.Option("--no-sources", help="look at the files here alone")] = False,
    storage_option: StorageOption = None,
    data_dir: DataDir = "",
) -> None:
    """Read a data set wholly, and say whether it and its sources are still what was registered."""
    store = _one(data_dir, name)
    _records().verify(store, sources=not no_sources, storage_options=_pairs("--storage-option", storage_option))
    console.print(
        f"{name}: {len(store.manifest.shards)} shards, {store.num_examples:,} examples, all as registered",
        highlight=False,
    )


def delete(
    name: Name,
    ids: Annotated[str, typer.Option(help="example ids, with commas between them")] = "",
    keys: Annotated[str, typer.Option(help="values of the id column, with commas between them")] = "",
    data_dir: DataDir = "",
) -> None:
    """Delete examples: they are never given out again. Ids of the others stay what they are."""
    if bool(ids) == bool(keys):
        raise ConfigError("say which examples, by --ids 1,2,3 or by --keys a,b,c")
    store = _one(data_dir, name)
    if keys:
        named = [key.strip() for key in keys.split(",")]
        column = store.schema.field(store.manifest.id_column) if store.manifest.id_column else None
        chosen = store.ids_of(named if column is None or column.type == "string" else _numbers("--keys", keys))
    else:
        chosen = _numbers("--ids", ids)
    count = _records().delete(store, chosen)
    console.print(
        f"{name}: {count} examples deleted, {store.num_examples - store.deleted.size:,} left", highlight=False
    )


def _one(data_dir: str, name: str) -> RecordStore:
    return _records().DataDirectory(data_dir or None).open(name)


def _records() -> ModuleType:
    """Imported late: commands that only ask a service need no pyarrow."""
    try:
        from sampler_service import records
    except ModuleNotFoundError as error:
        raise ConfigError(f"data sets need {error.name!r}, which is not installed: pip install '.[records]'") from None
    return records


def _on(address: str | None) -> dict[str, Any]:
    """What `ingest` takes for a Ray cluster."""
    if address is None:
        return {}
    try:
        from sampler_service.runtime.ingestion import on_ray
    except ModuleNotFoundError as error:
        raise ConfigError(f"--address needs {error.name!r}, which is not installed: pip install '.[service]'") from None
    return {"execute": on_ray(address)}


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} takes whole numbers with commas between them, got {text!r}") from None


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    pairs = {}
    for pair in given or []:
        key, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"{option} takes key=value, got {pair!r}")
        pairs[key] = value
    return pairs
