"""`python -m benchmarks.training`: makes the runs that are missing, then the tables, plots and headline of all."""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.training.cells import Results, run_all
from benchmarks.training.loop import Curve, train
from benchmarks.training.ours import OURS, Ours
from benchmarks.training.peers import PEERS
from benchmarks.training.report import write_report
from benchmarks.training.tasks import CONDITIONS, SETTINGS, Setting, Task, make_task, with_condition
from sampler_service.embedded import running_service

COMMITTED = (
    # task, conditions: what fits in about three hours on two cores
    ("mnist_mlp", ("clean", "dup50", "dup90", "longtail", "noise20", "noise40")),
    ("cifar_cnn", ("clean",)),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with mnist/ and cifar10/")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/training.json"), help="headline figures")
    parser.add_argument("--tasks", nargs="+", choices=sorted(SETTINGS), help="default: the committed grid")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=["clean"], help="with --tasks")
    parser.add_argument("--full", action="store_true", help="every task under every condition; a day and more")
    parser.add_argument("--methods", nargs="+", choices=[*PEERS, *OURS], default=[*PEERS, *OURS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report-only", action="store_true", help="no runs: tables and plots of those that are there")
    arguments = parser.parse_args()
    results = Results(arguments.out / "runs.jsonl")
    settings = _settings(arguments)
    if not arguments.report_only:
        _run(arguments, results, settings)
    write_report(results, arguments.out, arguments.json, range(arguments.seeds))


def _settings(arguments: argparse.Namespace) -> list[Setting]:
    if arguments.full:
        return [with_condition(setting, condition) for setting in SETTINGS.values() for condition in CONDITIONS]
    if arguments.tasks:
        return [with_condition(SETTINGS[name], c) for name in arguments.tasks for c in arguments.conditions]
    return [with_condition(SETTINGS[name], c) for name, conditions in COMMITTED for c in conditions]


def _run(arguments: argparse.Namespace, results: Results, settings: list[Setting]) -> None:
    task_of = cache(lambda setting: make_task(setting, arguments.data))
    total = sum((len(setting.learning_rates) + arguments.seeds) * len(arguments.methods) for setting in settings)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with running_service() as address, Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("runs", total=total)

        def run(setting: Setting, method: str, rate: float, seed: int) -> Curve:
            progress.update(bar, description=f"{setting.key} {method} lr {rate:g} seed {seed}", completed=len(results))
            return _one(task_of(setting), method, rate, seed, address)

        run_all(results, settings, arguments.methods, range(arguments.seeds), run)


def _one(task: Task, method: str, rate: float, seed: int, address: str) -> Curve:
    chosen = PEERS[method](task, seed) if method in PEERS else Ours(task, method, address=address, seed=seed)
    return train(task, chosen, method, learning_rate=rate, seed=seed)


if __name__ == "__main__":
    main()
