"""Variance ratios of policies from exact gradients: the closed form, and the planner's batches measured.

Shapes: n examples, d sketch length, k clusters, b batch size, s simulated batches, m = s b rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sampler_service.clustering import recluster
from sampler_service.planning.draws import DrawPlanner
from sampler_service.policies import make_policy
from sampler_service.shards import LocalShards
from sampler_service.types import (
    Float32,
    Float64,
    Int32,
    ReportBlock,
    StratifiedDraw,
    Sweep,
    TableView,
    WeightedDraw,
)

SIMULATED_BATCHES = 2000

_ALMOST_ZERO = 1e-9  # alpha of the policies that refuse 0

Draw = StratifiedDraw | WeightedDraw


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy with the partition it is given."""

    policy: str
    alpha: float
    partition: str = ""
    """"hartigan", "kmeans", or "" for a policy that needs none."""
    allocation: str = ""
    """"equal" or "neyman"; proportional draws are alpha = 1."""

    def rates(self, tables: dict[str, TableView]) -> Draw:
        """Rates from the table with this contender's partition; any table will do when it needs none."""
        alpha = self.alpha if self.allocation == "equal" else max(self.alpha, _ALMOST_ZERO)
        options: dict[str, float | str] = {"alpha": alpha}
        if self.policy == "importance":
            options["gate"] = 1.0
        else:
            options["allocation"] = self.allocation
        table = tables.get(self.partition) or next(iter(tables.values()))
        rates = make_policy(self.policy, options).rates(table, progress=0.5)
        if isinstance(rates, Sweep):
            raise ValueError(f"{self} stood aside: there is nothing to measure")
        return rates


def contenders() -> list[Contender]:
    """Both pairs of the design, importance by exact norms, and a mismatched pair as a warning."""
    found = [Contender("gradient_clustering", 1.0, "kmeans", "equal")]
    for alpha in (0.0, 0.25, 0.5):
        found += [
            Contender("gradient_clustering", alpha, "hartigan", "equal"),
            Contender("gradient_clustering", alpha, "kmeans", "neyman"),
            Contender("importance", alpha),
        ]
    return [*found, Contender("gradient_clustering", 0.0, "kmeans", "equal")]


def table_of(row_nd: Float32, norm_n: Float32, num_clusters: int, method: str, seed: int) -> TableView:
    """Report every example once and cluster the sketches, as a run does (float16 up to 64 numbers)."""
    dtype = "float16" if row_nd.shape[1] <= 64 else "float32"
    shards = LocalShards(len(row_nd), row_nd.shape[1], dtype=dtype)
    ids, loss_n = np.arange(len(row_nd)), np.zeros(len(row_nd), np.float32)
    shards.update(ReportBlock(example_ids=ids, losses=loss_n, norms=norm_n, sketches=row_nd, step=0))
    partition = recluster(shards, num_clusters=num_clusters, method=method, seed=seed, warm=False)
    columns = shards.columns()
    return TableView(
        loss_n=columns.loss_n,
        norm_n=columns.norm_n,
        step_n=columns.step_n,
        cluster_n=partition.cluster_n,
        cluster_sse_k=partition.sse_k,
    )


def iid_variance(gram_nn: Float64) -> float:
    """Trace variance of one uniform draw."""
    return float(np.diag(gram_nn).mean()) - float(gram_nn.mean())


def exact_ratio(gram_nn: Float64, rates: Draw) -> float:
    """Var[policy] / Var[i.i.d.] in closed form, with B q_k rows of a stratum whether integer or not.

    Stratified draws have sum_k (N_k/N)^2 V_k / (B q_k), weighted ones (sum_i ||g_i||^2 / (N^2 p_i) -
    ||gbar||^2) / B, both with replacement.
    """
    square_n, mean_square = np.diag(gram_nn), float(gram_nn.mean())
    if isinstance(rates, WeightedDraw):
        second_moment = float((square_n / rates.probability_n).sum()) / len(square_n) ** 2
        return (second_moment - mean_square) / iid_variance(gram_nn)
    share_k, variance_k = _strata(gram_nn, rates.stratum_n, len(rates.rate_k))
    drawn_k = share_k > 0
    stratified = float((share_k[drawn_k] ** 2 / rates.rate_k[drawn_k]) @ variance_k[drawn_k])
    return stratified / iid_variance(gram_nn)


def planned_ratio(gram_nn: Float64, rates: Draw, batch: int, seed: int) -> float:
    """The same of the real planner: the mean of ||sum_i w_i g_i / b - gbar||^2 over simulated batches."""
    count = len(gram_nn)
    planner = DrawPlanner(count, seed=seed)
    rows = planner.block(rates, epoch=0, position=0, num_batches=SIMULATED_BATCHES, size=batch)
    away_sn = np.full((SIMULATED_BATCHES, count), -1.0 / count)
    batch_m = np.repeat(np.arange(SIMULATED_BATCHES), batch)
    np.add.at(away_sn, (batch_m, rows.example_ids), rows.weights / batch)
    square_s = np.einsum("sn,sn->s", away_sn @ gram_nn, away_sn)
    return float(square_s.mean()) / (iid_variance(gram_nn) / batch)


def _strata(gram_nn: Float64, stratum_n: Int32, num_strata: int) -> tuple[Float64, Float64]:
    """N_k / N and the trace variance V_k of every stratum."""
    size_k = np.bincount(stratum_n, minlength=num_strata)
    variance_k = np.zeros(num_strata)
    for k in np.flatnonzero(size_k):
        block = gram_nn[np.ix_(stratum_n == k, stratum_n == k)]
        variance_k[k] = max(iid_variance(block), 0.0)
    return size_k / len(stratum_n), variance_k
