"""Ways to the same batches in the training loop: a dictionary of tensors (b, …) and texts, shuffled, images decoded.

Each gets the data in the form that suits it, and is as well tuned as its own documentation says; preparing that form is
not in its time. Shapes: b examples of a batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, default_collate

import sampler_client as sampler
from benchmarks.records.kinds import Kind, decoded, in_bytes, with_pixels
from benchmarks.records.plain import Epoch, counted, on

SHARD_MB = 64

SHARDS = 4
"""tars of a kind of records, at least: as many as there may be workers, and more"""


def ours(
    kind: Kind, address: str, batch_size: int, workers: int, ahead: int, *, files: bool = False
) -> tuple[Epoch, Callable[[], None]]:
    """Streamed from the service, which decodes images; or, as `files`, which the trainer's transform decodes."""
    images = kind.name == "images"
    records = sampler.RemoteBatches(
        address,
        run=f"{kind.name}-{batch_size}-{workers}{'-files' if files else ''}",
        dataset=kind.name,
        batch_size=batch_size,
        policy="shuffle",
        columns=kind.columns,
        decode=[sampler.DecodeImage(column="image")] if images and not files else [],
        transform=with_pixels if files else None,
        rank=0,
        world_size=1,
        ahead=ahead,
        max_lead=512,
    )
    loader = DataLoader(records, batch_size=None, **on(workers))

    def epoch(number: int) -> Iterator[int]:
        records.set_epoch(number)
        for columns, _ in loader:
            yield len(columns[kind.columns[0]])

    return epoch, records.close


def streaming(kind: Kind, table: pa.Table, folder: Path, batch_size: int, workers: int) -> tuple[Epoch, Any]:
    """MosaicML Streaming, from MDS shards on this disk."""
    from streaming import MDSWriter, StreamingDataset  # pyright: ignore[reportMissingImports]

    out = folder / f"mds-{kind.name}"
    if not out.exists():
        types = {name: "str" if pa.types.is_string(table.schema.field(name).type) else "bytes" for name in kind.columns}
        types |= {"label": "int"} if "label" in types else {}
        with MDSWriter(out=str(out), columns=types, size_limit=SHARD_MB << 20) as writer:
            for record in _records(table):
                writer.write(in_bytes(record))
    dataset = StreamingDataset(local=str(out), shuffle=True, batch_size=batch_size, num_canonical_nodes=1)
    loader = DataLoader(dataset, batch_size, collate_fn=partial(_collated, kind.name), **on(workers))
    return partial(counted, loader, kind.columns[0]), lambda: None


def webdataset(kind: Kind, table: pa.Table, folder: Path, batch_size: int, workers: int) -> tuple[Epoch, Any]:
    """WebDataset, from tar files on this disk, shuffled through a buffer of 1000."""
    import webdataset as wds  # pyright: ignore[reportMissingImports]

    out = folder / f"tars-{kind.name}"
    if not out.exists():
        out.mkdir(parents=True)
        pattern = str(out / "%05d.tar")
        of_shard = -(-len(table) // SHARDS)  # a worker without any is an error there
        with wds.ShardWriter(pattern, maxcount=of_shard, maxsize=SHARD_MB << 16, verbose=0) as writer:
            for row, record in enumerate(_records(table)):
                writer.write({"__key__": f"{row:08d}", **{f"{name}.bin": _packed(v) for name, v in record.items()}})
    shards = sorted(map(str, out.glob("*.tar")))
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards), seed=0, workersplitter=wds.split_by_worker)
        .shuffle(1000)
        .map(partial(_unpacked, kind.name))
        .batched(batch_size, collation_fn=partial(_collated, kind.name))
    )
    loader = DataLoader(dataset, batch_size=None, **on(workers))
    return partial(counted, loader, kind.columns[0]), lambda: None


def _packed(value: Any) -> bytes:
    if isinstance(value, bytes | str):
        return value if isinstance(value, bytes) else value.encode()
    return bytes(value) if isinstance(value, list) else json.dumps(value).encode()


def _unpacked(kind: str, sample: dict[str, Any]) -> dict[str, Any]:
    found = {name.removesuffix(".bin"): value for name, value in sample.items() if name.endswith(".bin")}
    if kind == "texts":
        return {name: value.decode() for name, value in found.items()}
    return found | {"label": int(found["label"])}


def _collated(kind: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    batch = {name: [sample[name] for sample in samples] for name in samples[0]}
    if kind == "texts":
        return batch
    images = batch["image"]
    pixels = [decoded(file) for file in images] if kind == "images" else [np.frombuffer(x, np.uint8) for x in images]
    return {"image": torch.from_numpy(np.stack(pixels)), "label": default_collate(batch["label"])}


def _records(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches():
        yield from batch.to_pylist()
