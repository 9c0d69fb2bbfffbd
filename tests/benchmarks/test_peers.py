"""The papers' formulas, on values small enough to check by hand: what is chosen, with which weights, at which rate."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.training.peers import (
    InfoBatch,
    Kakurenbo,
    Presampling,
    RhoLoss,
    SelectiveBackprop,
    SelectiveBackpropHalf,
)
from benchmarks.training.tasks import SETTINGS, Examples, Task

CLASSES = 4


class Identity(nn.Module):
    """The images are the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))  # float64: scored in no lower precision

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def task_of(logits: torch.Tensor, *, batch_size: int, steps: int) -> Task:
    """Every label is 0."""
    examples = Examples(logits.reshape(-1, 1, 1, CLASSES), torch.zeros(len(logits), dtype=torch.int64))
    setting = replace(SETTINGS["digits_mlp"], batch_size=batch_size, steps=steps)
    shape = (1, 1, CLASSES)
    return Task(
        setting=setting, train=examples, test=examples, validation=examples, image_shape=shape, num_classes=CLASSES
    )


def logits_of(losses: list[float]) -> torch.Tensor:
    """(n, 4) logits with these cross-entropies for label 0, the rest of the probability spread evenly."""
    share = torch.exp(-torch.tensor(losses, dtype=torch.float64))
    rest = ((1 - share) / (CLASSES - 1)).unsqueeze(1).expand(-1, CLASSES - 1)
    return torch.cat([share.unsqueeze(1), rest], 1).log().float()


def test_infobatch_drops_half_of_what_is_below_the_mean_and_doubles_the_weight_of_the_other_half():
    method = InfoBatch(task_of(torch.zeros(8, CLASSES), batch_size=2, steps=40), seed=0)
    rows, weights = method._kept(ends=0.05)
    assert rows.tolist() == list(range(8)) and (weights == 1).all(), "nothing is known yet"
    method.loss_n = np.array([0.1, 5.0, 0.2, 6.0, 0.3, 7.0, 0.4, 8.0])
    for _ in range(20):
        rows, weights = method._kept(ends=0.875)
        assert set(rows) > {1, 3, 5, 7}
        assert len(rows) == 6
        assert weights.tolist() == [2, 1, 2, 1, 2, 1, 2, 1]
    rows, weights = method._kept(ends=0.88)
    assert rows.tolist() == list(range(8)) and (weights == 1).all(), "the last eighth is whole"


def test_infobatch_weighs_what_it_trains_on_by_the_losses_that_it_saw():
    method = InfoBatch(task_of(torch.zeros(4, CLASSES), batch_size=4, steps=3), seed=0)
    seen = []
    for step in method.steps(nn.Identity()):
        seen.append(step.weights.tolist())
        method.after(
            step, torch.tensor([0.1, 0.2, 5.0, 6.0])[torch.from_numpy(np.arange(len(step.labels)))], step.labels
        )
    assert seen[0] == [1, 1, 1, 1]
    assert len(seen[1]) == 3 and sorted(seen[1]) == [1, 1, 2]
    assert seen[2] == [1, 1, 1, 1]


def test_of_five_epochs_of_infobatch_the_last_is_whole():
    method = InfoBatch(task_of(torch.zeros(8, CLASSES), batch_size=2, steps=20), seed=0)
    method.loss_n = np.array([0.1, 5.0, 0.2, 6.0, 0.3, 7.0, 0.4, 8.0])
    weights = [step.weights.tolist() for step in method.steps(nn.Identity())]
    assert len(weights) == 4 * 3 + 4, "four of six examples, then all eight"
    assert weights[-4:] == [[1.0, 1.0]] * 4


@pytest.mark.parametrize(("kind", "power"), [(SelectiveBackprop, 3), (SelectiveBackpropHalf, 1)])
def test_selective_backprop_takes_each_with_the_power_of_its_percentile(kind, power):
    losses = (1 + np.arange(64)) / 40
    method = kind(task_of(logits_of(losses.tolist()), batch_size=64, steps=300), seed=0)
    steps = method.steps(Identity())
    next(steps)  # the first epoch selects everything
    taken = list(islice(steps, 150))
    trained = -torch.log_softmax(torch.cat([step.images.flatten(1) for step in taken]), 1)[:, 0]
    rank = (trained * 40).round().int().numpy()
    count = np.bincount(rank, minlength=65)[1:]
    expected = ((1 + np.arange(64)) / 64) ** power
    assert count / count.sum() == pytest.approx(expected / expected.sum(), abs=0.006)
    passes = sum(step.forwarded for step in taken) / 64
    assert count.sum() / passes == pytest.approx(expected.sum(), rel=0.05)


def test_presampling_draws_by_the_last_layers_gradient_and_weighs_by_its_inverse():
    logits = logits_of([0.05, 0.5, 1.0, 3.0, 0.05, 0.5, 1.0, 3.0, 0.05, 0.5, 1.0, 3.0])
    method = Presampling(task_of(logits, batch_size=4, steps=1000), seed=0)
    delta = torch.softmax(logits, 1)
    delta[:, 0] -= 1
    norm = delta.norm(dim=1)
    share = norm / norm.sum()
    method._tau = 9.0  # above the threshold: it scores
    counts, weights = torch.zeros(12), {}
    for step in islice(method.steps(Identity()), 800):
        method._tau = 9.0
        place = torch.cdist(step.images.flatten(1), logits).argmin(1)
        counts += torch.bincount(place % 4, minlength=12)
        weights |= dict(zip((place % 4).tolist(), step.weights.tolist(), strict=True))
        assert step.forwarded == 12
    for kind in range(4):
        assert weights[kind] == pytest.approx(1 / (12 * float(share[kind])), rel=1e-4)
        assert counts[kind] / counts.sum() == pytest.approx(3 * float(share[kind]), abs=0.03)


def test_presampling_trains_on_plain_batches_until_the_scores_are_uneven():
    even = Presampling(task_of(torch.zeros(12, CLASSES), batch_size=4, steps=20), seed=0)
    for step in even.steps(Identity()):
        assert step.weights is None and step.forwarded == 0
        even.after(step, torch.zeros(4), step.images.flatten(1))
    assert even._tau < even.threshold


def test_rho_loss_takes_the_tenth_with_the_highest_loss_over_the_irreducible_one(monkeypatch):
    losses = np.linspace(0.1, 3.0, 40)
    irreducible = torch.from_numpy(np.where(np.arange(40) >= 20, losses, 0.0)).float()
    method = RhoLoss(task_of(logits_of(losses.tolist()), batch_size=4, steps=3), seed=0)
    monkeypatch.setattr(method, "_irreducible", lambda: (irreducible, 7, 5))
    first, *others = method.steps(Identity())
    chosen = -torch.log_softmax(first.images.flatten(1), 1)[:, 0]
    assert sorted(chosen.tolist()) == pytest.approx(losses[16:20].tolist(), abs=1e-5)
    assert (first.forwarded, first.backpropagated) == (40 + 7 + 5, 7), "the reference models count once"
    assert {(step.forwarded, step.backpropagated) for step in others} == {(40, 0)}


def test_kakurenbo_hides_the_lowest_losses_of_which_it_is_sure_and_raises_the_rate():
    method = Kakurenbo(task_of(torch.zeros(10, CLASSES), batch_size=5, steps=20), seed=0)
    sure, unsure = -math.log(0.9), -math.log(0.6)
    method.loss_n = np.array([sure, unsure, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, sure])
    assert sorted(method._hidden(0.0)) == [0, 9], "30 % at most, but one of the three is not known well enough"
    method.loss_n = np.full(10, sure) + np.arange(10) * 1e-6
    assert [len(method._hidden(progress)) for progress in (0.0, 0.3, 0.5, 0.7, 0.9)] == [3, 3, 2, 1, 1]


def test_kakurenbo_raises_the_rate_by_what_it_leaves_out_and_looks_at_it_again():
    method = Kakurenbo(task_of(logits_of([0.01] * 5 + [2.0] * 5), batch_size=5, steps=20), seed=0)
    scales, shown = [], []
    for step in method.steps(Identity()):
        scales.append(step.scale)
        shown.append(step.forwarded)
        method.after(step, -torch.log_softmax(step.images.flatten(1), 1)[:, 0], step.labels)
    assert scales[:2] == [1, 1]
    assert scales[2] == pytest.approx(1 / 0.7)
    assert sum(shown) > 0, "what was hidden is run forward at the epoch's end"
