"""The comparison of cascading sums runs with equal budgets for all, and its methods are what they are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from unittest.mock import create_autospec

import pytest
import torch
import typer
from torch import Tensor, nn

from sampler_client.mixing import CascadingSum
from trainer_examples import cascading_sum
from trainer_examples.cascading_sum import ALPHA, BATCH, CLUSTERS, GROUPS, RADII, Method, Spent, Task
from trainer_examples.tuning import TUNING_SEED

CLASSES = 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the example has it: on a busy machine more of them only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def linear() -> tuple[nn.Module, Tensor]:
    """A model of images (b, 1, 1, 2), and what it computes: weights (2, 3) to multiply them with."""
    weights = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.8, -1.5]])
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, CLASSES, bias=False))
    model[1].weight = nn.Parameter(weights.T)
    return model, weights


def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Always the same images (count, 1, 1, 2) of all classes; kinds are not asked for."""
    place = torch.arange(count)
    images = torch.stack([place.sin(), (2 * place).cos()], 1)[:, None, None]
    return images, (place // 2) % CLASSES, torch.full((count,), -1)


def binary(logits: Tensor, shares: Tensor) -> float:
    """The mean loss of sigmoids (b, c) for classes' shares (b, c)."""
    found = logits.sigmoid()
    return float(-(shares * found.log() + (1 - shares) * (1 - found).log()).sum() / len(logits))


def test_without_mixing_losses_are_those_of_softmax_or_of_sigmoids() -> None:
    (model, weights), (images, labels, _) = linear(), draw(BATCH)
    logits, own = images.flatten(1) @ weights, torch.arange(BATCH)
    softmax = -(logits.exp() / logits.exp().sum(1, keepdim=True)).log()[own, labels].mean()
    assert cascading_sum.plain(model, draw, 0.0).item() == pytest.approx(softmax.item())
    sigmoids = binary(logits, torch.eye(CLASSES)[labels])
    assert cascading_sum.plain_binary(model, draw, 0.0).item() == pytest.approx(sigmoids)
    assert abs(softmax - sigmoids) > 0.1


def test_mixup_gives_each_label_the_share_of_its_image() -> None:
    (model, weights), (images, labels, _) = linear(), draw(BATCH)
    torch.manual_seed(3)
    share = float(torch.distributions.Beta(ALPHA, ALPHA).sample())
    other = torch.randperm(BATCH)
    assert 0.1 < abs(share - 0.5) < 0.4, "a share that could be taken for another would show nothing"
    logits = (share * images + (1 - share) * images[other]).flatten(1) @ weights
    both = share * torch.eye(CLASSES)[labels] + (1 - share) * torch.eye(CLASSES)[labels[other]]
    expected = -(both * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1).mean()
    torch.manual_seed(3)
    assert cascading_sum.mixup(model, draw, 0.0).item() == pytest.approx(expected.item())


def test_a_cascades_rows_are_means_of_as_many_images_as_have_weight() -> None:
    model, weights = linear()
    loss = cascading_sum.cascade(CLASSES)
    for progress, groups in ((0.0, 4), (0.25, 3), (0.5, 2), (0.75, 1), (1.0, 1)):  # it ends at three quarters
        images, labels, _ = draw(groups * BATCH)
        rows = images.flatten(1).reshape(groups, BATCH, 2).mean(0)
        shares = torch.eye(CLASSES)[labels].reshape(groups, BATCH, CLASSES).mean(0)
        assert loss(model, draw, progress).item() == pytest.approx(binary(rows @ weights, shares), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "tuples", "clusters"),
    [
        ("cascade", None, False),
        ("cascade, different", "different", False),
        ("cascade, same", "same", False),
        ("cascade, different clusters", "different", True),
        ("cascade, same cluster", "same", True),
    ],
)
def test_tuples_are_of_the_samplers_clusters_where_the_method_says_so_and_else_of_labels(
    monkeypatch: pytest.MonkeyPatch, name: str, tuples: Literal["different", "same"] | None, clusters: bool
) -> None:
    task, asked = Task.of(cascading_sum.load(per_class=10)), []

    class Mixer(CascadingSum):
        def __call__(self, inputs, labels, progress, weights=None, kinds=None):
            asked.append((self.tuples, labels, kinds))
            return super().__call__(inputs, labels, progress, weights, kinds)

    class Clustered(cascading_sum.Shuffled):
        """Each image is a cluster of its own, of a number that is no label's."""

        def __init__(self, task: Task, model: nn.Module, steps: int, seed: int) -> None:
            super().__init__(task)

        def draw(self, count: int) -> tuple[Tensor, Tensor]:
            at, _ = super().draw(count)
            return at, 100 + at

    monkeypatch.setattr(cascading_sum, "CascadingSum", Mixer)
    monkeypatch.setattr(cascading_sum, "Clustered", Clustered)
    cascading_sum.train(cascading_sum.methods(10)[name], task, rate=0.1, steps=4, seed=0)
    assert [len(labels) for _, labels, _ in asked] == [4 * BATCH, 3 * BATCH, 2 * BATCH, BATCH]
    for found, labels, kinds in asked:
        assert found == tuples
        assert torch.equal(labels, task.labels[kinds - 100] if clusters else kinds)


def test_methods_that_do_not_mix_by_kinds_are_what_they_are_called() -> None:
    methods = cascading_sum.methods(10)
    losses = [cascading_sum.plain, cascading_sum.plain_binary, cascading_sum.mixup]
    assert [methods[name] for name in ("no mixing", "no mixing, binary", "mixup")] == list(map(Method, losses))


def test_the_best_rate_has_the_lowest_mean_error_over_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {
        0.01: (0.1, 0.9, 0.1),  # the lowest of one and in the middle
        0.03: (0.4, 0.3, 0.2),
        0.1: (0.35, 0.35, 0.35),  # the lowest at worst
        0.3: (0.55, 0.4, 0.05),  # the lowest of the last
    }
    pixels, labels = torch.rand(20, 1, 2, 2), torch.arange(20)
    task = Task(
        name="numbered", scale=cascading_sum.Pixels(pixels), num_classes=20,
        pixels=pixels, labels=labels, test_pixels=pixels, test_labels=labels,
    )  # fmt: skip
    method = Method(cascading_sum.plain)

    def train(used: Method, part: Task, *, rate: float, steps: int, seed: int) -> tuple[float, None]:
        assert (used, steps, seed) == (method, 7, TUNING_SEED)
        assert len(part.labels) == 16
        return rate, None

    def error(rate: float, images: Tensor, held_out: Tensor) -> float:
        fold = int(held_out[0])
        assert held_out.tolist() == list(range(fold, 20, 5))
        assert torch.equal(images, pixels[held_out])
        return errors[rate][fold]

    monkeypatch.setattr(cascading_sum, "RATES", tuple(errors))
    monkeypatch.setattr(cascading_sum, "FOLDS", 3)
    monkeypatch.setattr(cascading_sum, "train", create_autospec(cascading_sum.train, side_effect=train))
    monkeypatch.setattr(cascading_sum, "error", create_autospec(cascading_sum.error, side_effect=error))
    assert cascading_sum.best_rate(method, task, 7) == 0.03


def test_attacks_change_images_within_their_radius_and_models_err_more(monkeypatch: pytest.MonkeyPatch) -> None:
    radii, some, judged = (0.02, 0.1), 50, []
    of = cascading_sum.error

    def error(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
        judged.append((model, pixels, labels))
        return of(model, pixels, labels)

    monkeypatch.setattr(cascading_sum, "RADII", radii)
    monkeypatch.setattr(cascading_sum, "ATTACKED", some)
    monkeypatch.setattr(cascading_sum, "error", error)
    task = Task.of(cascading_sum.load(per_class=20))
    run = cascading_sum.run_of("plain", Method(cascading_sum.plain), task, rate=0.1, steps=60, seed=0)
    model, clean = judged[0][0], task.test_pixels[:some]
    assert run.error == of(model, task.test_pixels, task.test_labels)
    attacked = [pixels for _, pixels, _ in judged if len(pixels) == some]
    for radius, pixels in zip(radii, attacked, strict=True):
        moved = (pixels - clean).abs().flatten(1).amax(1)
        assert 0 < moved.min() <= moved.max() <= radius + 1e-6
        assert 0 <= pixels.min() <= pixels.max() <= 1
    assert run.attacked == [of(model, pixels, task.test_labels[:some]) for pixels in attacked]
    unchanged = of(model, clean, task.test_labels[:some])
    assert unchanged <= run.attacked[0] < run.attacked[1]


def test_every_method_trains_on_as_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = []

    def best_rate(method: Method, task: Task, steps: int) -> float:
        assert steps == 400 * 3 // BATCH // 2
        tuned.append(method)
        return len(tuned) / 100

    monkeypatch.setattr(cascading_sum, "best_rate", best_rate)
    monkeypatch.setattr(cascading_sum, "ATTACKED", 20)
    runs = cascading_sum.main(per_class=40, epochs=3, seeds=2, json=tmp_path / "result.json")
    methods = list(dict.fromkeys(run.method for run in runs))
    assert methods == [
        "no mixing", "no mixing, binary", "mixup", "cascade", "cascade, different", "cascade, same",
        "cascade, different clusters", "cascade, same cluster",
    ]  # fmt: skip
    assert [run.rate for run in runs] == [at / 100 for at in range(1, 9) for _ in range(2)], "each method has its own"
    assert {run.rows for run in runs} == {400 * 3 // BATCH * BATCH}
    for run in runs:
        assert run.sketched == (7 * BATCH if "cluster" in run.method else 0)
        assert (
            run.images == run.rows
            if not run.method.startswith("cascade")
            else run.rows < run.images + GROUPS * run.sketched < GROUPS * run.rows
        )
        assert 0 <= run.error <= 1
        assert len(run.attacked) == len(RADII)
    printed = capsys.readouterr().out
    assert all(method in printed for method in methods)
    written = json.loads((tmp_path / "result.json").read_text())
    assert len(written["rows"]) == 16
    mean = sum(run.error for run in runs if run.method == "mixup") / 2
    assert written["headline"]["error, mixup"] == pytest.approx(mean)


def test_the_baseline_learns() -> None:
    task = Task.of(cascading_sum.load())
    model, spent = cascading_sum.train(Method(cascading_sum.plain), task, rate=0.1, steps=60, seed=0)
    assert spent == Spent(rows=60 * BATCH, sketched=0, images=60 * BATCH)
    assert cascading_sum.error(model, task.test_pixels, task.test_labels) < 0.2
    assert 0 <= task.pixels.min() < task.pixels.max() <= 1
    torch.testing.assert_close(task.scale(task.pixels), cascading_sum.load().train.tensors[0])


def test_clusters_of_a_model_that_has_learnt_classes_are_kinds_of_their_own() -> None:
    task = Task.of(cascading_sum.load(per_class=20))
    model, _ = cascading_sum.train(Method(cascading_sum.plain), task, rate=0.1, steps=60, seed=0)
    source = cascading_sum.Clustered(task, model, steps=40, seed=0)
    assert source.batches == 8  # two passes of four
    before, kinds = source.draw(200)
    assert sorted(before.tolist()) == list(range(200))
    assert set(kinds.tolist()) == {-1}
    for progress, passes in ((0.0, 1), (0.1, 1), (0.5, 2), (0.9, 2)):
        source.prepare(progress)
        assert source.rows == passes * 4 * BATCH
    places, kinds = source.draw(600)
    source.close()
    kind_of = dict(zip(places.tolist(), kinds.tolist(), strict=True))
    labels_of = [[int(task.labels[at]) for at, kind in kind_of.items() if kind == k] for k in range(CLUSTERS)]
    purity = sum(max(map(labels.count, labels), default=0) for labels in labels_of) / len(kind_of)
    assert purity > 0.5  # gradients know of classes; at random a cluster of twenty has about five of one


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match=r"'cutmix' is none of no mixing, "):
        cascading_sum.main(chosen=["cutmix"])


def test_tuning_sees_no_test_image_and_holds_out_a_fifth_in_its_turn() -> None:
    task = Task.of(cascading_sum.load(per_class=10))
    folds = [task.for_tuning(fold) for fold in range(5)]
    everything = sorted(rows_of(task.pixels))
    assert sorted(row for fold in folds for row in rows_of(fold.test_pixels)) == everything
    for fold in folds:
        assert (len(fold.labels), len(fold.test_labels)) == (80, 20)
        assert sorted(rows_of(fold.test_pixels) + rows_of(fold.pixels)) == everything
    label_of = dict(zip(rows_of(task.pixels), task.labels.tolist(), strict=True))
    assert [label_of[row] for row in rows_of(folds[2].test_pixels)] == folds[2].test_labels.tolist()


def rows_of(pixels: Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in pixels]
