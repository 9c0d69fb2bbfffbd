"""Trainings that differ in the order of their batches: what `ordering.py` compares.

`Served` trains on batches of the service, `Alone` on batches that are put in order here. Both go an epoch at a time.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_client.pytorch.lookahead import lookahead_drops
from trainer_examples.data import ImageData
from trainer_examples.models import accuracy, full_loss, make_model

BATCH = 32
SKETCH_DIM = 64
TARGET = 512  # held-out images that look-ahead looks at, at most
ATTEMPTS = 8  # batches of which the best comes next
FIRST_SHARE, WHOLE_AT = 0.2, 0.5  # of random pacing: share of the set at the start, and of the run when it is whole
ORDER_S = 30.0  # that a balanced order may take

SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "shuffle": ("shuffle", {}),
    "poa": ("poa", {"attempts": ATTEMPTS}),
    "poa, random order": ("poa", {"attempts": 1}),
    "balanced_order": ("balanced_order", {}),
}
"""methods that are policies of the service, with their options"""
PACING, LOOKAHEAD = "random pacing", "exact look-ahead"
METHODS = (*SERVED, PACING, LOOKAHEAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Images for four purposes, of which no two share any, and how they are trained on; `train` is whole batches."""

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    train: TensorDataset
    target: TensorDataset
    """what look-ahead looks at"""
    held_out: TensorDataset
    """by which learning rates are chosen"""
    test: TensorDataset
    momentum: float
    """of every run"""

    @classmethod
    def of(cls, data: ImageData, momentum: float = 0.9) -> Task:
        """A fifth of the training images each for the target and to choose rates by."""
        tensors, fifth = data.train.tensors, len(data.train) // 5
        batches = (len(data.train) - 2 * fifth) // BATCH

        def part(start: int, count: int) -> TensorDataset:
            return TensorDataset(*(each[start : start + count] for each in tensors))

        return cls(
            name=data.slug,
            image_shape=data.image_shape,
            num_classes=data.num_classes,
            train=part(2 * fifth, batches * BATCH),
            target=part(0, min(TARGET, fifth)),
            held_out=part(fifth, fifth),
            test=data.test,
            momentum=momentum,
        )

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return len(self.train) // BATCH

    def start(self, rate: float, seed: int) -> tuple[nn.Module, Optimizer]:
        """A model and its optimiser, the same for every method."""
        torch.manual_seed(seed)
        model = make_model(self.image_shape, self.num_classes)
        return model, SGD(model.parameters(), lr=rate, momentum=self.momentum)


def loss_of(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """Mean loss of images and labels."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


class Served:
    """Training on batches of the service at `address`.

    Args:
        method: one of `SERVED`.
        sketched: whether gradients are sketched and reported; without it the losses alone.
    """

    def __init__(
        self, method: str, task: Task, *, rate: float, seed: int, epochs: int, address: str, sketched: bool = True
    ) -> None:
        self.policy, options = SERVED[method]
        self.model, self.optimizer = task.start(rate, seed)
        self.ordered = 0
        """steps whose batch the policy put there"""
        self.target_s = 0.0
        """of which a target took the latest epoch"""
        self._target, self._epochs = task.target.tensors, 0
        name = method.replace(", ", "-").replace(" ", "-")
        self._run = f"ordering/{task.name}/{name}/{rate:g}/{seed}/{'sketched' if sketched else 'plain'}"
        self._loader = sampler.attach(
            DataLoader(task.train, BATCH, shuffle=True), address, run=self._run, dataset=task.name,
            policy=self.policy, policy_options=options, seed=seed, epochs=epochs, sketch_dim=SKETCH_DIM,
        )  # fmt: skip
        self._client = sampler.SamplerClient(address)
        self._sketcher = sampler.GradientSketcher(self.model, dim=SKETCH_DIM) if sketched else None

    def epoch(self) -> float:
        """Seconds that it took, those for a target included."""
        began = time.perf_counter()
        for (images, labels), batch in self._loader:
            self.optimizer.zero_grad()
            losses = F.cross_entropy(self.model(images), labels, reduction="none")
            batch.weighted_mean(losses).backward()
            self.optimizer.step()
            batch.report(losses, self._sketcher)
            self.ordered += batch.policy == self.policy
        trained = time.perf_counter()
        if self.policy == "poa" and self._sketcher is not None:
            self.optimizer.zero_grad()
            loss_of(self.model, self._target).backward()
            self._loader.set_target(self._sketcher.take())
        ended = time.perf_counter()
        self.target_s = ended - trained
        self._epochs += 1
        if self.policy == "balanced_order":
            self._await_order()
        return ended - began

    def _await_order(self) -> None:
        """The next order is made beside the training once nine tenths of an epoch are lent. Epochs of a second may be
        over before it is there, so these wait for it, and count no time for that."""
        self._loader.flush()
        until = time.monotonic() + ORDER_S
        while self._client.statistics(self._run).refreshes < self._epochs:
            if time.monotonic() > until:
                raise TimeoutError(f"the service has not balanced the order of run {self._run} in {ORDER_S:g} s")
            time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._sketcher is not None:
            self._sketcher.close()
        self._loader.close()
        self._client.close_run(self._run)
        self._client.close()


class Alone:
    """Training without a service, in an order by exact look-ahead, or by random pacing."""

    def __init__(self, method: str, task: Task, *, rate: float, seed: int, epochs: int) -> None:
        self.model, self.optimizer = task.start(rate, seed)
        self.ordered = 0
        self._task, self._planned, self._epochs = task, epochs, 0
        self._next = {PACING: self._paced, LOOKAHEAD: self._looked_ahead}[method]
        self._random, self._order = random.Random(seed), torch.randperm(len(task.train))

    def epoch(self) -> float:
        """Seconds that it took."""
        began = time.perf_counter()
        for batch in self._next():
            self.optimizer.zero_grad()
            loss_of(self.model, batch).backward()
            self.optimizer.step()
            self.ordered += 1
        self._epochs += 1
        return time.perf_counter() - began

    def _looked_ahead(self) -> Iterator[tuple[Tensor, ...]]:
        """Every image once an epoch: of some of the batches that are left, the best comes next."""
        left = [self._task.train[ids] for ids in torch.randperm(len(self._task.train)).split(BATCH)]
        while left:
            some = self._random.sample(range(len(left)), min(ATTEMPTS, len(left)))
            tried = [left[i] for i in some]
            drops = lookahead_drops(self.model, self.optimizer, loss_of, tried, self._task.target.tensors)
            yield left.pop(some[int(drops.argmax())])

    def _paced(self) -> Iterator[tuple[Tensor, ...]]:
        """As many batches, all of the first images of a random order, of which there are more each epoch."""
        share = min(1.0, FIRST_SHARE + (1 - FIRST_SHARE) * self._epochs / self._planned / WHOLE_AT)
        some = self._order[: max(BATCH, round(share * len(self._order)))]
        batches = (some[at] for _ in range(self._task.steps) for at in torch.randperm(len(some)).split(BATCH))
        whole = (ids for ids in batches if len(ids) == BATCH)
        return (self._task.train[ids] for ids in islice(whole, self._task.steps))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A run after some of its epochs."""

    method: str
    rate: float
    seed: int
    epochs: int
    train_loss: float
    held_out_loss: float
    accuracy: float
    """on the test images"""
    step_ms: float
    ordered: float
    """share of the steps whose batch the method itself put there"""


def train(method: str, task: Task, *, rate: float, seed: int, horizons: Sequence[int], address: str) -> list[Trained]:
    """Look at a run after some numbers of epochs; exact look-ahead, which is slow, gets the least of them."""
    horizons = [min(horizons)] if method == LOOKAHEAD else horizons
    common = {"rate": rate, "seed": seed, "epochs": max(horizons)}
    runs, seconds = [], 0.0
    served = method in SERVED
    with Served(method, task, address=address, **common) if served else Alone(method, task, **common) as fit:
        for epoch in range(1, max(horizons) + 1):
            seconds += fit.epoch()
            if epoch in horizons:
                steps = epoch * task.steps
                runs.append(
                    Trained(
                        method=method, rate=rate, seed=seed, epochs=epoch, train_loss=full_loss(fit.model, task.train),
                        held_out_loss=full_loss(fit.model, task.held_out), accuracy=accuracy(fit.model, task.test),
                        step_ms=1e3 * seconds / steps, ordered=fit.ordered / steps,
                    )
                )  # fmt: skip
    return runs


def at_best_rate(runs: Iterable[Trained], method: str, epochs: int) -> list[Trained]:
    """A method's runs after so many epochs, at the rate with the lowest mean loss of held-out images."""
    own = [run for run in runs if (run.method, run.epochs) == (method, epochs)]

    def held_out(rate: float) -> float:
        loss = fmean(run.held_out_loss for run in own if run.rate == rate)
        return loss if math.isfinite(loss) else math.inf

    best = min({run.rate for run in own}, key=held_out, default=0.0)
    return [run for run in own if run.rate == best]
