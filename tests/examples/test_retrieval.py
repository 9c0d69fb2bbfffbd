"""Pairs are read as they are, mined batches hold what they promise, and the comparison runs whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sampler_client.retrieval import CollapseDetector
from trainer_examples import retrieval
from trainer_examples.data import DataError
from trainer_examples.models import encoder
from trainer_examples.pairs import Pairs, encoded, groups_of, load_pairs, subwords, vocabulary

ENGLISH = ["A red car", "two dogs run", "the red dog", "A red car", "a boat"]
GERMAN = ["Ein rotes Auto", "zwei Hunde rennen", "der rote Hund", "Ein Auto, rot", "ein Boot"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, times in (("train", 8), ("val", 2), ("test", 2)):
        captions = {
            "en": [f"{text} {i}" for i in range(times) for text in ENGLISH],
            "de": [f"{text} {i}" for i in range(times) for text in GERMAN],
        }
        pq.write_table(pa.table({"id": range(5 * times), **captions}), tmp_path / f"{part}.parquet")
    return tmp_path


def test_a_caption_is_its_words_and_their_runs_of_four_letters() -> None:
    assert list(subwords("Ein Hut!")) == ["<ein>", "<ein", "ein>", "<hut>", "<hut", "hut>"]
    assert list(subwords("a")) == ["<a>"]


def test_the_vocabulary_is_of_what_occurs_twice_most_frequent_first() -> None:
    known = vocabulary(["a a a b", "b c"], size=5)
    assert known == {"<a>": 1, "<b>": 2}
    np.testing.assert_array_equal(encoded(["b c a", "c"], known), [[2, 1], [0, 0]])


def test_pairs_that_share_a_side_are_of_one_group_and_so_are_chains_of_them() -> None:
    group = groups_of(["x", "y", "y", "z", "w"], ["1", "2", "3", "3", "4"])
    assert [(group == number).sum() for number in group] == [1, 3, 3, 3, 1]
    assert group[1] == group[2] == group[3]


def test_captions_come_with_the_vocabulary_of_the_training_part_alone(folder: Path) -> None:
    pairs = load_pairs(folder)
    assert (len(pairs.train), len(pairs.val), len(pairs.test)) == (40, 10, 10)
    # The same number is the same word in all parts, and the first caption is in each.
    known = [[number for number in part.left[0].tolist() if number] for part in (pairs.train, pairs.val)]
    assert known[0] == known[1]
    assert len(pairs.train.group.unique()) == 32, "each 'A red car' is there twice, with two translations"
    pq.write_table(pa.table({"en": ["unheard"] * 2, "de": ["nie", "gehoert"]}), folder / "val.parquet")
    assert not load_pairs(folder).val.left.any()


def test_an_image_of_several_captions_is_one_group_and_its_features_are_standardised(folder: Path) -> None:
    images = np.random.default_rng(0).normal(3, 2, (60, 6)).astype(np.float32)
    images[1::2] = images[::2]  # two captions each
    np.save(folder / "images.npy", images)
    pairs = load_pairs(folder, str(folder / "images.npy"), "de")
    assert pairs.train.left.shape == (40, 6)
    torch.testing.assert_close(pairs.train.left.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(pairs.train.left.std(0, correction=0), torch.ones(6), atol=1e-5, rtol=0)
    assert pairs.train.group[0] == pairs.train.group[1] != pairs.train.group[2]


def test_two_files_of_features_need_no_folder(tmp_path: Path) -> None:
    for side in ("left", "right"):
        np.save(tmp_path / f"{side}.npy", np.random.default_rng(0).normal(size=(50, 4)))
    pairs = load_pairs(None, str(tmp_path / "left.npy"), str(tmp_path / "right.npy"))
    assert (len(pairs.train), len(pairs.val), len(pairs.test)) == (40, 5, 5)
    torch.testing.assert_close(pairs.test.left, pairs.test.right)


def test_an_image_of_several_captions_is_in_one_part(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", np.repeat(rng.normal(size=(40, 3)), 5, axis=0))
    np.save(tmp_path / "captions.npy", rng.normal(size=(200, 3)))
    pairs = load_pairs(None, str(tmp_path / "images.npy"), str(tmp_path / "captions.npy"))
    parts = (pairs.train, pairs.val, pairs.test)
    assert [len(part) for part in parts] == [160, 20, 20]
    images = [{row.numpy().tobytes() for row in part.left} for part in parts]
    assert [len(each) for each in images] == [32, 4, 4] and len(set.union(*images)) == 40
    np.save(tmp_path / "images.npy", np.ones((200, 3)))
    with pytest.raises(DataError, match="the train part has no pairs"):
        load_pairs(None, str(tmp_path / "images.npy"), str(tmp_path / "captions.npy"))


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        (("en", "fr"), r"no text column 'fr'; its columns are \['id', 'en', 'de'\]"),
        (("en", "id"), "no text column 'id'"),
        (("en", "short.npy"), r"short.npy: 7 rows, but the parts of .* have \[40, 10, 10\]"),
        (("flat.npy", "de"), r"shape \(pairs, numbers\), got float64 \(60,\)"),
        (("nan.npy", "de"), "row 3 has NaN or infinite"),
        (("none.npy", "de"), "none.npy: no such file"),
    ],
)
def test_a_set_that_does_not_fit_says_what_was_found(sides: tuple[str, str], words: str, folder: Path) -> None:
    nan = np.ones((60, 2))
    nan[3, 1] = np.nan
    for name, rows in {"short": np.ones((7, 2)), "flat": np.ones(60), "nan": nan}.items():
        np.save(folder / f"{name}.npy", rows)
    left, right = (str(folder / side) if side.endswith(".npy") else side for side in sides)
    with pytest.raises(DataError, match=words):
        load_pairs(folder, left, right)


def test_a_folder_without_a_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.parquet: no such file"):
        load_pairs(tmp_path)
    with pytest.raises(DataError, match=r"both must be .npy files"):
        load_pairs(None, "images.npy", "de")


def test_an_encoder_averages_the_subwords_that_are_there() -> None:
    numbers = torch.tensor([[1, 2, 0], [0, 0, 0], [2, 0, 0]])
    model = encoder(numbers, 3)
    one, two = model[0].bag.weight[1:3]
    torch.testing.assert_close(model[0](numbers), torch.stack([(one + two) / 2, torch.zeros(128), two]))
    assert model(numbers).shape == (3, 3)


def test_hardness_is_none_for_the_sum_and_rises_for_the_largest() -> None:
    assert list(retrieval.hardnesses("sum of hinges", 9, 10, 3)) == [0, 0, 0]
    assert list(retrieval.hardnesses("mined", 2, 10, 2)) == pytest.approx([0.5, 0.75])
    assert list(retrieval.hardnesses("max of hinges", 0, 10, 1)) == [0]


def test_a_training_learns_to_find_translations(folder: Path) -> None:
    pairs = load_pairs(folder)
    chance = sum(2 * k / len(pairs.val) for k in retrieval.KS)
    run = retrieval.train("max of hinges", pairs, 4e-3, epochs=8, seed=0, address="")
    assert run.val > chance + 1
    assert (1 <= run.epoch <= 8, run.collapses) == (True, 0)
    assert run.val == retrieval.train("max of hinges", pairs, 4e-3, epochs=8, seed=0, address="").val, "a seed says all"


def test_mined_batches_come_from_the_service_and_hold_each_pair_once(
    folder: Path, service_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, seen = load_pairs(folder), []
    forward = retrieval.TwoSides.forward

    def noting(model: retrieval.TwoSides, pairs: Pairs, rows: torch.Tensor | slice) -> object:
        if isinstance(rows, torch.Tensor):
            seen.extend(rows.tolist())
        return forward(model, pairs, rows)

    monkeypatch.setattr(retrieval.TwoSides, "forward", noting)
    monkeypatch.setattr(retrieval, "BATCH_SIZE", 8)
    run = retrieval.train("mined", pairs, 4e-3, epochs=4, seed=0, address=service_address)
    assert run.val > 0
    for epoch in range(4):
        assert sorted(seen[40 * epoch : 40 * (epoch + 1)]) == list(range(40))


def test_a_collapse_brings_the_sum_of_hinges_back(folder: Path) -> None:
    pairs = load_pairs(folder)
    model = retrieval.TwoSides(pairs.train)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.1)  # all embeddings alike
    still = torch.optim.SGD(model.parameters(), lr=1e-12)

    def collapsed(batches: int, hardness: float, detector: CollapseDetector) -> bool:
        rows = [torch.arange(40)] * batches
        return retrieval.one_epoch(model, still, pairs.train, rows, iter([hardness] * batches), detector)

    assert collapsed(60, 1.0, CollapseDetector(retrieval.MARGIN))
    assert not collapsed(60, 0.0, CollapseDetector(retrieval.MARGIN))
    detector = CollapseDetector(retrieval.MARGIN)
    assert [collapsed(20, 1.0, detector) for _ in range(3)] == [False, False, True], "epochs are short"


@pytest.mark.ray
def test_the_comparison_runs_and_writes_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retrieval, "RATES", (4e-3,))
    runs = retrieval.main(epochs=2, seeds=2, limit=400, json=tmp_path / "retrieval.json")
    assert [len(of_method) for of_method in runs.values()] == [2, 2, 2]
    written = json.loads((tmp_path / "retrieval.json").read_text())
    firsts = {method: np.array([run.first for run in of_method]) for method, of_method in runs.items()}
    expected = firsts["mined"].mean() / firsts["max of hinges"].mean()
    assert written["headline"]["mined_over_mh"] == pytest.approx(expected)
    gaps = 100 * (firsts["mined"] - firsts["max of hinges"])
    assert written["headline"]["mined_over_mh_points"] == pytest.approx(gaps.mean())
    assert written["headline"]["mined_over_mh_points_deviation"] == pytest.approx(gaps.std(ddof=1))
    assert {row["method"] for row in written["rows"]} == set(retrieval.METHODS)
    assert written["headline"]["mined_seconds_over_mh"] > 0
    assert "halves of digits" in capsys.readouterr().out
