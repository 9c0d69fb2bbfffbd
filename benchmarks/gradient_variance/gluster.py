"""Gradient clustering as published: the batch version of "Gluster", whose partitions made the paper's figures.

Source: Faghri, Duvenaud, Fleet, Ba, "A Study of Gradient Variance in Deep Learning", arXiv 2007.04532, and its code,
github.com/fartashf/gvar_code, gluster/gluster.py. Centres are rank one in each layer, the mean input times the mean
gradient of the output; a convolution's input is averaged over positions and its gradient summed. As there, biases
play no part, sizes are counted while examples are assigned, starting from zero, and at most one cluster is split in
an iteration. Examples come in a new random order each time: where copies stand together, running counts give far
worse clusters. Not as there: gradients are of an example's own loss, not of its share in a mini-batch's mean, and
distances are clamped at zero instead of rounded to multiples of 1e-7.

Shapes: n examples, k clusters; i inputs and o outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.gradient_variance.gradients import Weight
from sampler_service.types import Int64

Centre = tuple[Tensor, Tensor]
"""factors (k, i) and (k, o) of one layer's k centres"""

MIN_SIZE = 1
"""a cluster with fewer examples is refilled"""


def gradient_clusters(weights: Sequence[Weight], num_clusters: int, *, iterations: int, batch: int, seed: int) -> Int64:
    """The cluster of every example, 0 … k-1.

    Args:
        iterations: of assigning and updating; `citers` there.
        batch: examples assigned between two counts of the sizes.
    """
    random = torch.Generator().manual_seed(seed)
    centres = [_first_centre(weight, num_clusters, random) for weight in weights]
    square_n = sum(weight.squares() for weight in weights)
    cluster_n = torch.empty(len(weights[0].input_ni), dtype=torch.int64)
    for _ in range(iterations):
        product_nk = sum(weight.products(*centre) for weight, centre in zip(weights, centres, strict=True))
        square_k = sum(c.square().sum(1) * d.square().sum(1) for c, d in centres)
        distance_nk = (square_k - 2 * product_nk + square_n[:, None]).clamp(min=0)  # pyright: ignore
        order_n = torch.randperm(len(distance_nk), generator=random)
        cluster_n[order_n], distortion_k = assign(distance_nk[order_n], batch)
        split_largest(cluster_n, distortion_k, random)
        centres = [_means(weight, cluster_n, num_clusters) for weight in weights]
    return cluster_n.numpy()


def assign(distance_nk: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """To every example the cluster where squared distance times (members so far + 1) is least, a batch at a time.

    Returns:
        clusters (n,), and what each cluster's members paid in all (k,).
    """
    num_clusters = distance_nk.shape[1]
    size_k, distortion_k = torch.zeros(num_clusters), torch.zeros(num_clusters)
    clusters = []
    for distance_bk in distance_nk.split(batch):
        cost_b, cluster_b = (distance_bk * (size_k + 1)).min(1)
        size_k += torch.bincount(cluster_b, minlength=num_clusters)
        distortion_k.index_add_(0, cluster_b, cost_b)
        clusters.append(cluster_b)
    return torch.cat(clusters), distortion_k


def split_largest(cluster_n: Tensor, distortion_k: Tensor, random: torch.Generator) -> None:
    """Give the smallest cluster, if it has no member, a random half of the one that paid most."""
    size_k = torch.bincount(cluster_n, minlength=len(distortion_k))
    smallest = int(size_k.argmin())
    if size_k[smallest] >= MIN_SIZE:
        return
    largest = int(torch.where(size_k >= MIN_SIZE, distortion_k, -1.0).argmax())
    members = torch.nonzero(cluster_n == largest).flatten()
    order = torch.randperm(len(members), generator=random)
    cluster_n[members[order[: len(members) // 2]]] = smallest


def _first_centre(weight: Weight, num_clusters: int, random: torch.Generator) -> Centre:
    i, o = weight.input_ni.shape[1], weight.output_no.shape[1]
    return (
        torch.rand(num_clusters, i, generator=random) / (i + o),
        torch.rand(num_clusters, o, generator=random) / (i + o),
    )


def _means(weight: Weight, cluster_n: Tensor, num_clusters: int) -> Centre:
    size_k1 = torch.bincount(cluster_n, minlength=num_clusters).clamp(min=1)[:, None]

    def mean(factor: Tensor) -> Tensor:
        return torch.zeros(num_clusters, factor.shape[1]).index_add_(0, cluster_n, factor) / size_k1

    return mean(weight.input_ni), mean(weight.output_no)
