"""The language model: losses, weights and sketches of whole texts; and the texts it is trained on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import sampler_client as sampler
from tests.served import ServedService
from trainer_examples import train_language_model
from trainer_examples.data import DataError
from trainer_examples.models import CausalTransformer
from trainer_examples.texts import LENGTH, VOCABULARY, load_texts, sequence_losses, tokens


def test_a_text_is_its_bytes_behind_a_beginning_and_before_padding() -> None:
    found = tokens(["ab", "é" * LENGTH])
    assert found[0, :4].tolist() == [0, 98, 99, 0]
    assert found[0, 3:].sum() == 0
    assert found[1].tolist() == [0, *[0xC4, 0xAA] * (LENGTH // 2)]


def test_a_texts_loss_is_the_mean_over_its_own_bytes() -> None:
    text = tokens(["abcd", "ab"])
    logits = torch.randn(2, LENGTH, VOCABULARY)
    surprise = -logits.log_softmax(2)
    for row, length in ((0, 4), (1, 2)):
        expected = sum(surprise[row, place, text[row, place + 1]] for place in range(length)) / length
        torch.testing.assert_close(sequence_losses(logits, text)[row], expected)
    even = sequence_losses(torch.zeros(2, LENGTH, VOCABULARY), text)
    torch.testing.assert_close(even, torch.full((2,), math.log(VOCABULARY)))


def test_no_token_sees_what_follows_it() -> None:
    torch.manual_seed(0)
    model = CausalTransformer(VOCABULARY, LENGTH)
    text = tokens(["a text of some length"])[:, :-1]
    changed = text.clone()
    changed[0, 10] = 1
    before, after = model(text), model(changed)
    torch.testing.assert_close(before[0, :10], after[0, :10])
    assert not torch.allclose(before[0, 10:], after[0, 10:])


def test_every_layer_is_sketched_and_the_sketches_are_those_of_each_text_alone() -> None:
    torch.manual_seed(0)
    model = CausalTransformer(VOCABULARY, LENGTH, width=16, heads=2)
    text = tokens(["one text", "and another, which is longer", "a third"])
    with sampler.GradientSketcher(model, dim=256, dtype=np.float32, norms="exact") as sketcher:
        assert sketcher.skipped == {}
        assert len(sketcher.layers) == sum(
            1 for module in model.modules() if isinstance(module, (nn.Linear, nn.Embedding, nn.LayerNorm))
        )
        sequence_losses(model(text[:, :-1]), text).sum().backward()
        together = sketcher.take(np.ones(3))
        for row in range(3):
            model.zero_grad()
            sequence_losses(model(text[row : row + 1, :-1]), text[row : row + 1]).sum().backward()
            alone = sketcher.take(np.ones(1))
            np.testing.assert_allclose(together.sketches[row], alone.sketches[0], rtol=1e-3, atol=1e-4)
            norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None))
            assert together.norms is not None
            np.testing.assert_allclose(together.norms[row], norm, rtol=1e-3)
    assert not sketcher.skipped


@pytest.mark.usefixtures("prompt_reports")
def test_it_learns_and_every_text_is_reported_with_a_sketch(
    served: ServedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 25
    trained: list[list[int]] = []
    report = sampler.Batch.report

    def noted(batch: sampler.Batch, *arguments: Any) -> None:
        trained.append(batch.example_ids.tolist())
        report(batch, *arguments)

    monkeypatch.setattr(sampler.Batch, "report", noted)
    found = train_language_model.main(address=served.address, run="texts", policies="auto,shuffle", steps=steps)
    assert all(1 < losses[0] < 6 for losses in found.values())
    assert len(trained) == 2 * steps
    for policy, batches in zip(found, (trained[:steps], trained[steps:]), strict=True):
        said = served.service.statistics(f"texts-{policy}-0")
        assert said.reported_rows == sum(map(len, batches))
        assert round(said.sketch_coverage * said.num_examples) == len({text for batch in batches for text in batch})
        assert said.rejected_rows == {}


def test_texts_come_from_lines_columns_and_descriptions(tmp_path: Path) -> None:
    lines = [f"line {number} of a file, long enough" for number in range(12)]
    (tmp_path / "lines.txt").write_text("\n".join([*lines, "short"]))
    found = load_texts(tmp_path / "lines.txt")
    assert (found.name, len(found.train), len(found.test)) == ("lines", 10, 2)
    assert {bytes(byte - 1 for byte in row if byte).decode() for row in found.train.tolist()} <= set(lines)
    folder = tmp_path / "set"
    folder.mkdir()
    for part, size in (("train", 5), ("test", 3)):
        pq.write_table(pa.table({"en": lines[:size]}), folder / f"{part}.parquet")
    found = load_texts(folder, limit=4)
    assert (found.name, len(found.train), len(found.test)) == ("set", 4, 3)
    torch.testing.assert_close(found.test, tokens(lines[:3]))
    assert len(load_texts().train) > 400


def test_texts_that_can_not_be_read_are_refused_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_texts(tmp_path / "none")
    with pytest.raises(DataError, match="a folder of texts has train"):
        load_texts(tmp_path)
    pq.write_table(pa.table({"de": ["ein Satz"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"no text column 'en'; its columns are \['de'\]"):
        load_texts(tmp_path)
    pq.write_table(pa.table({"en": ["a", None]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="column en has 1 nulls among 2 rows"):
        load_texts(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not a text file in UTF-8"):
        load_texts(tmp_path / "bytes")
    (tmp_path / "few").write_text("a line that is the only one of its file")
    with pytest.raises(DataError, match="too few texts"):
        load_texts(tmp_path / "few")
