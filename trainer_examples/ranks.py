"""Do sketches rank batches as real steps do? The second question of `ordering.py`.

Shapes: n examples, d numbers of a sketch, m examples of the batches that are ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sampler_client import GradientSketcher
from sampler_client.pytorch.lookahead import lookahead_drops
from trainer_examples.orders import BATCH, Task, loss_of

CANDIDATES = 24  # batches that are ranked at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Spearman's correlation of sketches' scores of batches with the exact drops, at a point of a run."""

    dim: int
    seed: int
    epochs: float
    fresh: float
    begun: float
    """with sketches of all examples and of the target from when the epoch began: as fresh as an order can be"""
    as_poa: float | None
    """with those that `poa` has: the examples' as they were trained on, the target's from when the epoch began; None in
    the first epoch"""


def agreement(task: Task, *, dim: int, rate: float, seed: int, points: Sequence[float]) -> list[Agreement]:
    """Rank some batches at some points of a shuffled run, whose sketches are kept as the service keeps them."""
    model, optimizer = task.start(rate, seed)
    looks = {round(point * task.steps): point for point in points}
    known_nd = np.zeros((len(task.train), dim), np.float16)
    begun_n = as_poa_n = np.zeros(len(task.train))
    ids_s: Sequence[Tensor] = ()
    found = []
    with GradientSketcher(model, dim=dim, seed=seed) as sketcher:

        def sketches(batch: Sequence[Tensor]) -> NDArray[Any]:
            model.zero_grad()
            loss_of(model, batch).backward()
            return sketcher.take().sketches

        def target() -> NDArray[np.float64]:
            return sketches(task.target.tensors).mean(axis=0, dtype=np.float64)

        for step in range(max(looks) + 1):
            if step % task.steps == 0:
                ids_s = torch.randperm(len(task.train)).split(BATCH)
                begun_n, as_poa_n = sketches(task.train.tensors) @ target(), known_nd @ target()
            if step in looks:
                some = torch.randperm(len(task.train))[: min(CANDIDATES, task.steps) * BATCH]
                with sketcher.paused():
                    batches = [task.train[ids] for ids in some.split(BATCH)]
                    drops = lookahead_drops(model, optimizer, loss_of, batches, task.target.tensors).numpy()
                found.append(
                    Agreement(
                        dim=dim,
                        seed=seed,
                        epochs=looks[step],
                        fresh=spearman(drops, by_batch(sketches(task.train[some]) @ target())),
                        begun=spearman(drops, by_batch(begun_n[some.numpy()])),
                        as_poa=spearman(drops, by_batch(as_poa_n[some.numpy()])) if step >= task.steps else None,
                    )
                )
            ids = ids_s[step % task.steps]
            known_nd[ids.numpy()] = sketches(task.train[ids])
            optimizer.step()
    return found


def by_batch(score_m: NDArray[Any]) -> NDArray[Any]:
    """Mean score of each batch."""
    return score_m.reshape(-1, BATCH).mean(axis=1)


def spearman(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Correlation of the ranks; of values that are all different."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])
