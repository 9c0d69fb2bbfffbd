"""Suboptimality of logistic regression after equal steps: gradient_clustering against shuffled epochs.

    python -m benchmarks.convex --json benchmarks/results/convex.json

N 2000, d 50, ridge 1e-3, B = K = 10, 2000 steps at a constant learning rate; f - f* averaged over the last tenth of
the steps, f* by Newton. Every sampler has the best learning rate of the same grid, chosen on the mean over seeds. The
samplers are the service's policies, planner, shards and clustering, in process: a run begins with a shuffled epoch and
reports a 64-number sketch of every gradient it takes; clusters are refined when `refresh_due` says so. About ten
minutes on one core.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track

from sampler_service.clustering import recluster, refresh_due
from sampler_service.planning.plan import Planner
from sampler_service.policies import choose, make_policy
from sampler_service.shards import LocalShards
from sampler_service.types import NO_CLUSTER, Float64, Int64, ReportBlock, Rows, TableView
from trainer_examples.results import write_result

# Shapes: n examples, f inputs, d sketch length, b batch size, r rows of a block.

NUM, INPUTS, RIDGE = 2000, 50, 1e-3
BATCH, CLUSTERS, STEPS, DIM = 10, 10, 2000, 64
BLOCK = 10
"""steps planned at once, and reported at once: how far the plan is ahead of the reports"""
SEEDS = range(16)
PROBLEMS = {
    "unique": (0.0, (0.01, 0.014, 0.02, 0.028, 0.04)),
    "dup50": (0.5, (0.02, 0.028, 0.04, 0.057, 0.08)),
    "dup90": (0.9, (0.113, 0.16, 0.226, 0.32, 0.45, 0.64)),
}
"""share of copies, and the learning rates of all samplers: the best of each sampler lies inside"""


@dataclass(frozen=True)
class Sampler:
    label: str
    policy: str
    options: dict[str, float | str]
    batch: int = BATCH


SHUFFLE = Sampler("shuffled epochs", "shuffle", {})
DEFAULT = Sampler("gradient_clustering, alpha .5", "gradient_clustering", {"alpha": 0.5})
SAMPLERS = (
    SHUFFLE,
    DEFAULT,
    Sampler("gradient_clustering, alpha .25", "gradient_clustering", {"alpha": 0.25}),
    Sampler("k-means + Neyman, alpha .5", "gradient_clustering", {"alpha": 0.5, "allocation": "neyman"}),
    Sampler("importance, alpha .5", "importance", {"alpha": 0.5}),
    Sampler("shuffled epochs, B 20", "shuffle", {}, batch=20),
)


class Logistic:
    """Ridge-regularised logistic regression; the last `redundancy` of the examples are copies of the first twenty."""

    def __init__(self, redundancy: float, seed: int) -> None:
        rng = np.random.default_rng([seed, 3])
        input_nf = rng.standard_normal((NUM, INPUTS))
        chance_n = 1 / (1 + np.exp(-input_nf @ rng.standard_normal(INPUTS) / np.sqrt(INPUTS) * 2))
        sign_n = np.where(rng.random(NUM) < chance_n, 1.0, -1.0)
        copies = round(redundancy * NUM)
        source_n = np.arange(NUM)
        source_n[NUM - copies :] = np.arange(copies) % 20
        source_n = source_n[rng.permutation(NUM)]
        self.input_nf, self.sign_n = input_nf[source_n], sign_n[source_n]
        self.sketch_nd = self._projection(rng)
        self.least = self.loss(self._newton())

    def loss(self, weight_f: Float64) -> float:
        margin_n = self.sign_n * (self.input_nf @ weight_f)
        return float(np.logaddexp(0, -margin_n).mean() + RIDGE / 2 * weight_f @ weight_f)

    def slope(self, weight_f: Float64, index_b: Int64) -> Float64:
        """Derivative of each example's loss by its logit, (b,); times the input it is the gradient."""
        sign_b = self.sign_n[index_b]
        return -sign_b / (1 + np.exp(sign_b * (self.input_nf[index_b] @ weight_f)))

    def _projection(self, rng: np.random.Generator) -> Float64:
        """(n, d) Khatri-Rao sketch of every example for slope 1."""
        left_nd = self.input_nf @ rng.standard_normal((INPUTS, DIM))
        return left_nd * rng.standard_normal(DIM) / np.sqrt(DIM)

    def _newton(self) -> Float64:
        weight_f, everything = np.zeros(INPUTS), np.arange(NUM)
        for _ in range(50):
            slope_n = self.slope(weight_f, everything)
            gradient_f = self.input_nf.T @ slope_n / NUM + RIDGE * weight_f
            curvature_n = np.abs(slope_n) * (1 - np.abs(slope_n))
            hessian_ff = (self.input_nf.T * curvature_n) @ self.input_nf / NUM + RIDGE * np.eye(INPUTS)
            weight_f = weight_f - np.linalg.solve(hessian_ff, gradient_f)
            if gradient_f @ gradient_f < 1e-24:
                return weight_f
        raise RuntimeError("Newton's method did not reach a gradient of 1e-12 in 50 steps")


class Run:
    """One trainer and the service's stages around it, without a wire."""

    def __init__(self, problem: Logistic, sampler: Sampler, seed: int) -> None:
        self.problem, self.sampler, self.seed = problem, sampler, seed
        self.policy = make_policy(sampler.policy, sampler.options)
        self.shards = LocalShards(NUM, DIM)
        self.planner = Planner(NUM, seed=seed, drop_last=False)
        self.weight_f = np.zeros(INPUTS)
        self.cluster_n, self.sse_k = np.full(NUM, NO_CLUSTER, np.int32), np.zeros(0)
        self.fresh_rows = 0

    def suboptimality(self, rate: float) -> float:
        """Mean of f - f* at the ends of the blocks in the last tenth of the steps."""
        excess, step = [], 0
        per_epoch = NUM // self.sampler.batch
        while step < STEPS:
            rates, _ = choose(self.policy, self.view(step), min_coverage=None, max_age=None, progress=step / STEPS)
            if step % per_epoch == 0:
                self.planner.start_epoch(step // per_epoch, rates, batch_size=self.sampler.batch, world=1)
            block = self.planner.plan(step % per_epoch, BLOCK, rates)
            self.report([self.train(rows, rate) for (rows,) in block], step + BLOCK - 1)
            step += BLOCK
            if step > 0.9 * STEPS:
                excess.append(self.problem.loss(self.weight_f) - self.problem.least)
            self.refresh()
        return float(np.mean(excess))

    def train(self, rows: Rows, rate: float) -> tuple[Int64, Float64]:
        slope_b = self.problem.slope(self.weight_f, rows.example_ids)
        gradient_f = self.problem.input_nf[rows.example_ids].T @ (rows.weights * slope_b) / len(rows)
        self.weight_f = self.weight_f - rate * (gradient_f + RIDGE * self.weight_f)
        return rows.example_ids, slope_b

    def report(self, taken: list[tuple[Int64, Float64]], step: int) -> None:
        """Report a block of steps at once, the last gradient of each example."""
        if not self.policy.needs:
            return
        id_r = np.concatenate([ids for ids, _ in taken])[::-1]
        slope_r = np.concatenate([slopes for _, slopes in taken])[::-1]
        id_r, last_r = np.unique(id_r, return_index=True)
        slope_r = slope_r[last_r]
        norm_r = np.abs(slope_r) * np.linalg.norm(self.problem.input_nf[id_r], axis=1)
        block = ReportBlock(
            example_ids=id_r,
            losses=np.full(len(id_r), np.nan, np.float32),
            norms=norm_r.astype(np.float32),
            sketches=(slope_r[:, None] * self.problem.sketch_nd[id_r]).astype(np.float32),
            step=step,
        )
        self.shards.update(block)
        self.fresh_rows += len(id_r)

    def refresh(self) -> None:
        first = not len(self.sse_k)
        coverage = self.policy.min_coverage if first else 1.0  # as a run of the service does by default
        due = refresh_due(fresh_rows=self.fresh_rows, num_examples=NUM, coverage=coverage)
        if due is None or "cluster" not in self.policy.needs:
            return
        method = "kmeans" if getattr(self.policy, "allocation", "equal") == "neyman" else "hartigan"
        partition = recluster(self.shards, num_clusters=CLUSTERS, method=method, seed=self.seed)
        self.cluster_n, self.sse_k, self.fresh_rows = partition.cluster_n, partition.sse_k, 0

    def view(self, step: int) -> TableView:
        columns = self.shards.columns()
        return TableView(
            loss_n=columns.loss_n,
            norm_n=columns.norm_n,
            step_n=columns.step_n,
            cluster_n=self.cluster_n,
            cluster_sse_k=self.sse_k,
            epoch_steps=NUM // self.sampler.batch,
            step=step,
        )


def measure(problem: str, excess: dict[tuple[str, str, float], list[float]]) -> None:
    """Fill `excess` with one suboptimality per seed, for every sampler and learning rate."""
    redundancy, rates = PROBLEMS[problem]
    for seed in track(SEEDS, description=problem):
        logistic = Logistic(redundancy, seed)
        for sampler in SAMPLERS:
            for rate in rates:
                excess[problem, sampler.label, rate].append(Run(logistic, sampler, seed).suboptimality(rate))


def best_of(problem: str, sampler: Sampler, excess: dict[tuple[str, str, float], list[float]]) -> tuple[float, list]:
    """The learning rate with the least mean suboptimality, and what each seed reached with it."""
    rates = PROBLEMS[problem][1]
    rate = min(rates, key=lambda tried: np.mean(excess[problem, sampler.label, tried]))
    return rate, excess[problem, sampler.label, rate]


def rows_of(excess: dict[tuple[str, str, float], list[float]]) -> list[dict[str, Any]]:
    rows = []
    for problem in PROBLEMS:
        baseline = best_of(problem, SHUFFLE, excess)[1]
        for sampler in SAMPLERS:
            rate, reached = best_of(problem, sampler, excess)
            ratio = float(np.mean(baseline) / np.mean(reached))
            ratio_s = np.array(baseline) / np.array(reached)
            rows.append(
                {
                    "problem": problem,
                    "sampler": sampler.label,
                    "best_learning_rate": rate,
                    "at_the_edge_of_the_grid": rate in (PROBLEMS[problem][1][0], PROBLEMS[problem][1][-1]),
                    "suboptimality": float(np.mean(reached)),
                    "better_than_shuffled": ratio,
                    "better_standard_error": ratio * math.hypot(_relative_error(baseline), _relative_error(reached)),
                    "suboptimality_standard_error": float(np.mean(reached)) * _relative_error(reached),
                    "better_least_seed": float(ratio_s.min()),
                    "better_most_seed": float(ratio_s.max()),
                }
            )
    return rows


def _relative_error(value_s: list[float]) -> float:
    """Standard error of the mean over seeds, as a share of the mean."""
    return float(np.std(value_s, ddof=1) / np.sqrt(len(value_s)) / np.mean(value_s))


def main(json: Annotated[Path | None, typer.Option(help="where to write the rows and the headline")] = None) -> None:
    """Measure, print the headline, write what was asked for."""
    excess: dict[tuple[str, str, float], list[float]] = defaultdict(list)
    for problem in PROBLEMS:
        measure(problem, excess)
    rows = rows_of(excess)
    default = [row for row in rows if row["sampler"] == DEFAULT.label]
    headline = {row["problem"]: row["better_than_shuffled"] for row in default}
    headline |= {f"{row['problem']}_standard_error": row["better_standard_error"] for row in default}
    write_result(
        json,
        name="convex",
        rows=rows,
        headline=headline,
        notes=[
            "Headline: suboptimality of shuffled epochs over that of gradient_clustering (alpha .5) at equal steps.",
            f"{len(SEEDS)} seeds; the learning rate is the best of each sampler's mean on one grid per problem.",
        ],
    )


if __name__ == "__main__":
    typer.run(main)
