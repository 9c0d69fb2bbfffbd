"""The comparison of cascading sums runs as it is printed, with equal budgets for all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer

from trainer_examples import cascading_sum
from trainer_examples.cascading_sum import BATCH, CLUSTERS, GROUPS, RADII, Method, Spent


def test_every_method_trains_on_as_many_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cascading_sum, "RATES", (0.1,))
    runs = cascading_sum.main(per_class=40, epochs=3, seeds=2, json=tmp_path / "result.json")
    methods = list(dict.fromkeys(run.method for run in runs))
    assert methods == [
        "no mixing", "no mixing, binary", "mixup", "cascade", "cascade, different", "cascade, same",
        "cascade, different clusters", "cascade, same cluster",
    ]  # fmt: skip
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
    task = cascading_sum.Task.of(cascading_sum.load())
    model, spent = cascading_sum.train(Method(cascading_sum.plain), task, rate=0.1, steps=60, seed=0)
    assert spent == Spent(rows=60 * BATCH, sketched=0, images=60 * BATCH)
    assert cascading_sum.error(model, task.test_pixels, task.test_labels) < 0.2
    assert 0 <= task.pixels.min() < task.pixels.max() <= 1
    torch.testing.assert_close(task.scale(task.pixels), cascading_sum.load().train.tensors[0])


def test_clusters_of_a_model_that_has_learnt_classes_are_kinds_of_their_own() -> None:
    task = cascading_sum.Task.of(cascading_sum.load(per_class=20))
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
    task = cascading_sum.Task.of(cascading_sum.load(per_class=10))
    folds = [task.for_tuning(fold) for fold in range(5)]
    everything = sorted(rows_of(task.pixels))
    assert sorted(row for fold in folds for row in rows_of(fold.test_pixels)) == everything
    for fold in folds:
        assert (len(fold.labels), len(fold.test_labels)) == (80, 20)
        assert sorted(rows_of(fold.test_pixels) + rows_of(fold.pixels)) == everything
    label_of = dict(zip(rows_of(task.pixels), task.labels.tolist(), strict=True))
    assert [label_of[row] for row in rows_of(folds[2].test_pixels)] == folds[2].test_labels.tolist()


def rows_of(pixels: torch.Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in pixels]
