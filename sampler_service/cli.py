"""`sampler-service up | status | top | explain | page | close | stop | down`; those of data sets: `data_commands`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.client import SamplerClient
from sampler_client.config import Timeouts
from sampler_client.errors import NotFound, Stale
from sampler_client.errors import SamplerError as ClientError
from sampler_service import data_commands, terminal
from sampler_service.config import SERVICE_NAME, ServiceConfig, default_data_dir
from sampler_service.errors import ConfigError, SamplerError
from sampler_service.plain import plain

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
# A pipe has no columns to fit: there, nothing is folded.
console = Console(width=None if sys.stdout.isatty() else 10_000)

PAGE_PORT = 50052

NAME = "of the service, where several share one Ray cluster; gateways of one name are one service"

PREVIEWS = "package.module:factory of what examples look like on the page"

Service = Annotated[str, typer.Argument(help="host:port of the service")]


@app.command()
def up(  # noqa: PLR0913 - the options of a command line
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join (auto, host:port); none: one is started here")
    ] = None,
    name: Annotated[str, typer.Option(help=NAME)] = SERVICE_NAME,
    host: Annotated[str, typer.Option(help="interface to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes a free one")] = 50051,
    shards: Annotated[int, typer.Option(help="sketch shards per run")] = 1,
    gpus_per_shard: Annotated[float, typer.Option(help="GPUs each shard asks Ray for")] = 0.0,
    scorers: Annotated[int, typer.Option(help="scorer processes per run, for trainers that publish weights")] = 0,
    scoring: Annotated[str, typer.Option(help="package.module:factory of what scorers run")] = "",
    scorer_gpus: Annotated[float, typer.Option(help="GPUs each scorer asks Ray for")] = 0.0,
    page_port: Annotated[
        int, typer.Option(help="port of the web page and of /metrics; 0 takes a free one")
    ] = PAGE_PORT,
    no_page: Annotated[bool, typer.Option("--no-page", help="serve neither page nor /metrics")] = False,
    previews: Annotated[str, typer.Option(help=PREVIEWS)] = "",
    data_dir: Annotated[str, typer.Option(help="folder of the registered data sets; by default in your cache")] = "",
    follow_s: Annotated[float, typer.Option(help="seconds between looks for appended and deleted records")] = 5.0,
    max_trainers: Annotated[int, typer.Option(help="trainers served at once; a thread each")] = 256,
    message_bytes: Annotated[int, typer.Option(help="ready batches share a message up to this size")] = 128 * 1024,
    reflection: Annotated[bool, typer.Option(help="serve gRPC reflection")] = False,
    ready_file: Annotated[
        Path | None, typer.Option(help="write host:port here once it serves, and the page's address")
    ] = None,
) -> None:
    """Start the service and serve until SIGTERM, Ctrl-C or `sampler-service stop`."""
    config = ServiceConfig(
        name=name,
        host=host,
        port=port,
        shards=shards,
        gpus_per_shard=gpus_per_shard,
        scorers=scorers,
        scoring=scoring,
        scorer_gpus=scorer_gpus,
        page_port=None if no_page else page_port,
        previews=previews,
        data_dir=data_dir or default_data_dir(),
        follow_s=follow_s,
        max_trainers=max_trainers,
        message_bytes=message_bytes,
        reflection=reflection,
    )
    console.print("starting Ray and the gateway …" if address is None else f"joining {address} …")
    cluster = _service_side().start(config, address)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # not earlier: starting Ray takes SIGTERM for itself
        signal.signal(number, lambda *_: stop.set())
    try:
        console.print(f"[green]serving on {host}:{cluster.port}[/green]  (Ctrl-C to stop)")
        if cluster.page_port is not None:
            console.print(f"watch it at [link]http://{host}:{cluster.page_port}[/link]")
        if ready_file:
            temporary = ready_file.with_suffix(".part")
            shown = "" if cluster.page_port is None else f"http://{host}:{cluster.page_port}\n"
            temporary.write_text(f"{host}:{cluster.port}\n{shown}")
            os.replace(temporary, ready_file)
        while not stop.is_set() and not cluster.wait_for_stop(0.5):
            pass
    finally:
        console.print("draining …")
        cluster.stop()
        console.print("stopped")


@app.command()
def status(
    service: Service = "127.0.0.1:50051",
    as_json: Annotated[bool, typer.Option("--json", help="all figures as JSON, for scripts")] = False,
) -> None:
    """Show every run: what it samples, and how well. Fails when one of them does not answer."""
    with SamplerClient(service) as client:
        runs, unanswered = _statistics(client, detail=as_json)
    if as_json:
        said = {"service": service, "runs": [plain(said) for said in runs.values()], "unanswered": unanswered}
        typer.echo(json.dumps(said, indent=2))
    elif runs or unanswered:
        _print_status(service, runs, unanswered)
    else:
        console.print(f"{service} serves no run yet")
    if unanswered:
        raise typer.Exit(1)


def _print_status(service: str, runs: Mapping[str, pb.GetStatisticsResponse], unanswered: Mapping[str, str]) -> None:
    console.print(terminal.runs_table(f"runs of {service}", runs))
    console.print(
        "ratio: variance of a batch's gradient against i.i.d. draws. lead: batches that trainers hold, and may hold.",
        style="dim",
    )
    for remark in terminal.remarks(runs, unanswered):
        console.print(remark, markup=False, highlight=False)


@app.command()
def top(
    service: Service = "127.0.0.1:50051",
    every_s: Annotated[float, typer.Option("--every", min=0.2, help="seconds between two looks")] = 1.0,
    count: Annotated[int, typer.Option(help="end after so many looks; 0: go on until Ctrl-C")] = 0,
) -> None:
    """Watch every run and its trainers, live."""
    view, looks = terminal.Top(service), 0
    with (
        SamplerClient(service, timeouts=Timeouts(call_s=5.0)) as client,
        Live(console=console, auto_refresh=False) as live,
    ):
        try:
            while True:
                try:
                    shown = view.frame(*_statistics(client))
                except ClientError as error:  # it may come back: say so, and go on
                    if not looks:
                        raise
                    shown = Text(f"{service} does not answer, trying on: {error}", style="red")
                live.update(shown, refresh=True)
                looks += 1
                if looks == count:
                    return
                time.sleep(every_s)
        except KeyboardInterrupt:
            return


@app.command()
def explain(
    run: Annotated[str, typer.Argument(help="name of the run")],
    example_id: Annotated[int, typer.Argument(metavar="ID", help="id of the example")],
    service: Service = "127.0.0.1:50051",
    neighbours: Annotated[int, typer.Option(min=1, max=100, help="nearest in gradient space to show")] = 8,
) -> None:
    """Say why an example was drawn, how often, or why never."""
    with SamplerClient(service) as client:
        console.print(terminal.explanation(run, client.explain(run, example_id, neighbours=neighbours)))


@app.command()
def page(
    service: Service = "127.0.0.1:50051",
    host: Annotated[str, typer.Option(help="interface to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on; 0 takes a free one")] = PAGE_PORT,
    previews: Annotated[str, typer.Option(help=PREVIEWS)] = "",
) -> None:
    """Serve the web page of a service that runs elsewhere, until Ctrl-C."""
    from sampler_service.web.server import WebServer

    server = WebServer(service, host=host, port=port, previews=previews)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    console.print(f"the page of {service}: [link]http://{host}:{server.port}[/link]  (Ctrl-C to stop)")
    ended.wait()
    server.stop()


def _statistics(
    client: SamplerClient, *, detail: bool = False
) -> tuple[dict[str, pb.GetStatisticsResponse], dict[str, str]]:
    """Where each run stands, and why others did not answer; one that ends meanwhile is left out."""
    said: dict[str, pb.GetStatisticsResponse] = {}
    unanswered: dict[str, str] = {}
    for run in client.runs():
        try:
            said[run] = client.statistics(run, detail=detail)
        except (NotFound, Stale):
            pass
        except ClientError as error:
            unanswered[run] = str(error)
    return said, unanswered


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


@app.command()
def down(
    address: Annotated[str, typer.Option(help="Ray cluster (auto, host:port)")] = "auto",
    name: Annotated[str, typer.Option(help=NAME)] = SERVICE_NAME,
) -> None:
    """End a service on a Ray cluster, from any of its nodes: gateways drain, runs end, and nothing is left of it."""
    stuck = _service_side().down(address, name)
    for gateway in stuck:
        console.print(f"[yellow]{gateway} did not drain and was killed[/yellow]")
    console.print(f"service {name} on {address} is down")


for command in (data_commands.ingest, data_commands.datasets, data_commands.verify, data_commands.delete):
    app.command()(command)


def _service_side() -> ModuleType:
    """The composition root, imported late: commands that only ask a service need neither ray nor FAISS."""
    try:
        from sampler_service import app as service_side
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the service needs {error.name!r}, which is not installed: pip install '.[service]'"
        ) from None
    return service_side


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
