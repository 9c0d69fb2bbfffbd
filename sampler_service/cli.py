"""`sampler-service up | status | close | stop`."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient
from sampler_client.errors import SamplerError as ClientError
from sampler_service.config import ServiceConfig
from sampler_service.errors import SamplerError

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
# A pipe has no columns to fit: there, nothing is folded.
console = Console(width=None if sys.stdout.isatty() else 10_000)

Service = Annotated[str, typer.Argument(help="host:port of the service")]


@app.command()
def up(  # noqa: PLR0913 - the options of a command line
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join (auto, host:port); none: one is started here")
    ] = None,
    host: Annotated[str, typer.Option(help="interface to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes a free one")] = 50051,
    shards: Annotated[int, typer.Option(help="sketch shards per run")] = 1,
    gpus_per_shard: Annotated[float, typer.Option(help="GPUs each shard asks Ray for")] = 0.0,
    scorers: Annotated[int, typer.Option(help="scorer processes per run, for trainers that publish weights")] = 0,
    scoring: Annotated[str, typer.Option(help="package.module:factory of what scorers run")] = "",
    scorer_gpus: Annotated[float, typer.Option(help="GPUs each scorer asks Ray for")] = 0.0,
    max_trainers: Annotated[int, typer.Option(help="trainers served at once; a thread each")] = 256,
    message_bytes: Annotated[int, typer.Option(help="ready batches share a message up to this size")] = 128 * 1024,
    reflection: Annotated[bool, typer.Option(help="serve gRPC reflection")] = False,
    ready_file: Annotated[Path | None, typer.Option(help="write host:port here once it serves")] = None,
) -> None:
    """Start the service and serve until SIGTERM, Ctrl-C or `sampler-service stop`."""
    from sampler_service.app import start

    config = ServiceConfig(
        host=host,
        port=port,
        shards=shards,
        gpus_per_shard=gpus_per_shard,
        scorers=scorers,
        scoring=scoring,
        scorer_gpus=scorer_gpus,
        max_trainers=max_trainers,
        message_bytes=message_bytes,
        reflection=reflection,
    )
    console.print("starting Ray and the gateway …" if address is None else f"joining {address} …")
    cluster = start(config, address)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # not earlier: starting Ray takes SIGTERM for itself
        signal.signal(number, lambda *_: stop.set())
    try:
        console.print(f"[green]serving on {host}:{cluster.port}[/green]  (Ctrl-C to stop)")
        if ready_file:
            temporary = ready_file.with_suffix(".part")
            temporary.write_text(f"{host}:{cluster.port}")
            os.replace(temporary, ready_file)
        while not stop.is_set() and not cluster.wait_for_stop(0.5):
            pass
    finally:
        console.print("draining …")
        cluster.stop()
        console.print("stopped")


@app.command()
def status(service: Service = "127.0.0.1:50051") -> None:
    """Show every run: what it samples, and how well."""
    with SamplerClient(service) as client:
        runs = {run: client.statistics(run) for run in client.runs()}
    if not runs:
        console.print(f"{service} serves no run yet")
        return
    console.print(_table(f"runs of {service}", runs))
    console.print(
        "ratio: variance of a batch's gradient against i.i.d. draws. lead: batches that trainers hold, and may hold.",
        style="dim",
    )
    for run, said in runs.items():
        for word in filter(None, (said.reason, _shard_trouble(said), _scoring(said))):
            console.print(f"{run}: {word}", markup=False, highlight=False)


def _shard_trouble(said: pb.GetStatisticsResponse) -> str:
    """What became of shards that failed; empty when none did."""
    away = f"{said.shards_away} of {said.shards} shards do not answer" if said.shards_away else ""
    lost = f"shards came back empty {said.shards_lost} times, their sketches are lost" if said.shards_lost else ""
    return "; ".join(filter(None, (away, lost)))


def _scoring(said: pb.GetStatisticsResponse) -> str:
    """What scorers do; empty when there was nothing for them to do."""
    if not said.weights_version:
        return said.scorer_error
    age = "-" if math.isnan(said.median_age_steps) else f"{said.median_age_steps:,.0f}"
    words = (
        f"{said.scorers} scorers at work, {said.scored_rows:,} rows scored, weights {said.weights_version} of step "
        f"{said.weights_step:,}; median age {age} steps"
    )
    return f"{words}; {said.scorer_error}" if said.scorer_error else words


def _table(title: str, runs: Mapping[str, pb.GetStatisticsResponse]) -> Table:
    """A row per run, its policy below its name. In 80 columns long names are folded, and numbers stay whole."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    for heading in ("examples", "sketched", "batches", "ratio", "lead", "trainers"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run, s in runs.items():
        policy = s.policy if s.active_policy in ("", s.policy) else f"{s.policy} ({s.active_policy})"
        table.add_row(
            f"{escape(run)}\n  {policy}",
            f"{s.num_examples:,}",
            f"{s.sketch_coverage:.0%}",
            f"{s.batches:,}",
            "-" if math.isnan(s.variance_ratio) else f"{s.variance_ratio:.2f}",
            f"{s.lead}/{s.max_lead}",
            str(s.trainers),
        )
    return table


@app.command()
def close(run: Annotated[str, typer.Argument(help="name of the run")], service: Service = "127.0.0.1:50051") -> None:
    """End a run and forget its sketches; its trainers are told."""
    with SamplerClient(service) as client:
        client.close_run(run)
    console.print(f"run {run} is closed")


@app.command()
def stop(service: Service = "127.0.0.1:50051") -> None:
    """Ask the service on this machine to drain and end."""
    with SamplerClient(service) as client:
        client.stop_service()
    console.print(f"{service} is stopping")


def main() -> None:
    """Entry point; errors are one line, not a trace."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("sampler_service").setLevel(logging.INFO)  # of others only warnings: FAISS tells how it loads
    try:
        app()
    except (SamplerError, ClientError) as error:
        # soft_wrap: one error is one line, also in a file
        console.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
