"""The tables of `docs/methods.md` say what `benchmarks/results` says: each row is rendered from there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from benchmarks.gradient_variance.__main__ import headline_of as variance_ratios
from trainer_examples.orders import SKETCH_DIM
from trainer_examples.results import spread

ROOT = Path(__file__).parents[2]

Row = dict[str, Any]
Cells = list[str]

NAMES = {
    "no mixing, binary": "no mixing, binary loss",
    "cascade": "cascade of 4",
    "cascade, different": "cascade of 4, different classes",
    "cascade, same": "cascade of 4, same class",
    "cascade, different clusters": "cascade of 4, different clusters",
    "cascade, same cluster": "cascade of 4, same cluster",
    "0 % to 25 %": "0 % to 25 % of the run",
    "random_features_h0.5": "random features, h/N = 0.5",
    "random_features_h2": "random features, h/N = 2",
    "mnist_mlp": "MNIST, MLP",
    "mnist_cnn": "MNIST, CNN",
    "cifar_resnet": "CIFAR-10, ResNet-8",
    "mined": "mined batches, max of hinges",
    "as_poa": "as `poa` has them",
    "imbalance": "20:1000",
    "gc": "GC",
    "svrg": "SVRG",
    "hartigan_alpha0": "Hartigan, alpha 0",
    "hartigan_alpha50": "Hartigan, alpha 0.5",
}
"""what the document calls otherwise than the results do, in rows and headings"""

OF_WORDS = ("to resist perturbations bounded in", "line")
"""first headings of tables that hold nothing measured"""


def cells_of(line: str) -> Cells:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def document_tables() -> list[list[Cells]]:
    """Every table of the document: its header row and the rows below it."""
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    found = re.findall(r"^(\|.*\|)\n\|[-| :]+\|\n((?:\|.*\|\n)+)", text, re.MULTILINE)
    return [[cells_of(head), *map(cells_of, body.splitlines())] for head, body in found]


def table_below(header: str, number: int = 0) -> list[Cells]:
    """The table whose header row begins with `header`; its `number` says which, where several do."""
    start = cells_of(header)
    found = [table for table in document_tables() if table[0][: len(start)] == start]
    assert number < len(found), f"docs/methods.md has {len(found)} tables with the header row {header!r}"
    return found[number]


def results(name: str, part: str = "rows") -> Any:
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))[part]


def by(rows: Iterable[Row], key: str) -> dict[Any, list[Row]]:
    """Rows of each value, in the order of the first ones."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def mean_of(rows: Iterable[Row], key: str, form: str, scale: float = 1) -> str:
    """Mean ± deviation over the rows, each times `scale` and in the format `form`, such as .1f."""
    mean, deviation = spread([scale * row[key] for row in rows])
    return f"{mean:{form}} ± {deviation:{form.lstrip('+')}}"


def name_of(name: str) -> str:
    return NAMES.get(name, name)


def with_policy_as_code(name: str) -> str:
    return re.sub(r"\b(poa|balanced_order|validation_alignment)\b", r"`\1`", name)


def retrieval(head: Cells) -> Iterator[Cells]:
    assert head[1:] == ["R@1 / 5 / 10, left to right", "right to left", "R@1", "seconds"]
    for method, own in by(results("retrieval"), "method").items():
        ways = [
            " / ".join(f"{100 * fmean(row['recalls'][way][at] for row in own):.1f}" for at in ("1", "5", "10"))
            for way in ("left_to_right", "right_to_left")
        ]
        seconds = f"{fmean(row['seconds'] for row in own):.0f}"
        yield [name_of(method), *ways, f"{mean_of(own, 'recall_at_1', '.1f', 100)} %", seconds]


def robust(name: str, family: str, head: Cells) -> Iterator[Cells]:
    rows = by(results(name), "family")[family]
    for method, own in by(rows, "method").items():
        cells = [method]
        for attack in (heading.lower().replace("-", "_") for heading in head[1:]):
            wrong = fmean(row[f"risk_below_{attack}"] for row in own)
            cell = f"{mean_of(own, f'margin_{attack}', '.3f')}, {wrong:.0%}"
            cells.append(f"**{cell}**" if own[0]["theory"] == attack else cell)
        yield cells


def sampling(head: Cells) -> Iterator[Cells]:
    assert head[1:] == ["steps", "l2 margin", "cosine to the best"]
    for row in by(results("robust"), "family")["sampling"]:
        margin, deviation = spread(row["margins"])
        yield [row["method"], f"{row['steps']:,}", f"{margin:.3f} ± {deviation:.3f}", f"{fmean(row['cosines']):.4f}"]


def ranks(head: Cells) -> Iterator[Cells]:
    agreed = by(by(results("ordering"), "part")["agreement"], "dim")[SKETCH_DIM]
    for kind in ("fresh", "begun", "as_poa"):
        cells = []
        for point in head[1:]:
            own = by(agreed, "epochs")[float(point)]
            cells.append("" if None in [row[kind] for row in own] else mean_of(own, kind, ".2f"))
        yield [name_of(kind), *cells]


def ordering(head: Cells) -> Iterator[Cells]:
    """`head`: after how many epochs, some learning rates, and the accuracy at the rate of the lowest held-out loss."""
    assert head[-1] == "test accuracy (rate)"
    epochs = int(re.sub(r"\D", "", head[0]))
    trained = by(by(results("ordering"), "part")["training"], "epochs")[epochs]
    for method, of_method in by(trained, "method").items():
        own = by(of_method, "rate")
        losses = [mean_of(own[float(rate)], "train_loss", ".4f") for rate in head[1:-1]]
        best = min(own, key=lambda rate: fmean(row["held_out_loss"] for row in own[rate]))
        accuracy = mean_of(own[best], "accuracy", ".2f", 100)
        yield [with_policy_as_code(method), *losses, f"{accuracy} % ({best:g})"]


def cascading_sum(name: str, head: Cells, *, more: str = "") -> Iterator[Cells]:
    """`more` names a second run, in which no mixing came out the same."""
    assert head[1:] == ["error", "attacked"]
    methods = by(results(name), "method")
    added = by(results(more), "method") if more else {}
    for method in methods.keys() & added.keys():
        assert [row["error"] for row in added[method]] == pytest.approx([row["error"] for row in methods[method]])
    for method, own in (added | methods).items():
        attacked = 100 * fmean(row["attacked"][-1] for row in own)
        yield [name_of(method), f"{mean_of(own, 'error', '.1f', 100)} %", f"{attacked:.1f} %"]


def multiplicative(head: Cells) -> Iterator[Cells]:
    """`head` names the rules."""
    headline = results("multiplicative", "headline")  # losses in the rows are rounded already
    for optimizer, of_rules in by(results("multiplicative"), "optimizer").items():
        reached = {row["rule"]: 100 * fmean(row["reached"]) for row in of_rules}
        assert sorted(head[1:]) == sorted(reached)
        lowest = {rule: headline[f"best loss, {optimizer}, {rule}"] for rule in reached}
        yield [optimizer, *(f"{reached[rule]:.0f} %, {lowest[rule]:.4f}" for rule in head[1:])]


def data_weights(name: str, head: Cells) -> Iterator[Cells]:
    """`head` names tasks, and behind each the methods that differences in it are from."""
    assert head[-1] == "seconds"
    by_task = {name_of(task): by(own, "method") for task, own in by(results(name), "task").items()}
    tasks = [heading for heading in head if heading in by_task]
    for method in by_task[tasks[0]]:
        cells = [with_policy_as_code(method)]
        methods: dict[str, list[Row]] = {}
        for heading in head[1:-1]:
            methods = by_task.get(heading, methods)
            mine = methods[method][0]["accuracies"]
            if heading in tasks:
                cells.append("{:.1f} ± {:.1f}".format(*spread([100 * share for share in mine])))
                continue
            assert heading.startswith("minus ")
            theirs = methods[heading.removeprefix("minus ")][0]["accuracies"]
            gaps = [100 * (one - other) for one, other in zip(mine, theirs, strict=True)]
            cells.append("" if theirs is mine else "{:+.1f} ± {:.1f}".format(*spread(gaps)))
        yield [*cells, ", ".join(f"{by_task[task][method][0]['seconds']:.0f}" for task in tasks)]


def critical_period(head: Cells) -> Iterator[Cells]:
    assert head[1:] == ["test accuracy", "over never", "training loss"]
    windows = by(results("critical_period"), "window")
    for window, own in windows.items():
        name = window.replace("%", " %")
        pairs = zip(own, windows["never"], strict=True)
        gaps = [{"gap": row["accuracy"] - never["accuracy"]} for row, never in pairs]
        yield [
            name_of(name),
            f"{mean_of(own, 'accuracy', '.2f', 100)} %",
            "" if window == "never" else mean_of(gaps, "gap", "+.2f", 100),
            f"{fmean(row['training_loss'] for row in own):.3f}",
        ]


def time_budget(name: str, head: Cells) -> Iterator[Cells]:
    assert head[1:] == ["method", "rate", "steps", "pruned", "training loss", "test accuracy", "over shuffle"]
    for budget, of_budget in by(results(name), "budget").items():
        methods = by(of_budget, "method")
        for method, own in methods.items():
            pairs = zip(own, methods["shuffle"], strict=True)
            gaps = [{"gap": row["accuracy"] - shuffled["accuracy"]} for row, shuffled in pairs]
            yield [
                f"{100 * budget:.0f} %",
                method.replace("time_budget", "`time_budget`"),
                f"{own[0]['learning_rate']:g}",
                f"{fmean(row['steps'] for row in own):.0f}",
                "" if method == "shuffle" else f"{100 * fmean(row['pruned'] for row in own):.0f} %",
                f"{fmean(row['training_loss'] for row in own):.3f}",
                f"{mean_of(own, 'accuracy', '.2f', 100)} %",
                "" if method == "shuffle" else mean_of(gaps, "gap", "+.2f", 100),
            ]


def gradient_variance(head: Cells) -> Iterator[Cells]:
    """`head` names the estimators. A cell has the ratio without duplicates, and that with them."""
    problems: dict[str, dict[str, list[str]]] = {}
    for figure, ratio in variance_ratios(results("gradient_variance")).items():
        problem, estimator = re.split(r"_r\d+_", figure)
        problems.setdefault(problem, {}).setdefault(name_of(estimator), []).append(f"{ratio:.2f}")
    for problem, of_estimators in problems.items():
        assert sorted(head[1:]) == sorted(of_estimators)
        yield [name_of(problem), *(", ".join(of_estimators[estimator]) for estimator in head[1:])]


TABLES: list[tuple[str, int, Callable[[Cells], Iterator[Cells]]]] = [
    ("| method | R@1 / 5 / 10, left to right |", 0, retrieval),
    ("| trained by |", 0, partial(robust, "robust", "synthetic, d/n = 10")),
    ("| trained by |", 1, partial(robust, "robust", "pairs of digits")),
    ("| trained by |", 2, partial(robust, "robust_mnist", "pairs of mnist")),
    ("| policy | steps |", 0, sampling),
    ("| epochs |", 0, ranks),
    ("| after 3 epochs |", 0, ordering),
    ("| after 10 epochs |", 0, ordering),
    ("| method | error |", 0, partial(cascading_sum, "cascading_sum")),
    ("| method | error |", 1, partial(cascading_sum, "cascading_sum_cifar10", more="cascading_sum_cifar10_clusters")),
    ("| optimiser |", 0, multiplicative),
    ("| method | 20:1000 |", 0, partial(data_weights, "data_weights")),
    ("| method | 20:1000 |", 1, partial(data_weights, "data_weights_60_epochs")),
    ("| method | 20:1000 |", 2, partial(data_weights, "data_weights_mnist")),
    ("| hard examples |", 0, critical_period),
    ("| budget |", 0, partial(time_budget, "time_budget")),
    ("| budget |", 1, partial(time_budget, "time_budget_mnist")),
    ("| | GC |", 0, gradient_variance),
]
"""how the header row begins, which of the tables that begin like this, and what renders its rows"""


@pytest.mark.parametrize(("header", "number", "render"), TABLES)
def test_a_table_has_the_rows_of_its_results(
    header: str, number: int, render: Callable[[Cells], Iterator[Cells]]
) -> None:
    head, *rows = table_below(header, number)
    assert sorted(rows) == sorted(render(head))


def test_every_measured_table_is_rendered() -> None:
    measured = [table for table in document_tables() if table[0][0] not in OF_WORDS]
    assert sorted(measured) == sorted(table_below(header, number) for header, number, _ in TABLES)
