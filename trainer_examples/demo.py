"""All of it at once, on real data: start the service, train under each policy, compare.

    python -m trainer_examples.demo                               # digits, and digits with 90 % duplicates
    python -m trainer_examples.demo --data path/to/mnist --steps 1500
    python -m trainer_examples.demo --policies shuffle,importance --seeds 5
    python -m trainer_examples.demo --keep                        # and look at it in a browser

Every policy gets the same models, budget of steps, batch size and learning rate: the one of .02, .05, .1 and .2 at
which *shuffling* does best. For the two digits sets it was found beforehand; for a set of your own it is looked for.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sampler_client.errors import SamplerError as ClientError
from sampler_service.embedded import RunningService, running_service
from sampler_service.errors import SamplerError as ServiceError
from trainer_examples.comparison import Curve, Settings, best_rate, train_under
from trainer_examples.data import DataError, ImageData, load, with_duplicates
from trainer_examples.figures import notes_of, save_plot, table_of, target_of
from trainer_examples.tuning import RATES

POLICIES = ("shuffle", "gradient_clustering", "importance", "infobatch", "selective_backprop", "rho_loss")

_RATES = ", ".join(f"{rate:g}" for rate in RATES)

console = Console()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    data: ImageData
    settings: Settings


def main(  # noqa: PLR0913 - the options of a command line
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    policies: Annotated[str, typer.Option(help="comma-separated; shuffle is always among them")] = ",".join(POLICIES),
    steps: Annotated[int | None, typer.Option(help="of each run; none: 400 on digits, 800 on other sets")] = None,
    seeds: Annotated[int, typer.Option(help="runs of each policy")] = 2,
    examples: Annotated[int, typer.Option(help="largest training set")] = 10_000,
    out: Annotated[Path, typer.Option(help="where the plot goes")] = Path("out/demo.png"),
    address: Annotated[str | None, typer.Option(help="a running service; none: one is started for the demo")] = None,
    keep: Annotated[bool, typer.Option(help="keep service, runs and web page up afterwards, until Ctrl-C")] = False,
) -> dict[str, dict[str, list[Curve]]]:
    """Compare the sampling policies; returns {scenario: {policy: curves}}."""
    torch.set_num_threads(1)  # these models are small; the other cores are the service's
    chosen = list(dict.fromkeys(["shuffle", *(name.strip() for name in policies.split(",") if name.strip())]))
    scenarios = _scenarios(data, examples, steps)
    console.print("starting the service (Ray, gRPC) …" if address is None else f"using the service at {address}")
    with _service(keep) if address is None else nullcontext(address) as host:
        if isinstance(host, RunningService) and host.page:
            console.print(f"watch it at [link]{host.page}[/link]")
        results = {s.data.name: _compare(s, chosen, seeds, host, keep=keep) for s in scenarios}
        for scenario in scenarios:
            _show(scenario, results[scenario.data.name], seeds)
        save_plot(results, out)
        console.print(f"\nplot: {out}")
        if isinstance(host, RunningService) and host.page:
            _stay(host)
    return results


def _service(keep: bool) -> AbstractContextManager[RunningService]:
    """A service for the demo; one that is kept has a page with pictures, where `sampler-service up` has it."""
    if not keep:
        return running_service()
    return running_service(page=True, arguments=("--previews", "trainer_examples.previews:digits"))


def _stay(service: RunningService) -> None:
    console.print(f"\nthe service stays at {service}, its page at [link]{service.page}[/link]  (Ctrl-C to stop)")
    with suppress(KeyboardInterrupt):
        service.process.wait()


def _scenarios(path: str | None, examples: int, steps: int | None) -> list[Scenario]:
    """What is compared, with settings at which shuffling does best there."""
    data = load(path, limit=examples)
    if path is not None:
        settings = Settings(steps=steps or 800, batch_size=32)
        console.print(f"looking for the learning rate of {_RATES} that suits shuffling best …", highlight=False)
        return [Scenario(data=data, settings=replace(settings, learning_rate=best_rate(data, settings)))]
    return [
        Scenario(data=data, settings=Settings(steps=steps or 400)),
        Scenario(data=with_duplicates(data), settings=Settings(steps=steps or 400, learning_rate=0.1)),
    ]


def _compare(
    scenario: Scenario, policies: list[str], seeds: int, address: str, *, keep: bool
) -> dict[str, list[Curve]]:
    """Train under every policy, seed by seed, so that what else the machine does hits all alike."""
    console.print(f"\n[bold]{scenario.data}[/bold]", highlight=False)
    runs: dict[str, list[Curve]] = {policy: [] for policy in policies}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        total = seeds * scenario.settings.steps
        tasks = {policy: progress.add_task(f"{policy:20}", total=total, start=False) for policy in policies}
        for seed in range(seeds):
            for policy, task in tasks.items():
                progress.start_task(task)
                curve = train_under(
                    policy,
                    scenario.data,
                    scenario.settings,
                    address=address,
                    run=f"demo/{scenario.data.slug}/{policy}/{seed}",
                    seed=seed,
                    on_step=lambda task=task: progress.advance(task),
                    keep=keep,
                )
                runs[policy].append(curve)
    return runs


def _show(scenario: Scenario, runs: dict[str, list[Curve]], seeds: int) -> None:
    settings, target = scenario.settings, target_of(runs)
    title = (
        f"{scenario.data.name}: {settings.steps} steps of {settings.batch_size}, SGD {settings.learning_rate:g} with "
        f"momentum {settings.momentum:g}, median of {seeds} seeds"
    )
    console.print()
    console.print(table_of(title, runs, target))
    console.print(
        f"steps and seconds: to a full-set training loss of {target:.4f}, where shuffle ends in its worst run "
        f"(evaluated every {settings.steps // settings.evaluations} steps, clock stopped; a start is not counted). "
        "Seconds of rho_loss include training its reference models. "
        f"All train at the learning rate of {_RATES} that suits shuffling best. "
        "loss: over the training set, late in the run. seen: examples trained on. ratio: variance of a batch's "
        "gradient against i.i.d. draws, as the service measured it. active: batches that the policy itself planned.",
        style="dim",
    )
    for note in notes_of(runs):
        console.print(f"  {note}", style="dim", highlight=False)


def run() -> None:
    """Entry point; errors are one line, not a trace."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        typer.run(main)
    except (DataError, ClientError, ServiceError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: {error}", highlight=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    run()
