"""Which optimiser, penalty or architecture is robust to which attack: linear classifiers of separable data.

    python -m trainer_examples.robust                         # the paper's synthetic family, and pairs of digits
    python -m trainer_examples.robust --data path/to/mnist --json benchmarks/results/robust.json

Many classifiers are right on all training examples; how they are trained decides which of them comes out. Each of nine
ways is measured by the largest perturbations that change no answer, in four norms, as a share of the best that there is
(which a convex solver finds: `pip install '.[robust]'`), and then attacked at 0.95 and at 1.05 times that best. At the
end the same for stochastic gradient descent on the batches that sampling policies choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from sampler_client.robust.margins import adversarial_risk, margin
from trainer_examples import robust_sampling, separators
from trainer_examples.data import load
from trainer_examples.results import new_table, spread, write_result
from trainer_examples.separators import ATTACKS, THEORY, Problem

RATIOS = (1, 2, 4, 10)
"""d / n of the synthetic family, d = 100"""
PAIRS = ((0, 1), (2, 7), (3, 8))
PAIR_EXAMPLES = 200
PLAIN_FACTORS = (0.25, 1, 4, 16, 64)
"""of the learning rate of steps that are not divided by the loss; the best is shown"""
SAMPLING_FACTORS = (0.03, 0.1, 0.3, 1)
BELOW, ABOVE = 0.95, 1.05
"""sizes of the attacks, of the best margin"""
NOTES = [
    "Margins are shares of the largest that there is; risk_below and risk_above are training errors under attacks of "
    "0.95 and 1.05 times it, unseen_risk errors on test images under attacks of half of it.",
    "undivided: the plain logistic loss. It and sampling have the best rate of a grid, by the mean margin itself.",
]

Row = dict[str, Any]

console = Console()


def main(
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    seeds: Annotated[int, typer.Option(help="draws of the synthetic family, and of the images of each pair")] = 3,
    steps: Annotated[
        int, typer.Option(help="of each training; proximal steps, dearer and faster, are a fifth")
    ] = 3_000,
    json: Annotated[Path | None, typer.Option(help="where to write the figures")] = None,
) -> list[Row]:
    """Train, measure, print; returns a row for each training."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for ratio in RATIOS:
        problems = [separators.synthetic(ratio, seed) for seed in range(seeds)]
        rows += compare(f"synthetic, d/n = {ratio}", problems, steps)
    drawn = [load(data, seed=seed) for seed in range(seeds)]
    problems = [separators.pair(images, pair, examples=PAIR_EXAMPLES) for images in drawn for pair in PAIRS]
    rows += compare(f"pairs of {drawn[0].name}", problems, steps)

    tenth = [separators.synthetic(10, seed) for seed in range(seeds)]
    slow = list(undivided(tenth, steps))
    half = [separators.synthetic(2, seed) for seed in range(seeds)]
    sampled = list(sampling(half, steps))
    show_limits("steps not divided by the loss, d/n = 10", slow)
    show_limits("batches by policy, d/n = 2", sampled)

    write_result(json, name="robust", rows=rows + slow + sampled, headline=headline(rows, slow, sampled), notes=NOTES)
    return rows + slow + sampled


def compare(family: str, problems: list[Problem], steps: int) -> list[Row]:
    """Train in every way on every problem, and show the means."""
    rows = [
        {"family": family, "instance": i, "problem": problem.name} | measured(problem, method, weight)
        for i, problem in enumerate(problems)
        for method, weight in trained(problem, steps, seed=i)
    ]
    show(family, rows)
    return rows


def trained(problem: Problem, steps: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """The weight that each method finds."""
    for name in separators.OPTIMISERS:
        yield name, separators.descend(problem, name, steps=steps)
    for name in separators.NETS:
        yield name, separators.descend_through_layers(problem, name, steps=steps, seed=seed)
    for name in separators.PENALTIES:
        yield name, separators.regularise(problem, name, steps=max(1, steps // 5))


def measured(problem: Problem, method: str, weight: Tensor) -> Row:
    """Margins as shares of the best; errors on the training and on unseen examples, attacked and not."""
    row: Row = {"method": method, "theory": THEORY[method]}
    for attack in ATTACKS:
        best = problem.best[attack]
        row[f"margin_{attack}"] = margin(weight, problem.x, problem.y, attack) / best
        sizes = torch.tensor([BELOW * best, ABOVE * best], dtype=torch.float64)
        below, above = adversarial_risk(weight, problem.x, problem.y, attack, sizes).tolist()
        row |= {f"risk_below_{attack}": below, f"risk_above_{attack}": above}
        if problem.unseen is not None:
            half = torch.tensor([0.0, best / 2], dtype=torch.float64)
            row["unseen_error"], row[f"unseen_risk_{attack}"] = adversarial_risk(
                weight, *problem.unseen, attack, half
            ).tolist()
    return row


def undivided(problems: list[Problem], steps: int) -> Iterator[Row]:
    """The same optimisers on the plain logistic loss."""
    for name, (attack, _) in separators.OPTIMISERS.items():

        def train(problem: Problem, factor: float, _: int, name: str = name) -> Tensor:
            return separators.descend_plainly(problem, name, steps=steps, factor=factor)

        yield {"family": "undivided", "method": name, "steps": steps} | best_of(problems, PLAIN_FACTORS, train, attack)


def sampling(problems: list[Problem], steps: int) -> Iterator[Row]:
    """Stochastic gradient descent under each policy: on the way, and at the end."""
    for name, taken in product(robust_sampling.POLICIES, (steps // 20, steps)):

        def train(problem: Problem, factor: float, seed: int, name: str = name, taken: int = taken) -> Tensor:
            x, y = problem.x.numpy(), problem.y.numpy()
            epochs = max(1, taken * robust_sampling.BATCH_SIZE // len(x))
            return torch.from_numpy(robust_sampling.descend(x, y, name, epochs=epochs, factor=factor, seed=seed))

        yield {"family": "sampling", "method": name, "steps": taken} | best_of(problems, SAMPLING_FACTORS, train, "l2")


def best_of(
    problems: list[Problem], factors: tuple[float, ...], train: Callable[[Problem, float, int], Tensor], attack: Any
) -> Row:
    """At the factor of the largest mean margin: margins, as shares of the best, and cosines to the l2 direction."""
    results = []
    for factor in factors:
        weights = [train(problem, factor, seed) for seed, problem in enumerate(problems)]
        pairs = list(zip(weights, problems, strict=True))
        margins = [margin(w, p.x, p.y, attack) / p.best[attack] for w, p in pairs]
        cosines = [F.cosine_similarity(w, p.direction, dim=0).item() for w, p in pairs]
        results.append({"factor": factor, "margins": margins, "cosines": cosines})
    return max(results, key=lambda result: np.mean(result["margins"]))


def show(family: str, rows: list[Row]) -> None:
    """A row per method, a column per attack, means over the problems."""
    table = new_table(f"{family}: share of the largest margin, and errors under attacks of {BELOW} of it", "", *ATTACKS)
    most = {attack: max(mean(rows, f"margin_{attack}", method) for method in THEORY) for attack in ATTACKS}
    for method, theory in THEORY.items():
        cells = []
        for attack in ATTACKS:
            share, wrong = mean(rows, f"margin_{attack}", method), mean(rows, f"risk_below_{attack}", method)
            text = f"{share:.3f} {wrong:4.0%}"
            text = f"[bold]{text}[/bold]" if share == most[attack] else text
            cells.append(f"[underline]{text}[/underline]" if theory == attack else text)
        table.add_row(method, *cells)
    table.caption = "bold: the largest; underlined: where the theory says that it tends to 1 and 0 %"
    console.print(table)


def show_limits(title: str, rows: list[Row]) -> None:
    table = new_table(title, "", "steps", "margin", "cosine to l2's best", "rate")
    for row in rows:
        margins, cosines = ("{:.4f} ± {:.4f}".format(*spread(row[key])) for key in ("margins", "cosines"))
        table.add_row(row["method"], f"{row['steps']:,}", margins, cosines, f"{row['factor']:g}")
    console.print(table)


def mean(rows: list[Row], figure: str, method: str) -> float:
    return float(np.mean([row[figure] for row in rows if row["method"] == method]))


def headline(rows: list[Row], slow: list[Row], sampled: list[Row]) -> dict[str, float]:
    """Margins of methods against their own attacks, of the synthetic family at d / n = 10 and of the pairs of images;
    what undivided steps and sampling come to."""
    short = {
        "gradient descent": "gd", "coordinate descent": "cd", "sign gradient descent": "signgd",
        "convolutional net": "convolutional",
    }  # fmt: skip
    families = {
        "margin": [row for row in rows if row["family"] == "synthetic, d/n = 10"],
        "margin_of_pairs": [row for row in rows if row["family"].startswith("pairs of ")],
    }
    figures = {
        f"{figure}_{name}": mean(family, f"margin_{THEORY[method]}", method)
        for figure, family in families.items()
        for method, name in short.items()
    }
    figures |= {f"undivided_{short[row['method']]}": float(np.mean(row["margins"])) for row in slow}
    longest = max(row["steps"] for row in sampled)
    for row in sampled:
        if row["steps"] == longest:
            name = row["method"].replace(", ", "_").replace(" ", "_")
            figures |= {f"sampling_{name}": float(np.mean(row["margins"]))}
            figures |= {f"sampling_{name}_cosine": float(np.mean(row["cosines"]))}
    return figures


if __name__ == "__main__":
    typer.run(main)
