"""`python -m benchmarks.training`: makes the runs that are missing, then the tables, plots and headline of all."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.training.cells import Plan, Results, count, run_all
from benchmarks.training.loop import Curve, train
from benchmarks.training.memory import MEMORIES
from benchmarks.training.methods import METHODS, make_method, parts_of, setup
from benchmarks.training.report import write_report
from benchmarks.training.tasks import CONDITIONS, SETTINGS, Setting, check_data, make_task, with_condition
from sampler_service.embedded import running_service
from trainer_examples.data import DataError

SHORT = tuple(method for method in METHODS if parts_of(method)[1] < 1)
TRIALS = (*MEMORIES, "two_stage, similar")
"""further ways to take noise out of a step, tried where the aims are missed"""

WHOLE = tuple(method for method in METHODS if method not in (*SHORT, *TRIALS))

DEEP = ("shuffle", "infobatch (peer)", "two_stage", *SHORT)
"""what is run where a run takes minutes: the baseline, and what saves passes or chooses by them"""

COMMITTED = (
    # task, conditions, methods; first those whose seconds are quoted
    ("mnist_mlp", ("clean",), METHODS),
    ("cifar_cnn_short", ("clean",), ("shuffle", "shuffle (service)", "two_stage", "auto")),
    ("cifar_cnn", ("clean",), DEEP),
    ("mnist_mlp", ("noise40", "longtail", "dup90"), WHOLE),
)
"""The grid behind the committed results: 678 runs with three seeds, about 3 hours on two otherwise idle cores, and
two to three times as long on busy ones."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with mnist/ and cifar10/")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/training.json"), help="headline figures")
    parser.add_argument("--tasks", nargs="+", choices=sorted(SETTINGS), help="default: the committed grid")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=["clean"], help="with --tasks")
    parser.add_argument("--full", action="store_true", help="every task under every condition; days")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: the grid's, or all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report-only", action="store_true", help="no runs: tables and plots of those that are there")
    options = parser.parse_args(arguments)
    results, seeds = Results(options.out / "runs.jsonl", _setup_of), range(options.seeds)
    if not options.report_only:
        plan = _plan(options)
        try:
            check_data([setting for setting, _ in plan], options.data)
        except DataError as error:
            parser.error(str(error))
        _run(results, plan, seeds, options.data)
    write_report(results, options.out, options.json, seeds)


def _plan(options: argparse.Namespace) -> Plan:
    if options.full:
        grid = [(name, CONDITIONS, METHODS) for name in SETTINGS]
    elif options.tasks:
        grid = [(name, options.conditions, METHODS) for name in options.tasks]
    else:
        grid = COMMITTED
    return [
        (with_condition(SETTINGS[name], condition), options.methods or methods)
        for name, conditions, methods in grid
        for condition in conditions
    ]


def _setup_of(task: str, method: str) -> str:
    name, condition = task.rsplit("-", 1)
    return setup(with_condition(SETTINGS[name], condition), method) if name in SETTINGS else ""


def _run(results: Results, plan: Plan, seeds: range, data: Path) -> None:
    task_of = lru_cache(maxsize=1)(lambda setting: make_task(setting, data))
    session = uuid.uuid4().hex[:8]
    there, total = count(results, plan, seeds)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with running_service() as address, Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("runs", total=total, completed=there)

        def run(setting: Setting, method: str, rate: float, seed: int) -> Curve:
            progress.update(bar, description=f"{setting.key} {method} lr {rate:g} seed {seed}")
            task = task_of(setting)
            chosen = make_method(method, task, seed=seed, address=address)
            curve = train(task, chosen, method, learning_rate=rate, seed=seed)
            progress.advance(bar)
            return replace(curve, setup=setup(setting, method), session=session)

        run_all(results, plan, seeds, run)


if __name__ == "__main__":
    main()
