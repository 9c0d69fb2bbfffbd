"""One training run under one policy, timed and evaluated: what `demo.py` compares.

Shapes: e evaluations, n examples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from trainer_examples.data import ImageData, endless
from trainer_examples.models import accuracy, full_loss, logits_of, make_model
from trainer_examples.tuning import RATES, TUNING_SEED

SKETCH_DIM = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all policies of a comparison share."""

    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 0.05
    momentum: float = 0.9
    evaluations: int = 20
    """of the whole training set; besides, the model is evaluated before the first step"""


@dataclass(slots=True, kw_only=True)
class Curve:
    """One run: e points of it, and what the service said of it."""

    policy: str
    seed: int
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """of training, waiting for the service included, evaluations not; for rho_loss, also of its reference models"""
    losses: list[float] = field(default_factory=list)
    """over the whole training set"""
    ratios: list[float] = field(default_factory=list)
    """the service's variance ratio, NaN where it could not tell"""
    reasons: list[str] = field(default_factory=list)
    """why the service used another policy, in order of appearance, without repeats"""
    steps_active: int = 0
    """steps whose batch was planned by the policy itself"""
    examples: int = 0
    """trained on"""
    accuracy: float = math.nan

    @property
    def variance_ratio(self) -> float:
        """Median over the run of what the service measured; NaN when it never could."""
        known = [ratio for ratio in self.ratios if not math.isnan(ratio)]
        return float(np.median(known)) if known else math.nan

    @property
    def late_loss(self) -> float:
        """Median full-set loss of the last quarter of the evaluations, which is steadier than the last alone."""
        return float(np.median(self.losses[-max(1, len(self.losses) // 4) :]))

    def reach(self, loss: float) -> tuple[float, float]:
        """Steps and seconds to a full-set loss, linear between evaluations; NaN when it was never reached."""
        for i, now in enumerate(self.losses):
            if now <= loss:
                if i == 0:
                    return float(self.steps[0]), self.seconds[0]
                before = self.losses[i - 1]
                part = (before - loss) / (before - now)
                steps, seconds = (axis[i - 1] + part * (axis[i] - axis[i - 1]) for axis in (self.steps, self.seconds))
                return float(steps), float(seconds)
        return math.nan, math.nan


def train_under(  # noqa: PLR0913 - keyword-only
    policy: str,
    data: ImageData,
    settings: Settings,
    *,
    address: str,
    run: str,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
    keep: bool = False,
) -> Curve:
    """Train for `settings.steps` steps on batches of the service at `address`; with `keep` the run stays there."""
    torch.manual_seed(seed)
    model = make_model(data.image_shape, data.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    sketcher = sampler.GradientSketcher(model, dim=SKETCH_DIM)
    loader = DataLoader(data.train, batch_size=settings.batch_size, shuffle=True)
    epochs = math.ceil(settings.steps / len(loader))
    curve = Curve(policy=policy, seed=seed)
    clock = Stopwatch()
    with sampler.SamplerClient(address) as client:
        loader = sampler.attach(loader, address, run=run, dataset=data.slug, policy=policy, seed=seed, epochs=epochs)
        clock.start()
        if policy == "rho_loss":
            client.set_reference(run, reference_losses(data, settings, seed))
        evaluate_at = set(np.linspace(0, settings.steps, settings.evaluations + 1).round().astype(int).tolist())
        with loader:
            for step, ((x, y), batch) in enumerate(endless(loader)):
                if step in evaluate_at:
                    clock.stop()
                    _evaluate(curve, step, clock, model, data, client.statistics(run))
                    clock.start()
                if step == settings.steps:
                    break
                optimizer.zero_grad()
                losses = F.cross_entropy(model(x), y, reduction="none")
                batch.weighted_mean(losses).backward()
                optimizer.step()
                batch.report(losses, sketcher)
                curve.examples += len(batch)
                curve.steps_active += batch.policy == policy
                on_step()
        if not keep:
            client.close_run(run)  # what the service holds of it is not needed any more
    sketcher.close()
    curve.accuracy = accuracy(model, data.test)
    return curve


def best_rate(data: ImageData, settings: Settings, rates: tuple[float, ...] = RATES) -> float:
    """The learning rate at which plain shuffling has the lowest training loss late in a run. Asks no service."""

    def late_loss(rate: float) -> float:
        torch.manual_seed(TUNING_SEED)
        model = make_model(data.image_shape, data.num_classes)
        loss = _train_plainly(model, data.train, replace(settings, learning_rate=rate))
        return loss if math.isfinite(loss) else math.inf

    return min(rates, key=late_loss)


def reference_losses(data: ImageData, settings: Settings, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(n,) losses under models that never saw the example: two small ones, each trained on the other's half."""
    images, labels = data.train.tensors
    half_n = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)) % 2
    losses = torch.empty(len(images))
    for half in (0, 1):
        model = make_model(data.image_shape, data.num_classes, width=32)
        seen = TensorDataset(images[half_n == half], labels[half_n == half])
        _train_plainly(model, seen, replace(settings, steps=settings.steps // 2))
        unseen = half_n != half
        losses[unseen] = F.cross_entropy(logits_of(model, images[unseen]), labels[unseen], reduction="none")
    return losses.numpy()


def _train_plainly(model: nn.Module, train: TensorDataset, settings: Settings) -> float:
    """Train on shuffled batches; the mean of their losses over the last quarter of the steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    loader = DataLoader(train, batch_size=settings.batch_size, shuffle=True)
    losses = []
    for x, y in islice(endless(loader), settings.steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses[-max(1, len(losses) // 4) :]))


class Stopwatch:
    """Seconds between start and stop, added up."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._since


def _evaluate(curve: Curve, step: int, clock: Stopwatch, model: nn.Module, data: ImageData, statistics: Any) -> None:
    curve.steps.append(step)
    curve.seconds.append(clock.seconds)
    curve.losses.append(full_loss(model, data.train))
    curve.ratios.append(statistics.variance_ratio)
    if statistics.reason and statistics.reason not in curve.reasons:
        curve.reasons.append(statistics.reason)
