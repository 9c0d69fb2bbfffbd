"""Shards written on a Ray cluster: by Ray Data, with its progress bar, on whatever node has time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import ray
from ray import cloudpickle

from sampler_service.errors import ConfigError, SamplerError
from sampler_service.records.copies import fetch_file
from sampler_service.records.images import quiet_pillow
from sampler_service.records.items import OfObject
from sampler_service.records.manifest import ShardInfo, shard_from_json
from sampler_service.records.writing import Work, finished, write_note, write_shard
from sampler_service.runtime.copies import fetch_from
from sampler_service.runtime.joining import connect

NAMESPACE = "sampler-ingestion"


def on_ray(address: str | None = None) -> Any:
    """What `ingest(…, execute=…)` takes, for shards to be written on a cluster.

    Example:
        ingest("s3://bucket/train", "train", execute=on_ray("auto"))

    Args:
        address: of a Ray cluster ("auto", "host:6379"); None starts one on this machine, unless this process is
            connected already.
    """
    return partial(_execute, address)


def _execute(address: str | None, works: Sequence[Work]) -> Iterator[ShardInfo]:
    """Write shards anywhere, and fetch those of other nodes; what could be written is kept when another fails."""
    waiting = []
    for work in works:
        if (shard := finished(work)) is not None:
            yield shard
        else:
            waiting.append(work)
    if not waiting:
        return
    own = not ray.is_initialized()
    if own:
        connect(address, NAMESPACE)
    try:
        yield from _written(waiting)
    finally:
        if own:
            ray.shutdown()


def _written(works: Sequence[Work]) -> Iterator[ShardInfo]:
    try:
        import ray.data  # takes pandas, and a second: only here
    except ModuleNotFoundError as error:
        raise ConfigError(f"Ray Data needs {error.name!r}, which is not installed: pip install 'ray[data]'") from error
    items = [
        {"number": number, "work": _pickled(_without(work)), "object": _object_of(work)}
        for number, work in enumerate(works)
    ]
    # A block of Ray's for each shard, so that each is a task of its own.
    written = ray.data.from_items(items, override_num_blocks=len(items)).map(partial(_write, _put(works)))
    failed: SamplerError | None = None
    here = ray.get_runtime_context().get_node_id()
    for row in written.iter_rows():
        if row["error"]:
            failed = failed or cloudpickle.loads(row["error"])
            continue
        work, shard = works[row["number"]], shard_from_json(json.loads(row["shard"]))
        if row["node"] != here and finished(work) is None:  # on a shared file system it is here
            fetch_file(work.path.parent, shard, fetch_from(row["node"], work.path.parent), f"node {row['node']}")
            write_note(work, shard)
        yield shard
    if failed is not None:
        raise failed


def _object_of(work: Work) -> int:
    """Which of the objects that were put into Ray's store a work is of; 0: of none."""
    return id(work.fragment.data) if isinstance(work.fragment, OfObject) else 0


def _put(works: Sequence[Work]) -> dict[int, ray.ObjectRef]:
    """References to the objects that works are of: within the works they would be pickled once for each shard."""
    objects = {_object_of(work): work.fragment.data for work in works if isinstance(work.fragment, OfObject)}
    return {number: ray.put(data) for number, data in objects.items()}


def _without(work: Work) -> Work:
    """A work whose fragment waits for its object."""
    fragment = work.fragment
    return replace(work, fragment=replace(fragment, data=None)) if isinstance(fragment, OfObject) else work


def _write(objects: Mapping[int, ray.ObjectRef], row: dict[str, Any]) -> dict[str, Any]:
    """In a worker of Ray's."""
    work: Work = cloudpickle.loads(row["work"])
    if isinstance(work.fragment, OfObject):
        work = replace(work, fragment=replace(work.fragment, data=ray.get(objects[row["object"]])))
    said = {"number": row["number"], "node": ray.get_runtime_context().get_node_id(), "shard": "", "error": b""}
    try:
        work.path.parent.mkdir(parents=True, exist_ok=True)
        with quiet_pillow():
            return said | {"shard": json.dumps(asdict(write_shard(work)))}
    except SamplerError as error:
        # Raised here it would end the others, and come back as an error of Ray's.
        return said | {"error": _pickled(error)}


def _pickled(thing: Any) -> bytes:
    return cloudpickle.dumps(thing)  # pyright: ignore[reportPrivateImportUsage]
