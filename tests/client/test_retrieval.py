"""Hinges over hard negatives and recall, against what a person can count."""

from __future__ import annotations

import pytest
import torch

import sampler_client as sampler
from sampler_client.retrieval import CollapseDetector, MaxOfHinges, PairSketches, recall_at_k, warm_up


def by_hand(left, right, margin, hardness, group):
    """(b,) losses by the formula, one pair after another."""
    left, right = torch.nn.functional.normalize(left, dim=1), torch.nn.functional.normalize(right, dim=1)
    losses = []
    for i in range(len(left)):
        others = [j for j in range(len(left)) if group[j] != group[i]]
        own = float(left[i] @ right[i])
        rights = [max(0.0, margin - own + float(left[i] @ right[j])) for j in others] or [0.0]
        lefts = [max(0.0, margin - own + float(left[j] @ right[i])) for j in others] or [0.0]
        losses.append(hardness * (max(rights) + max(lefts)) + (1 - hardness) * (sum(rights) + sum(lefts)))
    return torch.tensor(losses)


@pytest.mark.parametrize("hardness", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("group", [None, [0, 1, 1, 2, 3, 0]])
def test_losses_are_those_of_the_formula(hardness, group):
    torch.manual_seed(0)
    left, right = torch.randn(6, 4), torch.randn(6, 4)
    found = MaxOfHinges(0.2, hardness)(left, right, None if group is None else torch.tensor(group))
    torch.testing.assert_close(found, by_hand(left, right, 0.2, hardness, group or range(6)), rtol=1e-5, atol=1e-6)


def test_equal_embeddings_stand_on_the_plateau_and_a_separated_batch_has_no_loss():
    same = torch.ones(5, 3)
    assert MaxOfHinges(0.2)(same, same).tolist() == pytest.approx([0.4] * 5)
    assert MaxOfHinges(0.2)(torch.eye(5), torch.eye(5)).tolist() == [0.0] * 5


def test_the_gradient_pulls_a_pair_together_and_pushes_the_hardest_negative_away():
    torch.manual_seed(0)
    left, right = torch.randn(8, 4, requires_grad=True), torch.randn(8, 4, requires_grad=True)
    loss = MaxOfHinges(0.5)
    before = loss(left, right).sum()
    before.backward()
    with torch.no_grad():
        after = loss(left - 0.01 * left.grad, right - 0.01 * right.grad).sum()
    assert after < before


def test_recall_counts_partners_among_the_nearest_in_both_directions():
    left = torch.eye(4)
    right = torch.eye(4)[[0, 2, 1, 3]].clone()  # pairs 1 and 2 are swapped
    right[3] = torch.tensor([0.9, 0.0, 0.0, 0.5])  # nearest to pair 0's left, its own comes second
    found = recall_at_k(left, right, ks=(1, 2, 4), rows=3)
    assert found["left_to_right"][1] == pytest.approx(2 / 4)
    assert found["right_to_left"] == {1: pytest.approx(1 / 4), 2: pytest.approx(2 / 4), 4: 1.0}
    assert found["left_to_right"][4] == 1.0


def test_an_equivalent_partner_counts_as_found():
    left = torch.eye(3)
    right = torch.eye(3)[[1, 0, 2]]
    assert recall_at_k(left, right, ks=(1,))["left_to_right"][1] == pytest.approx(1 / 3)
    assert recall_at_k(left, right, ks=(1,), group=torch.tensor([7, 7, 8]))["left_to_right"][1] == 1.0


def test_an_item_of_several_pairs_is_one_item_on_either_side():
    images = torch.eye(2).repeat_interleave(5, 0)  # two images of five captions each
    captions = images.clone()
    captions[1] = torch.tensor([0.1, 0.9])  # nearer to the other image
    items, group = (torch.arange(10) // 5, torch.arange(10)), torch.arange(10) // 5
    found = recall_at_k(images, captions, ks=(1, 2), group=group, items=items)
    assert found["left_to_right"][1] == 1.0, "each image has a caption of its own that is nearest"
    assert found["right_to_left"] == {1: pytest.approx(9 / 10), 2: 1.0}, "the second of two images is the other one"
    counted_five_times = recall_at_k(images, captions, ks=(1, 2), group=group)["right_to_left"][2]
    assert counted_five_times == pytest.approx(9 / 10)
    assert recall_at_k(images, captions, ks=(10,), group=group, items=items)["right_to_left"][10] == 1.0
    with pytest.raises(sampler.ConfigError, match=r"one right number for each of 10 pairs, got shape \(3,\)"):
        recall_at_k(images, captions, ks=(1,), items=(items[0], torch.arange(3)))


ODD = torch.tensor([[1.0, 0.0, 0.0], [1.0, float("nan"), 0.0]])


@pytest.mark.parametrize("hardness", [0.0, 1.0])
@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_embeddings_that_are_not_finite_have_no_loss(side, pairs, hardness):
    sides = {"left": torch.ones(pairs, 3), "right": torch.ones(pairs, 3)} | {side: ODD[2 - pairs :]}
    words = f"^{side} must be finite; 1 of its {pairs} embeddings hold NaN or infinity"
    with pytest.raises(sampler.ConfigError, match=words):
        MaxOfHinges(hardness=hardness)(**sides)
    with pytest.raises(sampler.ConfigError, match=words):
        MaxOfHinges(hardness=hardness)(**sides | {side: sides[side].nan_to_num(torch.inf)})


def test_an_overflow_in_half_precision_is_left_to_the_scaler_of_gradients():
    odd = ODD.nan_to_num(torch.inf).half()
    assert not MaxOfHinges()(odd, torch.ones_like(odd)).isfinite().all()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_no_collapse_but_an_error(loss):
    with pytest.raises(sampler.ConfigError, match=f"hardest must be a finite loss, got {loss}"):
        CollapseDetector().collapsed(loss)
    with pytest.raises(sampler.ConfigError, match=f"margin must be (positive|finite), got {loss}"):
        CollapseDetector(margin=loss)


def test_hardness_rises_once_the_warm_up_is_over():
    assert [warm_up(p, begin=0.1, end=0.3) for p in (0.0, 0.1, 0.2, 0.3, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert warm_up(0.0, begin=0.0, end=0.0) == 1.0
    assert [warm_up(p, begin=0.2, end=0.2) for p in (0.0, 0.1, 0.2)] == [0, 0, 1], "all at once"


def test_a_collapse_is_noticed_after_as_many_batches_in_a_row():
    detector = CollapseDetector(0.2, patience=3)
    assert [detector.collapsed(loss) for loss in (0.4, 0.401, 0.3, 0.399, 0.4, 0.4, 0.4)] == [False] * 5 + [True] * 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MaxOfHinges(0.0), "margin must be positive, got 0.0"),
        (lambda: MaxOfHinges(hardness=2.0), r"hardness must lie in \[0, 1\], got 2.0"),
        (lambda: MaxOfHinges()(torch.ones(2, 3), torch.ones(3, 3)), r"got \(2, 3\) and \(3, 3\)"),
        (lambda: MaxOfHinges()(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3)), r"each of 2 pairs, .* \(3,\)"),
        (lambda: MaxOfHinges()(torch.ones(0, 3), torch.ones(0, 3)), r"one pair or more; got \(0, 3\)"),
        (lambda: warm_up(0.5, begin=0.6, end=0.3), "begin 0.6 and end 0.3"),
        (lambda: warm_up(1.5), r"progress must lie in \[0, 1\], got 1.5"),
        (lambda: warm_up(0.5, begin=float("nan")), r"begin must lie in \[0, 1\], got nan"),
        (lambda: warm_up(0.5, begin=10**400), r"begin must be a number, got 1000"),
        (lambda: warm_up(0.5, begin=b"0.5"), r"begin must be a number, got b'0.5'"),
        (lambda: CollapseDetector(patience=0), "patience must be at least 1, got 0"),
        (lambda: CollapseDetector(patience=1.5), "patience must be a whole number, got 1.5"),  # pyright: ignore[reportArgumentType]
        (lambda: CollapseDetector(tolerance=0.0), "tolerance must be positive, got 0.0"),
        (lambda: MaxOfHinges(float("inf")), "margin must be finite, got inf"),
        (lambda: MaxOfHinges("wide"), "margin must be a number, got 'wide'"),  # pyright: ignore[reportArgumentType]
        (lambda: MaxOfHinges(hardness=float("nan")), r"hardness must lie in \[0, 1\], got nan"),
        (
            lambda: MaxOfHinges()(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0.0, float("nan")])),
            "group must hold whole numbers, got torch.float32",
        ),
        (lambda: PairSketches(torch.ones(2, 3), torch.ones(2, 3), dim=1.5), "dim must be a whole number, got 1.5"),  # pyright: ignore[reportArgumentType]
        (lambda: recall_at_k(torch.ones(2, 3), torch.ones(2, 3), ks=(5,)), "ks must lie in 1 … 2"),
        (lambda: recall_at_k(torch.ones(2, 3), torch.ones(2, 3), ks=1), r"ks must hold one k .* \(1,\), got 1"),  # pyright: ignore[reportArgumentType]
        (
            lambda: MaxOfHinges()(torch.ones(2, 3).long(), torch.ones(2, 3)),
            "floating point, got torch.int64 and torch.f",
        ),
        (lambda: recall_at_k(torch.ones(2, 3), torch.ones(2, 3), ks=(0,)), "each of ks must be at least 1, got 0"),
        (
            lambda: recall_at_k(torch.ones(2, 3), torch.ones(2, 3), ks=(1.5,)),  # pyright: ignore[reportArgumentType]
            "each of ks must be a whole number, got 1.5",
        ),
        (lambda: recall_at_k(torch.ones(2, 3), ODD, ks=(1,)), "right must be finite; 1 of its 2 embeddings hold NaN"),
        (
            lambda: recall_at_k(torch.ones(2, 3), torch.ones(2, 3), ks=(1,), items=(torch.ones(2), torch.arange(2))),
            "items of the left must hold whole numbers, got torch.float32",
        ),
        (lambda: recall_at_k(torch.ones(0, 3), torch.ones(0, 3)), r"one pair or more; got \(0, 3\)"),
        (
            lambda: recall_at_k(torch.ones(2, 3), torch.ones(2, 3), ks=(1,), group=torch.ones(3)),
            r"each of 2 pairs, got shape \(3,\)",
        ),
        (lambda: recall_at_k(torch.ones(2, 3), torch.ones(2, 3), ks=(1,), rows=0), "rows must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(sampler.ConfigError, match=words):
        call()
