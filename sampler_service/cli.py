"""`sampler-service up | status | close | stop`."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sampler_client.client import SamplerClient
from sampler_client.errors import SamplerError as ClientError
from sampler_service.config import ServiceConfig
from sampler_service.errors import SamplerError

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
console = Console()

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
        runs = client.runs()
        if not runs:
            console.print(f"{service} serves no run yet")
            return
        table = Table(title=f"runs of {service}")
        for heading in (
            "run",
            "examples",
            "policy",
            "batches",
            "sketched",
            "variance ratio",
            "lead",
            "trainers",
        ):
            table.add_column(heading)
        notes = []
        for run in runs:
            s = client.statistics(run)
            active = s.policy if s.active_policy in ("", s.policy) else f"{s.policy} ({s.active_policy})"
            ratio = "-" if s.variance_ratio != s.variance_ratio else f"{s.variance_ratio:.2f}"
            table.add_row(
                run,
                f"{s.num_examples:,}",
                active,
                f"{s.batches:,}",
                f"{s.sketch_coverage:.0%}",
                ratio,
                f"{s.lead}/{s.max_lead}",
                str(s.trainers),
            )
            if s.reason:
                notes.append(f"{run}: {s.reason}")
        console.print(table)
        for note in notes:
            console.print(note)


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
