"""The training loop that every method runs: same optimiser, same schedule, same evaluations, one clock.

A method yields batches with weights and says how far its budget is used up; the learning rate follows that progress.
The clock runs whenever the method works, its service and scoring passes included. It stands during evaluations, and
before the first batch is asked for: opening a run takes the service a second or two, however long the job is, and is
noted beside the curve.

Shapes: b examples of a batch, e evaluations.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.training.tasks import Examples, Task

MOMENTUM = 0.9

EVALUATION_ROWS = 128
"""in one forward pass: on a CPU the activations of more no longer fit its caches, and it is half as fast"""


@dataclass(slots=True)
class Step:
    """One batch of a method."""

    images: Tensor
    labels: Tensor
    progress: float
    """share of the budget used before this step, 0 … 1"""
    weights: Tensor | None = None
    """(b,) factors on the losses, mean 1; None: ones"""
    forwarded: int = 0
    """examples that the method ran forward to choose these, beside them"""
    backpropagated: int = 0
    """examples that it trained models of its own on, beside these; among `forwarded` too"""
    scale: float = 1.0
    """on the learning rate, for methods that change it"""
    handle: Any = None
    """what `after` needs"""


class Method(Protocol):
    """A way to choose batches. Used for one run."""

    notes: dict[str, Any]
    """what it has to say when it is closed: fallbacks, ratios"""

    def open(self, model: nn.Module) -> None:
        """Get ready; the clock does not run yet."""
        ...

    def close(self) -> None:
        """Be done; the clock has stopped."""
        ...

    def steps(self, model: nn.Module) -> Iterator[Step]:
        """Batches until the budget is used up."""
        ...

    def settle(self) -> None:
        """Do what is still under way before an evaluation stops the clock."""
        ...

    def after(self, step: Step, losses: Tensor, logits: Tensor) -> None:
        """The step was taken; (b,) losses and (b, classes) logits of its examples, as they were before it."""
        ...


@dataclass(slots=True, kw_only=True)
class Curve:
    """One run, e points of it."""

    task: str
    method: str
    learning_rate: float
    seed: int
    setup: str = ""
    """of what else the run depended on; see `methods.setup`"""
    session: str = ""
    """of the benchmark: seconds of different sessions, between which a machine changes, are not compared"""
    validation: float = math.nan
    """accuracy at the end on the validation set, by which learning rates are chosen"""
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    forwarded: list[int] = field(default_factory=list)
    backpropagated: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """mean over the training set as the trainer sees it"""
    accuracies: list[float] = field(default_factory=list)
    """on the test set, the mean over classes of each class's accuracy"""
    notes: dict[str, Any] = field(default_factory=dict)
    """what the method has to say: fallbacks, variance ratios"""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def diverged(self) -> bool:
        """Whether the loss was lost; in a file it is null then."""
        return self.losses[-1] is None or not math.isfinite(self.losses[-1])

    def first(self, axis: str, *, loss: float | None = None, accuracy: float | None = None) -> float:
        """Where on `axis` ("steps", "seconds", "backpropagated", …) a loss or an accuracy is first reached.

        Linear between evaluations; infinite when it never is.
        """
        values = [-a for a in self.accuracies] if loss is None else self.losses
        goal = -float(accuracy or 0.0) if loss is None else loss
        places = getattr(self, axis)
        for i, value in enumerate(values):
            if value is None or math.isnan(value):
                return math.inf
            if value <= goal:
                if i == 0:
                    return float(places[0])
                part = (values[i - 1] - goal) / (values[i - 1] - value)
                return float(places[i - 1] + part * (places[i] - places[i - 1]))
        return math.inf


def train(task: Task, method: Method, name: str, *, learning_rate: float, seed: int) -> Curve:
    """Train one model to the end of the method's budget, or until it diverges."""
    torch.set_num_threads(task.setting.threads)
    model = task.make_model(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=MOMENTUM)
    curve = Curve(task=task.setting.key, method=name, learning_rate=learning_rate, seed=seed)
    evaluations = task.setting.evaluations
    due = iter([*(i / evaluations for i in range(evaluations)), math.inf])
    next_due, taken, forwarded, backpropagated, seconds = next(due), 0, 0, 0, 0.0
    since = time.perf_counter()
    method.open(model)
    opening_s = time.perf_counter() - since
    since = time.perf_counter()
    for taken, step in enumerate(method.steps(model)):
        forwarded += step.forwarded  # done by now, as the seconds are
        backpropagated += step.backpropagated
        if step.progress >= next_due:
            method.settle()
            seconds += time.perf_counter() - since
            _evaluate(curve, model, task, taken, seconds, forwarded, backpropagated)
            while next_due <= step.progress:
                next_due = next(due)
            if curve.diverged:
                break
            since = time.perf_counter()
        rate = learning_rate * step.scale * 0.5 * (1 + math.cos(math.pi * min(step.progress, 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        logits = model(step.images)
        losses = functional.cross_entropy(logits, step.labels, reduction="none")
        (losses if step.weights is None else losses * step.weights).mean().backward()
        optimizer.step()
        method.after(step, losses.detach(), logits.detach())
        forwarded += len(losses)
        backpropagated += len(losses)
    else:
        method.settle()
        seconds += time.perf_counter() - since
        _evaluate(curve, model, task, taken + 1, seconds, forwarded, backpropagated)
    method.close()
    curve.notes = method.notes | {"opening_s": opening_s}
    curve.validation = _accuracy(model, task.validation, task.num_classes)
    return curve


def _evaluate(
    curve: Curve, model: nn.Module, task: Task, taken: int, seconds: float, forwarded: int, backpropagated: int
) -> None:
    curve.steps.append(taken)
    curve.seconds.append(seconds)
    curve.forwarded.append(forwarded)
    curve.backpropagated.append(backpropagated)
    logits = predict(model, task.train)
    curve.losses.append(float(functional.cross_entropy(logits, task.train.labels)))
    curve.accuracies.append(_accuracy(model, task.test, task.num_classes))


def _accuracy(model: nn.Module, examples: Examples, classes: int) -> float:
    """The mean over the classes that there are of each one's accuracy."""
    right_n = predict(model, examples).argmax(1) == examples.labels
    of_class = [right_n[examples.labels == k] for k in range(classes)]
    per_class = [float(right.float().mean()) for right in of_class if len(right)]
    return sum(per_class) / len(per_class)


@torch.no_grad()
def predict(model: nn.Module, examples: Examples) -> Tensor:
    """(n, classes) logits of all examples, in evaluation mode."""
    model.eval()
    logits = torch.cat([model(part) for part in examples.images.split(EVALUATION_ROWS)])
    model.train()
    return logits
