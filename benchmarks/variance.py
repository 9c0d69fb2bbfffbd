"""Var[policy's batch gradient] / Var[i.i.d. batch gradient] at frozen parameters, from exact gradients.

    python -m benchmarks.variance --json benchmarks/results/variance.json --plot docs/variance.png

Partitions come from Khatri-Rao sketches through the service's shards, and rates from its policies; the sketches
serve for nothing else. `ratio` is the closed form for those rates (Faghri et al., arXiv 2007.04532), with B q_k rows
of a stratum whether integer or not; `ratio_planned` is measured on batches of the service's planner, integer counts
and all. A batch twice as large
(SG-2B) has 0.5 by definition. About five minutes on one core.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from benchmarks.problems import Gradients, Perceptron, RandomFeatures, images
from benchmarks.ratios import Contender, contenders, exact_ratio, iid_variance, planned_ratio, table_of
from sampler_service.types import Float64, TableView
from trainer_examples.results import write_result

DIM = 64
SEEDS = range(5)
REDUNDANCIES = (0.0, 0.5, 0.9)
AGES = (0, 10, 100, 300)
"""trainer steps since the partition was made"""
MNIST_STEPS = (100, 1000, 2400)
MNIST_IMAGES = 4096
TOP = 2.0
"""where bars of the plot are cut"""

GC = Contender("gradient_clustering", 0.0, "hartigan", "equal")
GC_ALPHA50 = Contender("gradient_clustering", 0.5, "hartigan", "equal")

Key = tuple[str, float, int, Contender]
"""problem, redundancy, age or training step, contender"""


class Ratios:
    """Measured ratios of every problem and contender, one entry per seed."""

    def __init__(self) -> None:
        self._closed: dict[Key, list[float]] = defaultdict(list)
        self._planned: dict[Key, list[float]] = defaultdict(list)

    def measure(
        self, where: tuple[str, float, int], gram_nn: Float64, tables: dict[str, TableView], batch: int, seed: int
    ) -> None:
        for contender in contenders():
            rates = contender.rates(tables)
            self._closed[*where, contender].append(exact_ratio(gram_nn, rates))
            self._planned[*where, contender].append(planned_ratio(gram_nn, rates, batch, seed))

    def mean(self, problem: str, redundancy: float, age: int, contender: Contender, *, planned: bool = False) -> float:
        values = (self._planned if planned else self._closed)[problem, redundancy, age, contender]
        return float(np.mean(values))

    def rows(self) -> Iterator[dict[str, Any]]:
        for key, closed in self._closed.items():
            problem, redundancy, age, contender = key
            yield {
                "problem": problem,
                "redundancy": redundancy,
                "steps": age,
                "policy": contender.policy,
                "partition": contender.partition,
                "allocation": contender.allocation,
                "alpha": contender.alpha,
                "ratio": float(np.mean(closed)),
                "ratio_least": min(closed),
                "ratio_most": max(closed),
                "ratio_planned": float(np.mean(self._planned[key])),
                "seeds": len(closed),
            }


def tables_of(gradients: Gradients, gram_nn: Float64, num_clusters: int, seed: int) -> dict[str, TableView]:
    """Both partitions of the same sketches, with the exact norms."""
    sketch_nd = gradients.sketch(DIM, seed)
    norm_n = np.sqrt(np.diag(gram_nn)).astype(np.float32)
    return {method: table_of(sketch_nd, norm_n, num_clusters, method, seed) for method in ("hartigan", "kmeans")}


def fresh(ratios: Ratios, seed: int) -> list[float]:
    """Random features, h/N = 1, lr .01, after 3000 steps. Returns the sketch's loss of variance reduction."""
    losses = []
    for redundancy in REDUNDANCIES:
        problem = RandomFeatures(1000, redundancy=redundancy, seed=seed)
        problem.train(3000, rate=0.01)
        gradients = problem.gradients()
        gram_nn = gradients.gram()
        tables = tables_of(gradients, gram_nn, 10, seed)
        ratios.measure(("random_features", redundancy, 0), gram_nn, tables, 10, seed)
        norm_n = tables["hartigan"].norm_n
        exact = {"hartigan": table_of(gradients.rows(), norm_n, 10, "hartigan", seed)}
        reduction = {
            name: 1 - exact_ratio(gram_nn, GC.rates(made)) for name, made in (("sketch", tables), ("exact", exact))
        }
        losses.append(1 - reduction["sketch"] / reduction["exact"])
    return losses


def stale(ratios: Ratios, seed: int) -> None:
    """Random features, h/N = .5, lr .1: the partition is made once, then SGD goes on without a report."""
    problem = RandomFeatures(2000, seed=seed)
    problem.train(3000, rate=0.1)
    gradients = problem.gradients()
    tables = tables_of(gradients, gradients.gram(), 10, seed)
    done = 0
    for age in AGES:
        problem.train(age - done, rate=0.1)
        done = age
        ratios.measure(("random_features_stale", 0.0, age), problem.gradients().gram(), tables, 10, seed)


def perceptron(ratios: Ratios, data: Path | None, advance: Any) -> tuple[str, list[dict[str, Any]]]:
    """An MLP at several points of its training; also the normalised variance of plain batches."""
    name, input_nf, label_n = images(data, MNIST_IMAGES)
    problem = Perceptron(input_nf, label_n, hidden=1024 if name == "mnist" else 256)
    done, rows = 0, []
    for steps in MNIST_STEPS:
        problem.train(steps - done, rate=0.02)
        done = steps
        gradients = problem.gradients()
        gram_nn = gradients.gram()
        ratios.measure((f"{name}_mlp", 0.0, steps), gram_nn, tables_of(gradients, gram_nn, 128, 0), 128, 0)
        variance = iid_variance(gram_nn) / 128
        normalised = variance / (variance + float(gram_nn.mean()))
        rows.append(
            {
                "problem": f"{name}_mlp",
                "steps": steps,
                "images": len(problem),
                "accuracy": problem.accuracy(),
                "normalised_variance_sgb": normalised,
            }
        )
        advance()
    return f"{name}_mlp", rows


def headline_of(ratios: Ratios, sketch_losses: list[float], mlp: str) -> dict[str, float]:
    found = {}
    for redundancy in REDUNDANCIES:
        label = f"gc_r{round(100 * redundancy)}"
        found[label] = ratios.mean("random_features", redundancy, 0, GC)
        found[f"{label}_alpha50"] = ratios.mean("random_features", redundancy, 0, GC_ALPHA50)
        found[f"{label}_alpha50_planned"] = ratios.mean("random_features", redundancy, 0, GC_ALPHA50, planned=True)
    late = MNIST_STEPS[-1]
    return found | {
        f"{mlp}_late": ratios.mean(mlp, 0.0, late, GC),
        f"{mlp}_late_alpha50_planned": ratios.mean(mlp, 0.0, late, GC_ALPHA50, planned=True),
        "sketch_loss_64": float(np.mean(sketch_losses)),
        "stale_300": ratios.mean("random_features_stale", 0.0, 300, GC_ALPHA50),
        "stale_300_planned": ratios.mean("random_features_stale", 0.0, 300, GC_ALPHA50, planned=True),
    }


def notes_of(ratios: Ratios, mlp: str) -> list[str]:
    """What the figures mean, with the comparison of both pairs written from the figures."""
    neyman = Contender("gradient_clustering", 0.5, "kmeans", "neyman")
    verdict = []
    for problem, age, what in (("random_features", 0, "fresh"), ("random_features_stale", 300, "300 steps old")):
        ours, theirs = (ratios.mean(problem, 0.0, age, pair, planned=True) for pair in (GC_ALPHA50, neyman))
        verdict.append(f"{what} {ours:.3f} against {theirs:.3f}")
    return [
        "Ratios are to an i.i.d. batch of the same size; SG-2B is 0.5. One shuffled batch has (N-B)/(N-1), 0.99.",
        "Random features have balanced labels and five seeds; all SGD is on i.i.d. batches.",
        f"{mlp}: one run on {MNIST_IMAGES} images or fewer, all gradients taken over those.",
        "Both pairs at alpha .5 as planned, Hartigan + equal against k-means + Neyman: " + ", ".join(verdict) + ".",
    ]


def draw_bars(path: Path, ratios: Ratios) -> None:
    """Fresh ratios by redundancy, and stale ones by age, as the planner draws them."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    bars = {
        "Hartigan + equal, alpha 0": GC,
        "Hartigan + equal, alpha .5 (default)": GC_ALPHA50,
        "k-means + Neyman, alpha .5": Contender("gradient_clustering", 0.5, "kmeans", "neyman"),
        "exact-norm importance, alpha .5": Contender("importance", 0.5),
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    panels = (
        ("random_features", [(r, 0) for r in REDUNDANCIES], [f"{r:.0%} duplicates" for r in REDUNDANCIES]),
        ("random_features_stale", [(0.0, age) for age in AGES], [f"{age} steps old" for age in AGES]),
    )
    for axis, (problem, places, names) in zip(axes, panels, strict=True):
        for number, (label, contender) in enumerate(bars.items()):
            x = np.arange(len(places)) + (number - 1.5) * 0.2
            heights = [ratios.mean(problem, *place, contender, planned=True) for place in places]
            axis.bar(x, np.minimum(heights, TOP), 0.19, label=label)
            for left, height in zip(x, heights, strict=True):
                if height > TOP:
                    axis.text(left, TOP, f"{height:.1f}", ha="center", va="bottom", fontsize=8)
        axis.axhline(1.0, color="0.3", linewidth=0.8, label="i.i.d. batch of B")
        axis.axhline(0.5, color="0.3", linewidth=0.8, linestyle=":", label="i.i.d. batch of 2 B")
        axis.set_xticks(range(len(places)), names)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set(title="fresh partition: N 1000, B = K = 10, lr .01", ylabel="variance / i.i.d. batch of B")
    axes[1].set(title="partition left alone, the worst case: N 2000, lr .1", ylim=(0, 1.05 * TOP))
    axes[1].legend(fontsize=8, frameon=False, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(
    json: Annotated[Path | None, typer.Option(help="where to write the rows and the headline")] = None,
    plot: Annotated[Path | None, typer.Option(help="where to write the bars, PNG")] = None,
    data: Annotated[Path, typer.Option(help="MNIST as Parquet; digits of scikit-learn where it is absent")] = Path(
        "data/mnist/train.parquet"
    ),
) -> None:
    """Measure, print the headline, write what was asked for."""
    ratios, sketch_losses = Ratios(), []
    with Progress() as progress:
        task = progress.add_task("variance", total=2 * len(SEEDS) + len(MNIST_STEPS))
        for seed in SEEDS:
            sketch_losses += fresh(ratios, seed)
            progress.advance(task)
            stale(ratios, seed)
            progress.advance(task)
        mlp, mlp_rows = perceptron(ratios, data, lambda: progress.advance(task))
    write_result(
        json,
        name="variance",
        rows=[*ratios.rows(), *mlp_rows],
        headline=headline_of(ratios, sketch_losses, mlp),
        notes=notes_of(ratios, mlp),
    )
    if plot is not None:
        draw_bars(plot, ratios)


if __name__ == "__main__":
    typer.run(main)
