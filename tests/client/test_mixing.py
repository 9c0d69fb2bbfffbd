"""Cascading sums: weights that sum to one on the way down, and batches that are mixed by them."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_client import mixing
from sampler_client.mixing import CascadingSum, group_weights, mixed_loss, tuple_order
from sampler_client.testing import fake_attach


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


def tuples_of(kinds, groups, tuples):
    """The kinds in each tuple, and of the examples that none needs."""
    order = tuple_order(kinds, groups, tuples)
    assert sorted(order.tolist()) == list(range(len(kinds))), "a permutation"
    size = len(kinds) // groups
    ordered = torch.as_tensor(kinds)[order]
    slices = ordered[: size * groups].reshape(groups, size)
    return [tuple(column.tolist()) for column in slices.T], ordered[size * groups :].tolist()


def test_tuples_of_different_kinds_meet_none_twice():
    kinds = [3, 3, 3, 0, 0, 7, 7, 7, 0, 5, 5, 5]
    mixed, left = tuples_of(kinds, 4, "different")
    assert left == []
    assert all(len(set(each)) == 4 for each in mixed)


def test_a_kind_that_fills_half_of_a_batch_is_spread_evenly():
    mixed, _ = tuples_of([1] * 6 + [2, 3, 4, 5, 6, 7], 4, "different")
    assert [each.count(1) for each in mixed] == [2, 2, 2]


def test_tuples_of_the_same_kind_are_as_many_as_there_can_be():
    kinds = [4, 9, 4, 9, 9, 4, 2, 4, 9, 9, 2, 4, 4]
    mixed, left = tuples_of(kinds, 2, "same")
    assert left == [4], "the last of the batch, which no tuple needs"
    assert sorted(each for each in mixed if len(set(each)) == 1) == [(2, 2), (4, 4), (4, 4), (9, 9), (9, 9)]
    assert sorted(each for each in mixed if len(set(each)) == 2) == [(4, 9)]


def test_a_cluster_that_is_unknown_is_like_no_other():
    kinds = np.array([-1, 3, -1, 3, -1, -1], dtype=np.int32)
    mixed, _ = tuples_of(kinds, 2, "same")
    assert (3, 3) in mixed
    assert [each.count(3) for each in tuples_of(kinds, 3, "different")[0]] == [1, 1]
    # Were the unknown a cluster, the two that come first would be a tuple.
    assert tuple_order([-1, -1, -1, 3, 3, -1], 2, "same").tolist()[0::3] == [3, 4]


def test_order_among_equals_is_that_of_the_batch():
    assert tuple_order([5, 5, 5, 5], 2, "same").tolist() == [0, 2, 1, 3]
    assert tuple_order([5, 5, 5, 5], 2, "different").tolist() == [0, 1, 2, 3]


def test_classes_of_one_tuple_stay_whole_and_weights_go_with_their_examples():
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    mixer = CascadingSum(2, 3, tuples="same")
    mixed = mixer(labels[:, None].float(), labels, 0.0, weights=torch.tensor([1.0, 2, 3, 5, 4, 3]), kinds=labels)
    assert sorted(mixed.targets.tolist()) == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert mixed.inputs.flatten().tolist() == mixed.targets.argmax(1).tolist()
    assert mixed.loss_weights.tolist() == [2.0, 3.0, 4.0]


def test_shares_of_one_class_do_not_sum_to_more_than_all_of_it():
    labels = torch.ones(8, dtype=torch.int64)
    mixer = CascadingSum(4, 2)
    for step in range(100):
        mixed = mixer(torch.ones(8, 1), labels, step / 100)
        assert mixed.targets.max() <= 1
        mixed_loss(torch.zeros(len(mixed.targets), 2), mixed.targets)


def test_clusters_of_a_batch_say_what_is_mixed_also_after_groups_have_gone():
    clusters, weights = np.repeat(np.arange(3, dtype=np.int32), 4), np.ones(12, dtype=np.float32)
    labels = torch.from_numpy(clusters).long()
    clusters.flags.writeable = weights.flags.writeable = False  # as a batch's are
    mixer = CascadingSum(3, 3, tuples="different")
    for progress, active in ((0.0, 3), (0.5, 2)):
        mixed = mixer(torch.ones(12, 1), labels, progress, weights, kinds=clusters)
        assert mixer.active(progress) == active
        assert ((mixed.targets > 0).sum(1) == active).all()


def test_a_loops_batches_are_mixed_with_their_weights_and_clusters():
    images, labels = torch.rand(32, 3), torch.arange(32) % 4
    plain = DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=True)
    mixer, model = CascadingSum(2, 4, tuples="different"), torch.nn.Linear(3, 4)
    for (x, y), batch in fake_attach(plain, weights=np.linspace(0.5, 1.5, 32)):
        mixed = mixer(x, y, 0.0, weights=batch.weights, kinds=batch.cluster_ids)
        (mixed_loss(model(mixed.inputs), mixed.targets) * mixed.loss_weights).mean().backward()
        assert mixed.inputs.shape == (4, 3)
        assert mixed.loss_weights.mean() == pytest.approx(batch.weights.mean())


def test_kinds_that_nobody_ever_knows_are_warned_of_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mixing, "WARNED_AFTER", 3)
    mixer, unknown, known = CascadingSum(2, 2, tuples="same"), torch.full((4,), -1), torch.tensor([-1, -1, -1, 0])
    batch = torch.ones(4, 1), torch.ones(4, dtype=torch.int64), 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kinds in (unknown, unknown, known, unknown, unknown):
            mixer(*batch, kinds=kinds)
    with pytest.warns(UserWarning, match="tuples='same' has had no effect for 3 batches"):
        mixer(*batch, kinds=unknown)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixer(*batch, kinds=unknown)


def test_logits_of_a_training_that_diverged_have_a_loss_that_says_so():
    losses = mixed_loss(torch.tensor([[math.nan, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert losses.isnan().tolist() == [True, False]


@pytest.mark.parametrize(("progress", "active"), [(0.0, 4), (0.2, 4), (0.34, 3), (0.9, 2), (1.0, 1)])
def test_so_many_groups_are_active(progress, active):
    assert CascadingSum(4, 2).active(progress) == active


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CascadingSum(0, 10), "groups must be at least 1, got 0"),
        (lambda: CascadingSum(2, 1), "num_classes must be at least 2, got 1"),
        (lambda: CascadingSum(math.nan, 3), "groups must be a whole number, got nan"),  # pyright: ignore[reportArgumentType]
        (lambda: CascadingSum(2.5, 3), "groups must be a whole number, got 2.5"),  # pyright: ignore[reportArgumentType]
        (lambda: CascadingSum(2, math.nan), "num_classes must be a whole number, got nan"),  # pyright: ignore[reportArgumentType]
        (lambda: group_weights(0.5, math.nan), "groups must be a whole number, got nan"),  # pyright: ignore[reportArgumentType]
        (lambda: group_weights("half", 3), "progress must be a number, got 'half'"),  # pyright: ignore[reportArgumentType]
        (lambda: group_weights(1.2, 3), r"progress must lie in \[0, 1\], got 1.2"),
        (lambda: CascadingSum(2, 3)(torch.ones(4, 1), torch.ones(4), 0.5), "targets of a regression"),
        (lambda: CascadingSum(2, 3)(torch.ones(4, 1), torch.ones(3, dtype=torch.int64), 0.5), "each of 4 examples"),
        (lambda: CascadingSum(2, 3)(torch.ones(2, 1), torch.tensor([0, 3]), 0.5), r"0 … 2, got 0 … 3"),
        (lambda: CascadingSum(4, 3)(torch.ones(3, 1), torch.tensor([0, 1, 2]), 0.0), "fewer than the 4 groups"),
        (lambda: mixed_loss(torch.ones(2, 3), torch.ones(2, 4)), r"got \(2, 3\) and \(2, 4\)"),
        (
            lambda: mixed_loss(torch.ones(1, 2), torch.tensor([[0.5, 2.5]])),
            r"lie in \[0, 1\], got 0.5 … 2.5.*regression",
        ),
        (lambda: mixed_loss(torch.ones(1, 2), torch.tensor([[0.5, math.nan]])), r"lie in \[0, 1\], got nan"),
        (lambda: group_weights(math.nan, 3), r"progress must lie in \[0, 1\], got nan"),
        (lambda: CascadingSum(2, 3)(torch.ones(2, 1, dtype=torch.uint8), torch.tensor([0, 1]), 0.5), "got torch.uint8"),
        (
            lambda: CascadingSum(2, 3)(torch.tensor([1, math.nan]), torch.tensor([0, 1]), 0.5),
            "inputs .* finite, got nan",
        ),
        (
            lambda: CascadingSum(2, 3)(torch.ones(2), torch.tensor([0, 1]), 0.5, weights=[1.0, -2.0]),
            "weights must be 2 finite numbers .* least of -2",
        ),
        (
            lambda: CascadingSum(2, 3)(torch.ones(2), torch.tensor([0, 1]), 0.5, weights=[1.0, 1.0, 1.0]),
            r"weights must be 2 .* got \(3,\)",
        ),
        (lambda: CascadingSum(2, 3, tuples="alike"), "'different', 'same' or None, got 'alike'"),
        (
            lambda: CascadingSum(2, 3, tuples="same")(torch.ones(2), torch.tensor([0, 1]), 0.5),
            "kinds must be 2, .* got None: tuples='same' needs batch.cluster_ids",
        ),
        (lambda: tuple_order([0.5, 1.0], 2, "same"), r"whole numbers, got torch.float64 of shape \(2,\)"),
        (lambda: tuple_order(["a", "b"], 2, "same"), r"kinds must be numbers, got \['a', 'b'\]"),
        (
            lambda: CascadingSum(2, 3, tuples="same")(torch.ones(2), torch.tensor([0, 1]), 0.5, kinds=3),
            r"kinds must be a vector of whole numbers, got .* of shape \(\)",
        ),
        (
            lambda: CascadingSum(2, 3)(torch.ones(2), torch.tensor([0, 1]), 0.5, weights=["a", "b"]),
            r"weights must be numbers, got \['a', 'b'\]",
        ),
        (lambda: CascadingSum(2, 3)(torch.ones(2), np.array([0, 1]), 0.5), "labels must be a tensor, got ndarray"),  # pyright: ignore[reportArgumentType]
        (lambda: CascadingSum(2, 3)([1.0, 2.0], torch.tensor([0, 1]), 0.5), "inputs must be a tensor, got list"),  # pyright: ignore[reportArgumentType]
        (lambda: tuple_order([0, 1], 0, "same"), "groups must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(sampler.ConfigError, match=words):
        call()
