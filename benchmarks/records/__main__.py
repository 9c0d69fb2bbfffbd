"""`python -m benchmarks.records`: records a second from the service and its peers, random access, ingestion, memory.

All read the same records in one run, in turn, each without workers and with two, of which the faster counts; the
service, Ray and the workers share this machine's cores. `over_ceiling` is against a bare gRPC stream of the same
messages (as many bytes in each), neither encoded nor decoded.

    python -m benchmarks.records --data path/to/data --json benchmarks/results/records.json

MosaicML Streaming and WebDataset are measured where they are installed: pip install mosaicml-streaming webdataset
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.progress import Progress

import sampler_client as sampler
from benchmarks.records import contenders, plain
from benchmarks.records.kinds import KINDS, Kind
from benchmarks.records.plain import Epoch
from benchmarks.serving import bare_server
from sampler_client import wire
from sampler_service.config import ServiceConfig
from sampler_service.embedded import running_service
from sampler_service.records import ingest
from trainer_examples.results import write_result

AHEAD = 64
WORKERS = (0, 2)
MANY = 1_000_000
WIDTH = 784
ROW_GROUP = 5000
TAKEN = 64
PEERS = ("ceiling", "streaming", "webdataset", "dataloader")
"""whose ratios are quoted for the worst kind of records too"""


def timed(epoch: Epoch, number: int) -> float:
    """Examples a second in one epoch, from the first batch asked for."""
    start = time.perf_counter()
    examples = sum(epoch(number))
    return examples / (time.perf_counter() - start)


def loaders(
    kind: Kind, table: pa.Table, path: Path, folder: Path, address: str, batch_size: int
) -> dict[str, list[tuple[int, Epoch, Callable[[], None]]]]:
    """All ways to read one kind of records, by name: with each number of workers."""
    made: dict[str, Callable[[int], tuple[Epoch, Callable[[], None]]]] = {
        "service": lambda w: contenders.ours(kind, address, batch_size, w, AHEAD),
        "dataloader": lambda w: plain.by_batch(kind, path, batch_size, w),
        "dataloader_by_record": lambda w: plain.by_record(kind, path, batch_size, w),
        "dataloader_from_file": lambda w: plain.from_file(kind, path, batch_size, w),
    }
    if kind.name == "images":
        made["service_of_files"] = lambda w: contenders.ours(kind, address, batch_size, w, AHEAD, files=True)
    if find_spec("streaming"):
        made["streaming"] = lambda w: contenders.streaming(kind, table, folder, batch_size, w)
    if find_spec("webdataset"):
        made["webdataset"] = lambda w: contenders.webdataset(kind, table, folder, batch_size, w)
    return {name: [(w, *make(w)) for w in WORKERS] for name, make in made.items()}


def kind_rows(
    kind: Kind, table: pa.Table, folder: Path, address: str, batch_size: int, rounds: int, progress: Progress
) -> list[dict[str, Any]]:
    """Examples a second of every way, medians over rounds, with the number of workers that is fastest for it."""
    path = folder / f"{kind.name}.parquet"
    pq.write_table(table, path, row_group_size=ROW_GROUP, compression="zstd")
    ways = loaders(kind, table, path, folder, address, batch_size)
    task = progress.add_task(kind.name, total=(rounds + 1) * sum(map(len, ways.values())))
    rates: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):  # the first warms up: it starts workers, maps files, opens the run
        for name, entries in ways.items():
            for workers, epoch, _ in entries:
                rates.setdefault((name, workers), []).append(timed(epoch, number))
                progress.advance(task)
    for entries in ways.values():
        for _, _, close in entries:
            close()
    rows = []
    for name in ways:
        best = max(WORKERS, key=lambda workers, name=name: statistics.median(rates[name, workers][1:]))
        rows.append(
            {
                "what": f"{len(table):,} {kind.name}, batches of {batch_size}",
                "loader": name,
                "workers": best,
                "examples_per_second": statistics.median(rates[name, best][1:]),
                "examples_per_second_by_workers": {str(w): statistics.median(rates[name, w][1:]) for w in WORKERS},
                "rounds": rates[name, best][1:],
            }
        )
    return rows


def ceiling_row(kind: Kind, address: str, port: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Megabytes of records a second through the service, in turn with a bare stream of the same messages."""
    stream = sampler.SamplerClient(address).batches(
        run=f"ceiling-{kind.name}", dataset=kind.name, batch_size=batch_size, policy="shuffle", columns=kind.columns,
        ahead=128, max_lead=512, rank=0, world_size=1,
    )  # fmt: skip
    count = size = sent = 0
    for batch in stream:  # the first epoch warms up, and tells the sizes
        drawn = batch.example_ids, batch.weights, batch.probabilities, batch.cluster_ids
        count, size = count + 1, size + batch.records.nbytes
        sent += batch.records.nbytes + sum(array.nbytes for array in drawn)
    together = math.ceil(ServiceConfig().message_bytes * count / sent)  # batches that share a message
    request = np.array([count // together, sent * together // count], np.int64)
    measured: list[tuple[float, float]] = []
    for _ in range(rounds):
        start = time.perf_counter()
        received = sum(batch.records.nbytes for batch in stream)
        ours = received / (time.perf_counter() - start)
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=wire.CHANNEL_OPTIONS) as channel:
            start = time.perf_counter()
            received = sum(map(len, channel.unary_stream("/bare/Stream")(request.tobytes()))) * size / sent
            measured.append((ours, received / (time.perf_counter() - start)))
    stream.close()
    return {
        "what": f"{kind.name}, batches of {batch_size}, files as they are, to one trainer",
        "batch_bytes": size // count,
        "batches_per_message": together,
        "mb_per_second": statistics.median(ours for ours, _ in measured) / 1e6,
        "ceiling_mb_per_second": statistics.median(bare for _, bare in measured) / 1e6,
        "over_ceiling": statistics.median(ours / bare for ours, bare in measured),
        "rounds": measured,
    }


def access_row(folder: Path, rounds: int) -> dict[str, Any]:
    """Microseconds for each of 64 random records of a million, and megabytes a second to ingest them."""
    rng = np.random.default_rng(0)
    source = folder / "many"
    source.mkdir()
    for part in range(10):
        pixels = rng.integers(0, 256, (MANY // 10, WIDTH), dtype=np.uint8)
        image = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), WIDTH)
        pa_table = pa.table({"image": image, "label": np.zeros(len(pixels), np.int8)})
        pq.write_table(pa_table, source / f"{part}.parquet", compression="none")
    start = time.perf_counter()
    store = ingest(str(source), "many", data_dir=folder)
    ingested_s = time.perf_counter() - start
    taken: list[float] = []
    for _ in range(rounds):
        ids = rng.integers(0, MANY, (1000, TAKEN))
        start = time.perf_counter()
        for row in ids:
            store.take(row)
        taken.append((time.perf_counter() - start) / ids.size)
    return {
        "what": f"{MANY:,} records of {WIDTH} bytes, {TAKEN} at a time",
        "random_access_us": statistics.median(taken) * 1e6,
        "ingest_mb_s": MANY * WIDTH / ingested_s / 1e6,
        "rounds": [value * 1e6 for value in taken],
    }


def memory_row(address: str, batch_size: int) -> dict[str, Any]:
    """Resident memory of a worker after its first and after its fifth epoch."""
    kind = KINDS[0]
    epoch, close = contenders.ours(kind, address, batch_size, 1, AHEAD)
    seen = []
    for number in range(10, 15):
        sum(epoch(number))
        workers = [p for p in psutil.Process().children(recursive=True) if "multiprocessing" in " ".join(p.cmdline())]
        seen.append(max(worker.memory_full_info().uss for worker in workers))
    close()
    return {"what": "unshared memory of a worker over five epochs", "bytes": seen}


def worst_ratios(headline: Mapping[str, float | None]) -> dict[str, float | None]:
    """The service's rate over each of PEERS, of the kind of records where it is least; None: it was not measured."""
    of_kinds = {peer: [headline.get(f"over_{peer}_{kind.name}") for kind in KINDS] for peer in PEERS}
    return {f"over_{peer}": min((r for r in each if r is not None), default=None) for peer, each in of_kinds.items()}


def main(
    data: Annotated[Path | None, typer.Option(help="folder with mnist/, cifar10/ and multi30k/; none: made up")] = None,
    json: Annotated[Path | None, typer.Option(help="where to write the result")] = None,
    rounds: Annotated[int, typer.Option(help="rounds of each measurement; medians are quoted")] = 3,
    batch_size: Annotated[int, typer.Option(help="examples of a batch")] = 256,
    examples: Annotated[int, typer.Option(help="the first of each kind: an epoch")] = 20_000,
) -> None:
    """Measure records on loopback."""
    ours, theirs = multiprocessing.Pipe()
    bare = multiprocessing.get_context("spawn").Process(target=bare_server, args=(theirs,), daemon=True)
    bare.start()
    port = ours.recv()
    rows: list[dict[str, Any]] = []
    headline: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="records-") as name, Progress() as progress:
        folder = Path(name)
        tables = {kind: kind.table(data).slice(0, examples) for kind in KINDS}
        for kind, table in tables.items():
            ingest(table, kind.name, data_dir=folder)
        with running_service(arguments=["--data-dir", str(folder)]) as address:
            for kind, table in tables.items():
                found = kind_rows(kind, table, folder, address, batch_size, rounds, progress)
                rows += found
                rate = {row["loader"]: row["examples_per_second"] for row in found}
                for peer in rate.keys() - {"service"}:
                    headline[f"over_{peer}_{kind.name}"] = rate["service"] / rate[peer]
                row = ceiling_row(kind, address, port, batch_size, rounds)
                headline[f"over_ceiling_{kind.name}"] = row["over_ceiling"]
                rows.append(row)
            rows.append(memory_row(address, batch_size))
        rows.append(access_row(folder, rounds))
    ours.send(None)
    bare.join(10)
    headline |= worst_ratios(headline)
    headline |= {figure: rows[-1][figure] for figure in ("random_access_us", "ingest_mb_s")}
    headline["worker_bytes"] = float(rows[-2]["bytes"][-1])
    write_result(json, name="records", rows=rows, headline=dict(sorted(headline.items())), notes=_NOTES)


_NOTES = (
    "over_ceiling, over_streaming, over_webdataset and over_dataloader without a kind's name: the smallest ratio of "
    "all kinds; none where the peer is not installed",
    "over_dataloader: against a torch DataLoader over the Parquet file, decompressed into memory before the clock "
    "starts and indexed batch by batch; over_dataloader_by_record: the same, record by record, with torch's collation; "
    "over_dataloader_from_file: the file is read in every epoch, and shuffled within its row groups",
    "over_streaming, over_webdataset: from shards on this disk",
    "every loader without workers and with two, the faster of which counts; medians of epochs, in turn",
    "images are decoded, by the service where they come from it, and by the workers elsewhere; service_of_files: the "
    "service sends files, and a transform of the trainer's decodes them",
    "over_ceiling: megabytes of records a second, files as they are, over a bare stream of the same messages",
)


if __name__ == "__main__":
    typer.run(main)
