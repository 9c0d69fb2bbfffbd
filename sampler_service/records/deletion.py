"""Deleting examples: at once, by a list of ids beside the shards. Ids of others stay, and so do bytes in the shards."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sampler_service.errors import ConfigError, NotFound
from sampler_service.records.checksums import checksum_of
from sampler_service.records.directory import changing
from sampler_service.records.manifest import Deleted, write_atomically, write_manifest
from sampler_service.records.store import RecordStore
from sampler_service.records.writing import full


def delete(store: RecordStore, example_ids: Sequence[int] | np.ndarray) -> int:
    """Delete examples of a data set; `store` and all that are refreshed from now on refuse to read them.

    Args:
        store: the data set; for keys, `delete(store, store.ids_of(keys))`.
        example_ids: (n,) integers; those that are deleted already are no error.

    Returns:
        how many were not deleted before.

    Raises:
        NotFound: an id that there is not; nothing is deleted then.
        Conflict: other data is registered under the name since the store was opened.
        ConfigError: all that is left would be deleted, or ids that are no integers.
        Busy: another process is changing the data set.
        Unavailable: the disk is full.
    """
    ids = np.unique(np.asarray(example_ids))
    if ids.dtype.kind not in "iu" and ids.size:
        raise ConfigError(f"example ids must be integers, got {ids.dtype}")
    with changing(store.path):
        store.refresh()
        manifest, before = store.manifest, store.deleted
        unknown = ids[(ids < 0) | (ids >= manifest.num_examples)]
        if unknown.size:
            raise NotFound(
                f"data set {manifest.name!r} has ids 0 to {manifest.num_examples - 1}, and no {unknown[0]}: "
                "nothing is deleted"
            )
        after = np.union1d(before, ids).astype(np.int64)
        if after.size == before.size:
            return 0
        if after.size == manifest.num_examples:
            raise ConfigError(f"nothing would be left of data set {manifest.name!r}: remove {store.path} instead")
        generation = manifest.generation + 1
        data = _npy(after)
        deleted = Deleted(f"deleted-{generation:05d}.npy", len(data), checksum_of(data), after.size)
        try:
            write_atomically(store.path / deleted.file, data)
            write_manifest(store.path, replace(manifest, generation=generation, deleted=deleted))
        except OSError as error:
            raise full(error, store.path) from error
        store.refresh()
    return after.size - before.size


def _npy(array: np.ndarray) -> bytes:
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()
