"""How fast the service serves: batches to one trainer, reports from it, the wait at a trainer's pace, memory.

Service, bare gRPC server and trainer are separate processes on this machine's loopback. The ceiling is a bare
server that streams ready-made bytes, neither encoded nor decoded; it is measured in turn with the service, and
medians over rounds are quoted. `over_ceiling` is strict: the service sends one batch in each message
(`--message-bytes 1`) and the bare server messages of that very size. By default the service packs batches that are
ready together; `over_ceiling_packed` is that against the same bare server, `over_ceiling_same_block` against one that
streams messages of the packed size.

    python -m benchmarks.serving --json benchmarks/results/serving.json
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import psutil
import typer
from rich.progress import Progress

from sampler_client import wire
from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient
from sampler_client.config import RunOptions
from sampler_client.reporter import ReportRows
from sampler_client.session import Session
from sampler_service.embedded import running_service
from trainer_examples.results import write_result

BATCH = 256
DIM = 64
EXAMPLES = 1_000_000
LEAD = 512


def message_bytes() -> int:
    """Size on the wire of one batch of 256 examples."""
    batch = pb.Batch(
        batch_id=1 << 50,
        epoch=1,
        step=1000,
        table_version=1000,
        policy="shuffle",
        example_ids=bytes(8 * BATCH),
        weights=bytes(4 * BATCH),
        probabilities=bytes(4 * BATCH),
        cluster_ids=bytes(4 * BATCH),
        lease_deadline=time.time(),
        global_batch_size=BATCH,
        world_size=1,
    )
    return pb.BatchReply(block=pb.BatchBlock(batch=[batch])).ByteSize()


def bare_server(pipe: Connection) -> None:
    """A gRPC server that streams as many messages as it is asked for, of the size asked for. Ends with its parent."""

    def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:  # noqa: ARG001
        count, size = np.frombuffer(request, np.int64)
        message = bytes(size)
        for _ in range(count):
            yield message

    server = grpc.server(ThreadPoolExecutor(4), options=wire.CHANNEL_OPTIONS)
    handler = grpc.method_handlers_generic_handler("bare", {"Stream": grpc.unary_stream_rpc_method_handler(stream)})
    server.add_generic_rpc_handlers((handler,))
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    pipe.recv()
    server.stop(0)


def session(address: str, name: str, *, lead: int, examples: int = EXAMPLES, policy: str = "shuffle") -> Session:
    """A joined trainer of a run of its own."""
    return Session(
        SamplerClient(address),
        run=name,
        dataset=f"{examples}-examples",
        num_examples=examples,
        options=RunOptions(policy=policy, sketch_dim=DIM, max_lead=LEAD),
        rank=0,
        world_size=1,
        batch_size=BATCH,
        drop_last=True,
        lead=lead,
        bunch=max(1, lead // 8),
    )


def ceiling_rate(port: int, batches: int, batches_per_message: int = 1) -> float:
    """Examples per second from the bare server, when each of its messages stands for that many batches of 256."""
    request = np.array([batches // batches_per_message, message_bytes() * batches_per_message], np.int64)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=wire.CHANNEL_OPTIONS) as channel:
        call = channel.unary_stream("/bare/Stream")
        start = time.perf_counter()
        received = sum(1 for _ in call(request.tobytes()))
        return received * batches_per_message * BATCH / (time.perf_counter() - start)


def service_rate(trainer: Session, epoch: int, batches: int) -> float:
    """Examples per second through the whole service, decoded into arrays, every lease acknowledged."""
    from sampler_client.batch import Batch

    trainer.start_epoch(epoch, 0)
    examples, start = 0, time.perf_counter()
    for _ in range(batches):
        message = trainer.next()
        assert message is not None
        batch = Batch(message)
        examples += len(batch.example_ids)
        trainer.done(batch.batch_id)
    return examples / (time.perf_counter() - start)


def report_rate(trainer: Session, epoch: int, reports: int) -> float:
    """Rows of 64 float16 per second, from the first `put` until all are in the table and the shards.

    Each report is of a batch that this trainer holds, as in training; the batches are received before the clock starts.
    """
    rng = np.random.default_rng(0)
    sketches = rng.standard_normal((BATCH, DIM)).astype(np.float16)
    norms = np.ones(BATCH, np.float32)
    trainer.start_epoch(epoch, 0)
    held = [message for _ in range(reports) if (message := trainer.next()) is not None]
    start = time.perf_counter()
    for number, message in enumerate(held, start=1):
        trainer.put(
            ReportRows(
                batch_id=message.batch_id,
                step=epoch * trainer.steps_per_epoch + message.step,
                example_ids=np.frombuffer(message.example_ids, np.int64),
                losses=norms,
                norms=norms,
                sketches=sketches,
            )
        )
        if number % 128 == 0:
            trainer.flush()  # the queue holds 256: nothing is dropped, and nothing is counted that was
    trainer.fence()
    rate = len(held) * BATCH / (time.perf_counter() - start)
    assert trainer.reporter.dropped == 0 and not trainer.reporter.rejected
    for message in held:
        trainer.done(message.batch_id)
    trainer.finish_epoch()
    return rate


def paced_waits(address: str, policy: str, lead: int, step_s: float, steps: int) -> np.ndarray:
    """Seconds that a trainer with steps of `step_s`, which reports each batch, waits for each of its batches."""
    trainer = session(address, f"paced-{policy}-{lead}", lead=lead, examples=20_000, policy=policy)
    rng = np.random.default_rng(0)
    waits: list[float] = []
    epoch = 0
    trainer.start_epoch(0, 0)
    while len(waits) < steps:
        start = time.perf_counter()
        message = trainer.next()
        if message is None:
            trainer.finish_epoch()
            epoch += 1
            trainer.start_epoch(epoch, 0)
            continue
        waits.append(time.perf_counter() - start)
        time.sleep(step_s)
        ids = np.frombuffer(message.example_ids, np.int64)
        sketches = rng.standard_normal((len(ids), DIM)).astype(np.float16)
        norms = rng.random(len(ids)).astype(np.float32) + 0.1
        trainer.put(
            ReportRows(
                batch_id=message.batch_id,
                step=epoch * trainer.steps_per_epoch + message.step,
                example_ids=ids,
                losses=norms,
                norms=norms,
                sketches=sketches,
            )
        )
        trainer.done(message.batch_id)
    trainer.close()
    return np.array(waits[steps // 10 :])


def resident_bytes() -> int:
    """Memory of all Ray workers of this machine, unshared pages."""
    total = 0
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if command.startswith("ray::"):
            total += process.memory_full_info().uss
    return total


def memory_row(address: str) -> dict[str, Any]:
    """Bytes per million examples: of the arrays, and of the processes as they grow."""
    small = session(address, "memory-small", lead=2, examples=BATCH)
    before = resident_bytes()
    large = session(address, "memory-large", lead=2)
    zeros = np.zeros((8192, DIM), np.float16)
    for start in range(0, EXAMPLES, len(zeros)):
        ids = np.arange(start, min(start + len(zeros), EXAMPLES))
        ones = np.ones(len(ids), np.float32)
        large.put(ReportRows(batch_id=0, step=0, example_ids=ids, losses=ones, norms=ones, sketches=zeros[: len(ids)]))
        large.flush()
    large.fence()
    row = {
        "what": "memory per million examples of 64 float16",
        "array_bytes": int(large.client.statistics("memory-large").memory_bytes * 1e6 / EXAMPLES),
        "process_bytes": int((resident_bytes() - before) * 1e6 / EXAMPLES),
    }
    small.close()
    large.close()
    return row


def interleaved(rounds: int, *measures: Callable[[int], float]) -> list[list[float]]:
    """Run the measures in turn, so that a drift of the machine's speed meets all of them."""
    return [list(values) for values in zip(*[[m(r) for m in measures] for r in range(rounds)], strict=True)]


def stream_row(address: str, port: int, rounds: int, per_message: int) -> dict[str, Any]:
    """Streaming to one trainer, in turn with the bare server's messages of one batch and of `per_message` batches."""
    trainer = session(address, "stream", lead=LEAD)
    batches = EXAMPLES // BATCH
    service_rate(trainer, 0, batches)
    measured = interleaved(
        rounds,
        lambda _: ceiling_rate(port, 2 * batches),
        lambda _: ceiling_rate(port, 20 * batches, per_message),
        lambda r: service_rate(trainer, r + 1, batches),
    )
    trainer.close()
    ceiling, block_ceiling, rate = (statistics.median(values) for values in measured)
    return {
        "what": "batches of 256 to one trainer",
        "batches_per_message": per_message,
        "batch_bytes": message_bytes(),
        "examples_per_second": rate,
        "ceiling_examples_per_second": ceiling,
        "same_block_ceiling_examples_per_second": block_ceiling,
        "over_ceiling": statistics.median(s / c for c, _, s in zip(*measured, strict=True)),
        "over_same_block": statistics.median(s / c for _, c, s in zip(*measured, strict=True)),
        "rounds": [{"ceiling": c, "block_ceiling": b, "service": s} for c, b, s in zip(*measured, strict=True)],
    }


def run(address: str, port: int, rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """Everything that is measured of the service as it is by default."""
    task = progress.add_task("serving", total=6)
    rows = [stream_row(address, port, rounds, -(-128 * 1024 // message_bytes()))]
    progress.advance(task)
    trainer = session(address, "reports", lead=LEAD)
    reported = [report_rate(trainer, epoch, LEAD) for epoch in range(rounds + 1)][1:]
    trainer.close()
    what = "reports of 256 x 64 float16"
    rows.append({"what": what, "rows_per_second": statistics.median(reported), "rounds": reported})
    progress.advance(task)
    for policy, lead in (("shuffle", 2), ("gradient_clustering", 2), ("gradient_clustering", 6)):
        waits = paced_waits(address, policy, lead, 0.02, 400)
        rows.append(
            {
                "what": f"wait for a batch, {policy}, lead {lead}, 20 ms steps, every batch reported",
                "p50_ms": float(np.percentile(waits, 50) * 1e3),
                "p99_ms": float(np.percentile(waits, 99) * 1e3),
            }
        )
        progress.advance(task)
    rows.append(memory_row(address))
    progress.advance(task)
    return rows


def main(
    json: Annotated[Path | None, typer.Option(help="where to write the result")] = None,
    rounds: Annotated[int, typer.Option(help="rounds of each measurement; medians are quoted")] = 7,
) -> None:
    """Measure serving on loopback."""
    ours, theirs = multiprocessing.Pipe()
    # spawn: the bare server's process must not inherit this one's gRPC state
    bare = multiprocessing.get_context("spawn").Process(target=bare_server, args=(theirs,), daemon=True)
    bare.start()
    port = ours.recv()
    with Progress() as progress:
        with running_service() as address:
            rows = run(address, port, rounds, progress)
        with running_service(arguments=["--message-bytes", "1"]) as address:
            strict = stream_row(address, port, rounds, 1)
    ours.send(None)
    bare.join(10)
    packed, reports, _, _, wait, memory = rows
    headline = {
        "examples_per_second": packed["examples_per_second"],
        "over_ceiling": strict["over_ceiling"],
        "over_ceiling_packed": packed["over_ceiling"],
        "over_ceiling_same_block": packed["over_same_block"],
        "examples_per_second_unpacked": strict["examples_per_second"],
        "reports_per_second": reports["rows_per_second"],
        "wait_p50_ms": wait["p50_ms"],
        "wait_p99_ms": wait["p99_ms"],
        "memory_bytes_per_million": float(memory["process_bytes"]),
    }
    write_result(json, name="serving", rows=[*rows, strict], headline=headline)


if __name__ == "__main__":
    typer.run(main)
