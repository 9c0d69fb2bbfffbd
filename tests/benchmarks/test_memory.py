"""Gradients that are remembered by clusters: what is added to a batch's, on a model small enough to enumerate."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.training.loop import train
from benchmarks.training.memory import MEMORIES, ClusterMomentum, ControlVariates, gradients
from benchmarks.training.tasks import SETTINGS, Examples, Task

N, BATCH, CLASSES = 6, 3, 2


def task_of(steps: int = 20, examples: int = N) -> Task:
    images = torch.randn(examples, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    rows = Examples(images, (images.flatten(1)[:, 0] > 0).long())
    setting = replace(SETTINGS["digits_mlp"], batch_size=BATCH, steps=steps)
    return Task(setting=setting, train=rows, test=rows, validation=rows, image_shape=(1, 1, 4), num_classes=CLASSES)


def model_of() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, CLASSES))


def test_gradients_are_those_of_each_example_alone():
    model, rows = model_of(), task_of().train
    found_bq = gradients(model, rows.images, rows.labels)
    for i in range(N):
        model.zero_grad()
        functional.cross_entropy(model(rows.images[i : i + 1]), rows.labels[i : i + 1]).backward()
        own_q = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(found_bq[i], own_q)


def remembering(kind: type[ControlVariates]) -> tuple[ControlVariates, torch.Tensor]:
    """With two clusters of two and four examples, each of which remembers something; and all gradients."""
    method, model = kind(task_of(), 0), model_of()
    method.clusters = 2
    method.open(model)
    method._cluster_n = np.array([0, 0, 1, 1, 1, 1])
    method._memory_kq = torch.randn(2, method._memory_kq.shape[1], generator=torch.Generator().manual_seed(1))
    method._known_k[:] = True
    return method, gradients(model, method.train.images, method.train.labels)


def test_control_variates_leave_the_mean_over_all_batches_as_it_is():
    method, gradient_nq = remembering(ControlVariates)
    memory_kq, found = method._memory_kq.clone(), []
    for batch in map(list, combinations(range(N), BATCH)):
        method._memory_kq = memory_kq.clone()
        change_q = method._changed(gradient_nq[batch], torch.from_numpy(method._cluster_n[batch]))
        found.append(gradient_nq[batch].mean(0) + change_q)
    torch.testing.assert_close(torch.stack(found).mean(0), gradient_nq.mean(0))
    assert torch.stack(found).std(0).max() > 0.1


def test_gradients_that_are_remembered_exactly_leave_no_noise():
    method, gradient_nq = remembering(ControlVariates)
    means_kq = torch.stack([gradient_nq[method._cluster_n == k].mean(0) for k in (0, 1)])
    alike_nq = means_kq[method._cluster_n]
    method._memory_kq = means_kq
    change_q = method._changed(alike_nq[:3], torch.tensor([0, 0, 1]))
    torch.testing.assert_close(alike_nq[:3].mean(0) + change_q, alike_nq.mean(0))


def test_a_momentum_of_each_cluster_is_weighed_by_its_size():
    method, gradient_nq = remembering(ClusterMomentum)
    before_kq, cluster_b = method._memory_kq.clone(), torch.tensor([1, 1, 1])
    change_q = method._changed(gradient_nq[3:], cluster_b)
    renewed_q = 0.9 * before_kq[1] + 0.1 * gradient_nq[3:].mean(0)
    torch.testing.assert_close(gradient_nq[3:].mean(0) + change_q, before_kq[0] / 3 + 2 * renewed_q / 3)


def test_what_a_cluster_remembers_goes_where_its_examples_go():
    method, _ = remembering(ControlVariates)
    before_kq, before_n = method._memory_kq.clone(), method._cluster_n.copy()
    method._cluster(model_of())
    for k in np.unique(method._cluster_n):
        expected_q = before_kq[before_n[method._cluster_n == k]].mean(0)
        torch.testing.assert_close(method._memory_kq[k], expected_q)


@pytest.mark.parametrize("name", MEMORIES)
def test_it_trains(name, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ControlVariates, "clusters", 4)
    task = task_of(steps=120, examples=48)
    curve = train(task, MEMORIES[name](task, 0), name, learning_rate=0.05, seed=0)
    assert curve.losses[-1] < 0.5 * curve.losses[0]
    assert curve.backpropagated[-1] == 120 * BATCH
    assert curve.forwarded[-1] == 120 * BATCH + 7 * 48, "each epoch but the first begins with a pass over the set"
