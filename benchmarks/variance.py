"""Var[policy's batch gradient] / Var[i.i.d. batch gradient] at frozen parameters, from exact gradients.

    python -m benchmarks.variance --json benchmarks/results/variance.json --plot docs/variance.png

Partitions come from Khatri-Rao sketches through the service's shards, rates from its policies; sketches are used
for nothing else. `ratio` is the closed form for these rates (Faghri et al., arXiv 2007.04532, section 3; draws with
replacement inside a stratum, B q_k rows from it whether integer or not). `ratio_planned` is measured on batches
of the service's planner, integer counts and all. SG-2B, a batch twice as large, has 0.5 by definition.

Shapes: n examples, d sketch length, k clusters, b batch size, s simulated batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import Progress

from benchmarks.common import write_result
from benchmarks.problems import Gradients, Perceptron, RandomFeatures, images
from sampler_service.clustering import recluster
from sampler_service.planning.draws import DrawPlanner
from sampler_service.policies import make_policy
from sampler_service.shards import LocalShards
from sampler_service.types import Float32, Float64, Int32, ReportBlock, StratifiedDraw, TableView, WeightedDraw

DIM = 64
SEEDS = 3
SIMULATED_BATCHES = 2000
ALMOST_ZERO = 1e-9
"""alpha of the policies that refuse 0"""


@dataclass(frozen=True)
class Contender:
    """A policy with the partition that belongs to it."""

    label: str
    policy: str
    options: dict[str, Any]
    partition: str = ""


def _contenders() -> list[Contender]:
    found = [Contender("k-means + proportional", "gradient_clustering", {"alpha": 1.0}, "kmeans")]
    for alpha in (0.0, 0.25, 0.5):
        sharp = max(alpha, ALMOST_ZERO)
        equal, neyman = {"alpha": alpha, "allocation": "equal"}, {"alpha": sharp, "allocation": "neyman"}
        found += [
            Contender("Hartigan + equal", "gradient_clustering", equal, "hartigan"),
            Contender("k-means + Neyman", "gradient_clustering", neyman, "kmeans"),
            Contender("Hartigan + Neyman", "gradient_clustering", neyman, "hartigan"),
            Contender("exact-norm importance", "importance", {"alpha": sharp, "gate": 1.0}),
        ]
    found.append(Contender("k-means + equal (mismatched)", "gradient_clustering", {"alpha": 0.0}, "kmeans"))
    return found


def table_of(row_nd: Float32, norm_n: Float32, num_clusters: int, method: str, seed: int) -> TableView:
    """Report every example once and cluster the sketches, as a run does."""
    shards = LocalShards(len(row_nd), row_nd.shape[1], dtype="float16" if row_nd.shape[1] == DIM else "float32")
    ids, losses = np.arange(len(row_nd)), np.zeros(len(row_nd), np.float32)
    shards.update(ReportBlock(example_ids=ids, losses=losses, norms=norm_n, sketches=row_nd, step=0))
    partition = recluster(shards, num_clusters=num_clusters, method=method, seed=seed, warm=False)
    columns = shards.columns()
    return TableView(
        loss_n=columns.loss_n,
        norm_n=columns.norm_n,
        step_n=columns.step_n,
        cluster_n=partition.cluster_n,
        cluster_sse_k=partition.sse_k,
    )


def exact_ratio(gram_nn: Float64, rates: StratifiedDraw | WeightedDraw) -> float:
    """Closed form of Var[policy] / Var[i.i.d.] from the Gram matrix of the exact gradients."""
    square_n, mean_square = np.diag(gram_nn), float(gram_nn.mean())
    iid = float(square_n.mean()) - mean_square
    if isinstance(rates, WeightedDraw):
        n = len(square_n)
        return (float((square_n / (n**2 * rates.probability_n)).sum()) - mean_square) / iid
    share_k, variance_k = _strata(gram_nn, rates.stratum_n, len(rates.rate_k))
    drawn_k = share_k > 0
    return float((share_k[drawn_k] ** 2 / rates.rate_k[drawn_k]) @ variance_k[drawn_k]) / iid


def planned_ratio(gram_nn: Float64, rates: StratifiedDraw | WeightedDraw, batch: int, seed: int) -> float:
    """The same, measured on batches of the real planner: E ||sum_i w_i g_i / b - gbar||^2 over Var[i.i.d.]."""
    n = len(gram_nn)
    iid = (float(np.diag(gram_nn).mean()) - float(gram_nn.mean())) / batch
    planner = DrawPlanner(n, seed=seed)
    rows = planner.block(rates, epoch=0, position=0, num_batches=SIMULATED_BATCHES, size=batch)
    away_sn = np.full((SIMULATED_BATCHES, n), -1.0 / n)
    batch_m = np.repeat(np.arange(SIMULATED_BATCHES), batch)
    np.add.at(away_sn, (batch_m, rows.example_ids), rows.weights / batch)
    return float(np.einsum("sn,sn->s", away_sn @ gram_nn, away_sn).mean()) / iid


def _strata(gram_nn: Float64, stratum_n: Int32, num_strata: int) -> tuple[Float64, Float64]:
    """N_k / N and the trace variance V_k of every stratum, from the Gram matrix."""
    size_k = np.bincount(stratum_n, minlength=num_strata)
    variance_k = np.zeros(num_strata)
    for k in np.flatnonzero(size_k):
        block = gram_nn[np.ix_(stratum_n == k, stratum_n == k)]
        variance_k[k] = max(float(np.diag(block).mean()) - float(block.mean()), 0.0)
    return size_k / len(stratum_n), variance_k
