"""Does a sampling policy change the separator that gradient descent tends to? It does not; see the table.

Stochastic gradient descent on the log of the exponential loss, with the batches that the service's policies and planner
choose, in this process. At each epoch's start the policies see the gradients of all examples, as scorers beside the
trainer would report them. Unbiased weights leave the expected step alone, so the limit is that of shuffled batches; and
even without the weights it is, for which examples are drawn more often is forgotten as the loss falls (Byrd and Lipton,
arXiv 1812.03372): all that matters is that every example is drawn.

Shapes: n examples, d features, b a batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sampler_service.clustering import recluster
from sampler_service.planning.plan import Planner
from sampler_service.policies import choose, make_policy
from sampler_service.shards import LocalShards
from sampler_service.types import NO_CLUSTER, ReportBlock, TableView

POLICIES: dict[str, tuple[str, dict[str, float | str], bool]] = {
    "shuffle": ("shuffle", {}, True),
    "importance": ("importance", {"gate": 1.0}, True),
    "clusters": ("gradient_clustering", {}, True),
    "importance, no weights": ("importance", {"gate": 1.0}, False),
}
"""name: the service's policy, its options (a gate of 1: it always acts), and whether its weights are used"""

BATCH_SIZE = 10
CLUSTERS = 10
CLUSTER_EVERY = 20
"""epochs"""

Floats = NDArray[np.float64]


def descend(x: Floats, y: Floats, name: str, *, epochs: int, factor: float, seed: int) -> Floats:
    """(d,) weight after that many epochs, at a factor times the step size of full batches."""
    policy_name, options, weighted = POLICIES[name]
    policy = make_policy(policy_name, options)
    planner = Planner(len(x), seed=seed, drop_last=False)
    table = Table(*x.shape, clustered="cluster" in policy.needs, seed=seed)
    weight_d = np.zeros(x.shape[1])
    lr = factor / np.linalg.norm(x, axis=1).max() ** 2
    for epoch in range(epochs):
        view = table.seen(gradients(x, y, weight_d), epoch, steps=len(x) // BATCH_SIZE)
        rates, _ = choose(policy, view, min_coverage=None, max_age=None, progress=epoch / epochs)
        steps = planner.start_epoch(epoch, rates, batch_size=BATCH_SIZE, world=1)
        for (rows,) in planner.plan(0, steps, rates):
            gradient_bd = gradients(x, y, weight_d)[rows.example_ids]
            factor_b = rows.weights if weighted else np.ones(len(rows))
            weight_d = weight_d - lr * (factor_b @ gradient_bd) / len(rows)
    return weight_d


def gradients(x: Floats, y: Floats, weight_d: Floats) -> Floats:
    """(n, d) of which the mean is the gradient of log mean exp(-y <w, x>)."""
    score_n = y * (x @ weight_d)
    share_n = np.exp(score_n.min() - score_n)
    share_n /= share_n.mean()
    return -(share_n * y)[:, None] * x


class Table:
    """What the service knows of the examples."""

    def __init__(self, num_examples: int, dim: int, *, clustered: bool, seed: int) -> None:
        self.shards = LocalShards(num_examples, dim) if clustered else None
        self.seed = seed
        self.cluster_n, self.sse_k = np.full(num_examples, NO_CLUSTER, np.int32), np.zeros(0)

    def seen(self, gradient_nd: Floats, epoch: int, *, steps: int) -> TableView:
        """After a report of all examples' gradients."""
        step = epoch * steps
        norm_n = np.linalg.norm(gradient_nd, axis=1).astype(np.float32)
        if self.shards is not None and epoch % CLUSTER_EVERY == 0:
            self._cluster(gradient_nd, norm_n, step)
        return TableView(
            loss_n=norm_n,
            norm_n=norm_n,
            step_n=np.full(len(norm_n), step),
            cluster_n=self.cluster_n,
            cluster_sse_k=self.sse_k,
            epoch_steps=steps,
            step=step,
        )

    def _cluster(self, gradient_nd: Floats, norm_n: NDArray[np.float32], step: int) -> None:
        assert self.shards is not None
        self.shards.update(
            ReportBlock(
                example_ids=np.arange(len(norm_n)),
                losses=np.full(len(norm_n), np.nan, np.float32),
                norms=norm_n,
                sketches=gradient_nd.astype(np.float32),
                step=step,
            )
        )
        partition = recluster(self.shards, num_clusters=CLUSTERS, seed=self.seed)
        self.cluster_n, self.sse_k = partition.cluster_n, partition.sse_k
