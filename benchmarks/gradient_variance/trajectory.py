"""One model trained by SGD on shuffled batches, and the variance of every estimator at points of its way.

Shapes: n examples, p coordinates.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gradient_variance import gradients
from benchmarks.gradient_variance.estimators import (
    iid_variance,
    normalised,
    one_of_each,
    stratified_variance,
    svrg_variance,
)
from benchmarks.gradient_variance.gluster import gradient_clusters
from benchmarks.gradient_variance.tasks import Task
from benchmarks.ratios import Contender, table_of
from sampler_service.types import Float32, Float64, StratifiedDraw

COORDINATES = 10_000
"""of the gradient that variances are averaged over, chosen at random where there are more"""

SKETCH_DIM = 64

OURS = {f"hartigan_alpha{round(100 * alpha)}": Contender("gradient_clustering", alpha, "hartigan", "equal")
        for alpha in (0.0, 0.5)}  # fmt: skip

ESTIMATORS = ("sg_b", "sg_2b", "gc", "svrg", *OURS)


@dataclass(frozen=True)
class Partitions:
    """Draws of all clustering estimators, as the model was at one step."""

    step: int
    draws: dict[str, StratifiedDraw]


def measure(task: Task, points: int) -> Iterator[dict[str, Any]]:
    """A row for each of at most `points` points, in the middle of equal parts of the run and in the middle of an epoch.

    There SVRG's snapshot, which is taken anew at the start of every epoch, has its mean age.
    """
    torch.manual_seed(task.seed)
    model = task.make_model()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=task.learning_rate, momentum=task.momentum, weight_decay=task.weight_decay
    )
    drops = [round(part * task.epochs) for part in task.drops]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)
    index_p = gradients.coordinates(model, COORDINATES, task.seed)
    measured = _measured_epochs(task, points)
    refreshed = range(0, task.epochs, max(1, round(task.refresh / task.epoch_steps)))
    shuffle = torch.Generator().manual_seed(task.seed)
    partitions, snapshot = None, model
    for epoch in range(task.epochs):
        if epoch in refreshed and measured & set(range(epoch, epoch + refreshed.step)):
            partitions = partition(task, model, epoch * task.epoch_steps)
        if epoch in measured:
            snapshot = copy.deepcopy(model)
        batches = torch.randperm(len(task.labels), generator=shuffle).split(task.batch)[: task.epoch_steps]
        for number, index_b in enumerate(batches):
            if epoch in measured and number == task.epoch_steps // 2:
                assert partitions is not None, "made before the first point that needs them"
                step = epoch * task.epoch_steps + number
                yield {
                    "task": task.name,
                    "redundancy": task.redundancy,
                    "over_parametrisation": task.over_parametrisation,
                    "seed": task.seed,
                    "step": step,
                    "partition_age": step - partitions.step,
                } | summary(task, model, snapshot, partitions, index_p)
            optimizer.zero_grad()
            F.cross_entropy(model(task.inputs[index_b]), task.labels[index_b]).backward()
            optimizer.step()
        schedule.step()


def _measured_epochs(task: Task, points: int) -> set[int]:
    points = min(points, task.points)
    return {int((number + 0.5) * task.epochs / points) for number in range(points)}


def partition(task: Task, model: nn.Module, step: int) -> Partitions:
    """The paper's clusters, and ours from sketches; both of all examples at these weights."""
    weights = gradients.weights(model, task.inputs, task.labels)
    cluster_n = gradient_clusters(weights, task.batch, iterations=task.iterations, batch=task.batch, seed=task.seed)
    del weights
    sketch_nd, norm_n = gradients.sketches(model, task.inputs, task.labels, dim=SKETCH_DIM, seed=task.seed)
    table = table_of(sketch_nd, norm_n, task.batch, "hartigan", task.seed)
    draws = {"gc": one_of_each(cluster_n)}
    for name, contender in OURS.items():
        rates = contender.rates({"hartigan": table})
        assert isinstance(rates, StratifiedDraw), "clusters are drawn from"
        draws[name] = rates
    return Partitions(step, draws)


def summary(
    task: Task, model: nn.Module, snapshot: nn.Module, partitions: Partitions, index_p: Tensor
) -> dict[str, float]:
    """The model's loss, and of every estimator the normalised variance and the average variance over coordinates."""
    row_np, loss = gradients.rows(model, task.inputs, task.labels, index_p)
    snapshot_np, _ = gradients.rows(snapshot, task.inputs, task.labels, index_p)
    mean_p = row_np.mean(axis=0, dtype=np.float64)
    found = {"loss": loss}
    for name, variance_p in variances(row_np, snapshot_np, partitions, task.batch).items():
        found[name] = normalised(variance_p, mean_p)
        found[f"{name}_average"] = float(variance_p.mean())
    return found


def variances(row_np: Float32, snapshot_np: Float32, partitions: Partitions, batch: int) -> dict[str, Float64]:
    """(p,) variances of every estimator's mean gradient."""
    iid_p = iid_variance(row_np)
    single = {"sg_b": iid_p, "sg_2b": iid_p / 2, "svrg": svrg_variance(row_np, snapshot_np)}
    single |= {name: stratified_variance(row_np, draw) for name, draw in partitions.draws.items()}
    return {name: single[name] / batch for name in ESTIMATORS}
