"""Cascading sums: weights that sum to one on the way down, and batches that are mixed by them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import sampler_client as sampler
from sampler_client.mixing import CascadingSum, group_weights, mixed_loss


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
def test_weights_sum_to_one_and_end_with_one_group(groups):
    for step in range(101):
        weights = group_weights(step / 100, groups)
        assert len(weights) == groups
        assert sum(weights) == pytest.approx(1)
        assert all(a >= b >= 0 for a, b in pairwise(weights))
    assert group_weights(0, groups) == pytest.approx([1 / groups] * groups)
    assert group_weights(1, groups) == [1.0] + [0.0] * (groups - 1)


def test_the_last_group_fades_evenly_and_nothing_jumps_between_stages():
    weights = [group_weights(step / 1000, 4) for step in range(1001)]
    moved = [abs(a - b) for one, two in pairwise(weights) for a, b in zip(one, two, strict=True)]
    assert max(moved) < 0.002
    assert group_weights(1 / 6, 4) == pytest.approx([7 / 24, 7 / 24, 7 / 24, 1 / 8]), "half of its quarter is gone"
    assert group_weights(1 / 3, 4) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_a_batch_is_summed_group_by_group():
    inputs = torch.arange(7.0).reshape(7, 1)
    mixed = CascadingSum(3, 4)(inputs, torch.tensor([0, 1, 2, 3, 0, 1, 2]), 0.0, weights=torch.arange(7.0))
    assert mixed.inputs.flatten().tolist() == pytest.approx(
        [(0 + 2 + 4) / 3, (1 + 3 + 5) / 3]
    )  # the seventh is left over
    assert mixed.targets.tolist() == [pytest.approx([2 / 3, 0, 1 / 3, 0]), pytest.approx([0, 2 / 3, 0, 1 / 3])]
    assert mixed.loss_weights.tolist() == pytest.approx([2, 3])


def test_the_end_of_the_cascade_is_plain_training():
    inputs, labels = torch.randn(6, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    mixed = CascadingSum(3, 3)(inputs, labels, 1.0)
    assert torch.equal(mixed.inputs, inputs)
    assert torch.equal(mixed.targets.argmax(1), labels)
    assert mixed.loss_weights.tolist() == [1.0] * 6


def test_the_loss_is_the_binary_cross_entropy_of_all_classes():
    logits, targets = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.25, 0.75]])
    share = torch.sigmoid(logits)
    expected = -(targets * share.log() + (1 - targets) * (1 - share).log()).sum(1)
    torch.testing.assert_close(mixed_loss(logits, targets), expected)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CascadingSum(0, 10), "groups must be at least 1, got 0"),
        (lambda: CascadingSum(2, 1), "num_classes must be at least 2, got 1"),
        (lambda: group_weights(1.2, 3), r"progress must lie in \[0, 1\], got 1.2"),
        (lambda: CascadingSum(2, 3)(torch.ones(4, 1), torch.ones(4), 0.5), "targets of a regression"),
        (lambda: CascadingSum(2, 3)(torch.ones(4, 1), torch.ones(3, dtype=torch.int64), 0.5), "each of 4 examples"),
        (lambda: CascadingSum(2, 3)(torch.ones(2, 1), torch.tensor([0, 3]), 0.5), r"0 … 2, got 0 … 3"),
        (lambda: CascadingSum(4, 3)(torch.ones(3, 1), torch.tensor([0, 1, 2]), 0.0), "fewer than the 4 groups"),
        (lambda: mixed_loss(torch.ones(2, 3), torch.ones(2, 4)), r"got \(2, 3\) and \(2, 4\)"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(sampler.ConfigError, match=words):
        call()
