"""The alternatives, each after its paper and its authors' code, in process and without a service's overhead.

Each class says its formula. Hyper-parameters are the papers' (RHO-LOSS's `reference_epochs` is ours), and are named in
the tables; the learning rate alone is searched, as for our policies. All read the examples through the same DataLoader
as the service's policies do, and score in the precision in which those do.

Shapes: n examples, b batch, p presampled examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.training.loop import EVALUATION_ROWS, Step
from benchmarks.training.tasks import Examples, Task, as_fetched, stream
from sampler_client.pytorch.two_stage.scorer import fast_precision


def fetch(examples: Examples, order: np.ndarray, batch_size: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """A DataLoader over these rows, in this order."""
    batches = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
    return DataLoader(examples, batch_sampler=batches, collate_fn=as_fetched)  # pyright: ignore[reportArgumentType]


class Peer:
    """What peers share: the task, shuffled epochs, and nothing to do where they say nothing else."""

    hyper: ClassVar[tuple[str, ...]] = ()
    """attributes that the tables show"""

    def __init__(self, task: Task, seed: int) -> None:
        self.task = task
        self.train = task.train
        self.batch_size = task.setting.batch_size
        self.total = task.setting.steps
        self.rng = stream("peers", seed)
        self.notes: dict[str, Any] = {}

    def open(self, model: nn.Module) -> None:
        """Nothing to get ready."""

    def close(self) -> None:
        """Nothing to say."""

    def settle(self) -> None:
        """Nothing is under way: all is done in the step."""

    def after(self, step: Step, losses: Tensor, logits: Tensor) -> None:
        """Nothing is learnt from the step."""

    def shuffled(self, batch_size: int) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Rows, images and labels of shuffled epochs without end; the last batch of an epoch may be smaller."""
        while True:
            order = self.rng.permutation(len(self.train))
            for i, (x, y) in enumerate(fetch(self.train, order, batch_size)):
                yield order[i * batch_size : i * batch_size + len(y)], x, y


class Shuffle(Peer):
    """Shuffled epochs: the baseline."""

    def steps(self, model: nn.Module) -> Iterator[Step]:  # noqa: ARG002 - it does not look at the model
        for taken, (_, x, y) in zip(range(self.total), self.shuffled(self.batch_size), strict=False):
            yield Step(x, y, taken / self.total)


class InfoBatch(Peer):
    """Qin et al., ICLR 2024, arXiv 2303.04947: each epoch drops half of what is below the mean loss, and weighs the
    rest.

    Its budget are epochs, as in the paper. Full are those that end in the last eighth of it, as their code counts: of
    five the last.
    """

    hyper = ("prune_ratio", "delta")
    prune_ratio = 0.5
    delta = 0.875

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task, seed)
        # Nothing is below the mean before it was seen: the first epoch is whole.
        self.loss_n = np.full(len(self.train), math.inf)

    def steps(self, model: nn.Module) -> Iterator[Step]:  # noqa: ARG002 - losses come by `after`
        epochs = self.total * self.batch_size / len(self.train)
        for epoch in range(math.ceil(epochs)):
            rows, weight_n = self._kept(ends=(epoch + 1) / epochs)
            order = self.rng.permutation(rows)
            share = min(1.0, epochs - epoch)  # the last epoch of the budget may be a part of one
            order = order[: max(1, round(share * len(order)))]
            for i, (x, y) in enumerate(fetch(self.train, order, self.batch_size)):
                ids = order[i * self.batch_size : i * self.batch_size + len(y)]
                progress = (epoch + share * i * self.batch_size / len(order)) / epochs
                yield Step(x, y, progress, weights=torch.from_numpy(weight_n[ids]), handle=ids)

    def _kept(self, *, ends: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows of an epoch that ends at this share of the run, and the weights of all rows."""
        weight_n = np.ones(len(self.loss_n), dtype=np.float32)
        if ends > self.delta or not np.isfinite(self.loss_n).all():
            return np.arange(len(self.loss_n)), weight_n
        easy = np.flatnonzero(self.loss_n < self.loss_n.mean())
        dropped = self.rng.choice(easy, int(self.prune_ratio * len(easy)), replace=False)
        weight_n[easy] = 1 / (1 - self.prune_ratio)
        return np.setdiff1d(np.arange(len(self.loss_n)), dropped), weight_n

    def after(self, step: Step, losses: Tensor, logits: Tensor) -> None:  # noqa: ARG002
        self.loss_n[step.handle] = losses.numpy()


class SelectiveBackprop(Peer):
    """Jiang et al. 2019, arXiv 1910.00762: forward everything, backpropagate what has a high percentile of loss.

    P(select) = CDF(loss)^beta over the last 1024 losses; beta 3, their default, selects a quarter.
    The budget are steps; the first epoch selects everything.
    """

    hyper = ("beta",)
    beta = 3.0
    window = 1024

    def steps(self, model: nn.Module) -> Iterator[Step]:
        recent, place = np.full(self.window, np.inf), 0
        kept: list[tuple[Tensor, Tensor]] = []
        seen = forwarded = taken = 0
        for _, x, y in self.shuffled(self.batch_size):
            if seen < len(self.train):
                seen += len(y)
                yield Step(x, y, taken / self.total)
                taken += 1
            else:
                losses = _losses(model, x, y).numpy()
                forwarded += len(y)
                recent[(place + np.arange(len(y))) % self.window] = losses
                place += len(y)
                rank = np.searchsorted(np.sort(recent), losses, side="right")
                percentile = rank / min(place, self.window)
                chosen = torch.from_numpy(self.rng.random(len(y)) < percentile**self.beta)
                kept.append((x[chosen], y[chosen]))
                if sum(len(labels) for _, labels in kept) < self.batch_size:
                    continue
                images, labels = (torch.cat(parts) for parts in zip(*kept, strict=True))
                kept = [(images[self.batch_size :], labels[self.batch_size :])]
                yield Step(
                    images[: self.batch_size], labels[: self.batch_size], taken / self.total, forwarded=forwarded
                )
                taken, forwarded = taken + 1, 0
            if taken >= self.total:
                return


class SelectiveBackpropHalf(SelectiveBackprop):
    """The gentler setting: beta 1 selects half."""

    beta = 1.0


class Presampling(Peer):
    """Katharopoulos and Fleuret, ICML 2018, arXiv 1803.00942: 3 b uniform candidates, of which b are drawn by the
    last layer's gradient.

    With replacement, unbiased weights, and only while tau > tau_th: until then plain batches, as in their code.
    """

    hyper = ("factor", "threshold")
    factor = 3
    threshold = (factor + 3) / 3
    smoothing = 0.9

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task, seed)
        self._tau = 0.0

    def steps(self, model: nn.Module) -> Iterator[Step]:
        plain, wide = self.shuffled(self.batch_size), self.shuffled(self.factor * self.batch_size)
        for taken in range(self.total):
            if self._tau <= self.threshold:
                _, x, y = next(plain)
                yield Step(x, y, taken / self.total, handle="plain")
                continue
            _, x, y = next(wide)
            score = _last_layer(_scoring_logits(model, x), y).double().numpy()
            if not np.isfinite(score).all():  # it diverges, and is told so by its losses
                yield Step(x[: self.batch_size], y[: self.batch_size], taken / self.total, forwarded=len(y))
                continue
            self._heed(score)
            share = score / score.sum()
            chosen = self.rng.choice(len(y), self.batch_size, p=share)
            weights = torch.from_numpy((1 / (len(y) * share[chosen])).astype(np.float32))
            yield Step(x[chosen], y[chosen], taken / self.total, weights=weights, forwarded=len(y))

    def after(self, step: Step, losses: Tensor, logits: Tensor) -> None:  # noqa: ARG002
        if step.handle == "plain":  # scored by the step's own forward pass, as in their code
            self._heed(_last_layer(logits, step.labels).double().numpy())

    def _heed(self, score: np.ndarray) -> None:
        share = score / score.sum()
        now = math.sqrt(len(share) * float(share @ share))
        self._tau = self.smoothing * self._tau + (1 - self.smoothing) * now


class RhoLoss(Peer):
    """Mindermann et al., ICML 2022, arXiv 2206.07137: the b of 10 b with the highest loss over an irreducible one.

    The irreducible losses come from two models, each trained on one half and asked about the other (the paper's
    variant without a holdout set), as they were when its loss there was lowest. What they cost counts from the start,
    in seconds and in examples.
    """

    hyper = ("fraction", "reference_epochs")
    fraction = 0.1
    reference_epochs = 5
    """at most; with wrong labels the loss on the other half rises sooner"""

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task, seed)
        self._seed = seed

    def steps(self, model: nn.Module) -> Iterator[Step]:
        irreducible, trained, asked = self._irreducible()
        wide = self.shuffled(round(self.batch_size / self.fraction))
        for taken in range(self.total):
            rows, x, y = next(wide)
            excess = _losses(model, x, y) - irreducible[torch.from_numpy(rows)]
            best = excess.topk(min(self.batch_size, len(y))).indices
            forwarded = len(y) + trained + asked
            yield Step(x[best], y[best], taken / self.total, forwarded=forwarded, backpropagated=trained)
            trained = asked = 0

    def _irreducible(self) -> tuple[Tensor, int, int]:
        """(n,) losses by models that did not see the example; examples that these were trained on, and asked about."""
        loss_n, trained, asked = torch.empty(len(self.train)), 0, 0
        half_n = self.rng.permutation(len(self.train)) % 2
        for half in (0, 1):
            model = self.task.make_model(1000 + self._seed + half)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            seen, unseen = np.flatnonzero(half_n == half), np.flatnonzero(half_n != half)
            lowest = math.inf
            for _ in range(self.reference_epochs):
                for x, y in fetch(self.train, self.rng.permutation(seen), self.batch_size):
                    optimizer.zero_grad()
                    functional.cross_entropy(model(x), y).backward()
                    optimizer.step()
                losses = torch.cat([_losses(model, x, y) for x, y in fetch(self.train, unseen, EVALUATION_ROWS)])
                trained, asked = trained + len(seen), asked + len(unseen)
                if losses.mean() >= lowest:
                    break
                lowest = float(losses.mean())
                loss_n[torch.from_numpy(unseen)] = losses
        return loss_n, trained, asked


class Kakurenbo(Peer):
    """Nguyen et al., NeurIPS 2023, arXiv 2310.10102: each epoch hides low losses, but moves back what is not known
    well.

    Up to 30 % hidden, moved back below a confidence of 0.7 or when wrong, hidden losses refreshed at the epoch's end,
    learning rate times 1/(1 - hidden share), maximum decaying 1, 1, .8, .6, .4 over the fifths of the run (over the
    steps of their learning rate, which ours has none of). The budget are epochs.
    """

    hyper = ("most", "confidence")
    most = 0.3
    confidence = 0.7
    decay = (1.0, 1.0, 0.8, 0.6, 0.4)

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task, seed)
        self.loss_n = np.full(len(self.train), math.inf)

    def steps(self, model: nn.Module) -> Iterator[Step]:
        epochs = self.total * self.batch_size / len(self.train)
        extra = 0
        for epoch in range(math.ceil(epochs)):
            hidden = self._hidden(epoch / epochs) if epoch else np.empty(0, dtype=np.intp)
            share = min(1.0, epochs - epoch)
            order = self.rng.permutation(np.setdiff1d(np.arange(len(self.train)), hidden))
            order = order[: max(1, round(share * len(order)))]
            scale = 1 / (1 - len(hidden) / len(self.train))
            for i, (x, y) in enumerate(fetch(self.train, order, self.batch_size)):
                ids = order[i * self.batch_size : i * self.batch_size + len(y)]
                progress = (epoch + share * i * self.batch_size / len(order)) / epochs
                yield Step(x, y, progress, scale=scale, handle=ids, forwarded=extra)
                extra = 0
            if epoch + 1 >= epochs:
                return  # nobody asks for the losses of what the last epoch hid
            if len(hidden):
                losses = [_losses(model, x, y) for x, y in fetch(self.train, hidden, EVALUATION_ROWS)]
                self.loss_n[hidden] = torch.cat(losses).numpy()
            extra = len(hidden)

    def _hidden(self, progress: float) -> np.ndarray:
        most = int(self.most * self.decay[min(4, int(5 * progress))] * len(self.loss_n))
        lowest = np.argpartition(self.loss_n, most)[:most]
        # A share above the confidence, and above one half, is also the prediction.
        return lowest[np.exp(-self.loss_n[lowest]) >= self.confidence]

    def after(self, step: Step, losses: Tensor, logits: Tensor) -> None:  # noqa: ARG002
        self.loss_n[step.handle] = losses.numpy()


PEERS = {
    "shuffle": Shuffle,
    "infobatch (peer)": InfoBatch,
    "selective_backprop (peer)": SelectiveBackprop,
    "selective_backprop beta 1 (peer)": SelectiveBackpropHalf,
    "presampling (peer)": Presampling,
    "rho_loss (peer)": RhoLoss,
    "kakurenbo (peer)": Kakurenbo,
}


@torch.inference_mode()
def _scoring_logits(model: nn.Module, x: Tensor) -> Tensor:
    """(b, classes) float32 of a pass that nothing is trained by, as fast as our own passes of that kind."""
    precision = fast_precision(model, x.device)
    with torch.autocast(x.device.type, precision, enabled=precision is not None):
        return model(x).float()


def _losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(b,) of a scoring pass."""
    return functional.cross_entropy(_scoring_logits(model, x), y, reduction="none")


def _last_layer(logits: Tensor, y: Tensor) -> Tensor:
    """||softmax(z) - y||, their score."""
    delta = torch.softmax(logits, 1)
    delta[torch.arange(len(y)), y] -= 1
    return delta.norm(dim=1).clamp(min=1e-12)
