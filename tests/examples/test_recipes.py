"""The examples of frameworks run as they are printed, against a service, learn, and go on where they were stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sampler_client.batch import Batch
from tests.served import ServedService
from trainer_examples import train_accelerate, train_huggingface, train_lightning, train_stateful
from trainer_examples.data import load
from trainer_examples.texts import load_texts

EXAMPLES = len(load().train)
TEXTS = len(load_texts().train)
SIZE = 64
STEPS = -(-EXAMPLES // SIZE)


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs an example that is stopped before one of its reports, and then again, to its end."""

    def stopped(example: Callable[..., Any], reports: int, *, then: dict[str, Any], **given: Any) -> Any:
        report, left = Batch.report, reports

        def counted(batch: Batch, *arguments: Any) -> None:
            nonlocal left
            if not left:
                raise KeyError("stopped")
            left -= 1
            report(batch, *arguments)

        monkeypatch.setattr(Batch, "report", counted)
        with pytest.raises(KeyError, match="stopped"):
            example(**given)
        monkeypatch.setattr(Batch, "report", report)
        return example(**given, **then)

    return stopped


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_lightning(served: ServedService, tmp_path: Path, stops) -> None:
    given = {"address": served.address, "run": "digits", "policy": "shuffle", "checkpoints": tmp_path, "epochs": 2}
    found = stops(train_lightning.main, STEPS + 6, then={"resume": str(tmp_path / "last.ckpt")}, **given)
    assert found > 0.7
    # What was trained on since the checkpoint comes again.
    assert served.service.statistics("digits").reported_rows == 2 * EXAMPLES + 6 * SIZE


def test_accelerate(served: ServedService, tmp_path: Path, stops) -> None:
    given = {
        "address": served.address,
        "run": "digits",
        "policy": "shuffle",
        "checkpoint": tmp_path / "kept",
        "epochs": 2,
    }
    assert stops(train_accelerate.main, STEPS + 6, then={}, **given) > 0.7
    assert served.service.statistics("digits").reported_rows == 2 * EXAMPLES + 6 * SIZE


def test_stateful(served: ServedService, tmp_path: Path, stops) -> None:
    given = {
        "address": served.address,
        "run": "digits",
        "policy": "shuffle",
        "checkpoint": tmp_path / "kept.pt",
        "epochs": 2,
    }
    assert stops(train_stateful.main, 18, then={}, every=10, workers=1, **given) > 0.7
    # It was saved last with the eleventh batch, at step 10: seven of those reported come again.
    assert served.service.statistics("digits").reported_rows == 2 * EXAMPLES + 7 * SIZE


def test_huggingface(served: ServedService, tmp_path: Path, stops, capsys: pytest.CaptureFixture[str]) -> None:
    size = train_huggingface.BATCH_SIZE
    given = {"address": served.address, "run": "texts", "policy": "shuffle", "out": str(tmp_path), "epochs": 2}
    found = stops(train_huggingface.main, -(-TEXTS // size) + 3, then={"resume": True}, **given)
    assert 1 < found < 7  # bits a byte; 8 before any training
    assert served.service.statistics("texts").reported_rows == 2 * TEXTS + 3 * size
    assert "bits a byte" in capsys.readouterr().out
