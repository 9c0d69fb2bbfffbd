"""Models are judged by all images of a set, some at a time, and are afterwards as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from trainer_examples.models import EVALUATED_ROWS, accuracy, full_loss, logits_of

IMAGES = torch.randn(2 * EVALUATED_ROWS + 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def model_of() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))


def test_all_images_count_also_those_of_the_last_part() -> None:
    model = model_of().eval()
    right = model(IMAGES).argmax(1)
    labels = right.clone()
    labels[-1] = (labels[-1] + 1) % 3
    labels[:5] = (labels[:5] + 1) % 3
    data = TensorDataset(IMAGES, labels)
    assert accuracy(model, data) == pytest.approx(1 - 6 / len(IMAGES))
    assert full_loss(model, data) == pytest.approx(functional.cross_entropy(model(IMAGES), labels).item(), rel=1e-5)


def test_the_mode_of_evaluation_is_for_the_evaluation_alone() -> None:
    model = model_of()
    frozen = model[3].eval()
    statistics = frozen.running_mean.clone()
    first, again = logits_of(model, IMAGES), logits_of(model, IMAGES)
    torch.testing.assert_close(first, again, rtol=0, atol=0)  # nothing is dropped out
    assert not first.requires_grad
    assert [module.training for module in model.modules()] == [True, True, True, True, False]
    assert torch.equal(frozen.running_mean, statistics)
