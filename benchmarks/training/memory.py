"""Gradients remembered by clusters: two ways to take noise out of a batch's gradient that need no other batches.

Clusters are k-means of last-layer gradients, made anew each epoch by one pass over the set. The trainer keeps one
gradient c_k for each, an average that forgets. Sources: Yuan et al., "COVER: A Cluster-based Variance Reduced Method",
2019; "More Momentum Is All You Need", arXiv 2111.11828. Neither's code was to be had: what clusters
are of, how many there are and how fast a memory forgets is ours.

Per-example gradients are computed beside the loop's own, by vmap: seconds say nothing of a fair implementation.

Shapes: n examples, b batch, k clusters, q parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import faiss
import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from benchmarks.training.loop import Step, predict
from benchmarks.training.peers import Peer
from benchmarks.training.tasks import Task


class ControlVariates(Peer):
    """g = mean_i (g_i - c_k(i)) + sum_k p_k c_k, p_k = n_k / n: unbiased whatever c is, and with less noise the nearer
    the gradients of a cluster are to its c."""

    hyper = ("clusters", "decay")
    clusters = 64
    decay = 0.9
    """of a cluster's memory, at each batch that it has examples in"""

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task, seed)
        self._seed = seed
        self._cluster_n = np.zeros(len(self.train), np.int64)
        self._change_q = torch.empty(0)

    def open(self, model: nn.Module) -> None:
        parameters = list(model.parameters())
        ends = np.cumsum([parameter.numel() for parameter in parameters])
        self._memory_kq = torch.zeros(self.clusters, int(ends[-1]))
        self._known_k = torch.zeros(self.clusters, dtype=torch.bool)
        for parameter, end in zip(parameters, ends.tolist(), strict=True):
            part = slice(end - parameter.numel(), end)
            parameter.register_post_accumulate_grad_hook(partial(self._change, part))

    def steps(self, model: nn.Module) -> Iterator[Step]:
        per_epoch = -(-len(self.train) // self.batch_size)
        for taken, (rows, x, y) in zip(range(self.total), self.shuffled(self.batch_size), strict=False):
            asked = taken > 0 and taken % per_epoch == 0
            if asked:
                self._cluster(model)
            gradient_bq = gradients(model, x, y)
            cluster_b = torch.from_numpy(self._cluster_n[rows])
            self._change_q = self._changed(gradient_bq, cluster_b) if taken >= per_epoch else torch.empty(0)
            yield Step(x, y, taken / self.total, forwarded=len(self.train) if asked else 0)

    def _changed(self, gradient_bq: Tensor, cluster_b: Tensor) -> Tensor:
        """(q,) what is added to the batch's mean gradient, by the memory of before this batch."""
        count_k = torch.bincount(cluster_b, minlength=self.clusters)
        change_q = (self._share_k() - count_k / len(cluster_b)) @ self._memory_kq
        self._remember(gradient_bq, cluster_b)
        return change_q

    def _remember(self, gradient_bq: Tensor, cluster_b: Tensor) -> None:
        for k in cluster_b.unique().tolist():
            mean_q = gradient_bq[cluster_b == k].mean(0)
            kept = self.decay if self._known_k[k] else 0.0
            self._memory_kq[k] = kept * self._memory_kq[k] + (1 - kept) * mean_q
        self._known_k[cluster_b] = True

    def _share_k(self) -> Tensor:
        counts = np.bincount(self._cluster_n, minlength=self.clusters)
        return torch.from_numpy(counts / len(self._cluster_n)).float()

    def _change(self, part: slice, parameter: Tensor) -> None:
        if len(self._change_q) and parameter.grad is not None:
            parameter.grad += self._change_q[part].view_as(parameter)

    def _cluster(self, model: nn.Module) -> None:
        """Make clusters anew; each remembers what those did that its examples were in, by how many came of each."""
        delta_nc = torch.softmax(predict(model, self.train), 1)
        delta_nc[torch.arange(len(delta_nc)), self.train.labels] -= 1
        of_each = -(-len(delta_nc) // self.clusters)
        kmeans = faiss.Kmeans(
            delta_nc.shape[1], self.clusters, niter=10, seed=self._seed + 1, max_points_per_centroid=of_each
        )
        kmeans.train(delta_nc.numpy())
        before_n, self._cluster_n = self._cluster_n, kmeans.assign(delta_nc.numpy())[1].astype(np.int64)
        if self._known_k.any():
            came_kk = np.zeros((self.clusters, self.clusters), np.float32)
            np.add.at(came_kk, (self._cluster_n, before_n), 1.0)
            came_kk /= np.maximum(came_kk.sum(1, keepdims=True), 1.0)
            self._memory_kq = torch.from_numpy(came_kk) @ self._memory_kq
            self._known_k = torch.from_numpy(np.bincount(self._cluster_n, minlength=self.clusters) > 0)


class ClusterMomentum(ControlVariates):
    """g = sum_k p_k c_k, with this batch in c: a momentum for each cluster. Biased: it lags behind the weights."""

    def _changed(self, gradient_bq: Tensor, cluster_b: Tensor) -> Tensor:
        self._remember(gradient_bq, cluster_b)
        mean_q, share_k = gradient_bq.mean(0), self._share_k() * self._known_k
        return share_k @ self._memory_kq - share_k.sum() * mean_q  # the batch stands in for clusters not seen yet


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(b, q) gradients of the examples' losses, parameters one after another."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(given: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, given, (image[None],)), label[None])

    of_each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    return torch.cat([each.flatten(1) for each in of_each.values()], 1)


MEMORIES = {"cluster control variates": ControlVariates, "cluster momentum": ClusterMomentum}
