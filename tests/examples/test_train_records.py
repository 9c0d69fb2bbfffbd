"""The example on records runs as it is printed: what is registered is streamed, decoded where asked for, and learnt."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sampler_service.records import DataDirectory, ingest
from sampler_service.records.desk import RecordDesk
from tests.served import ServedService
from trainer_examples import train_records


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[ServedService]:
    """A service over the data sets below `tmp_path`."""
    served = ServedService(records=RecordDesk(DataDirectory(tmp_path)))
    yield served
    served.stop()


def test_it_registers_the_digits_once_and_learns_them(recorded: ServedService, tmp_path: Path) -> None:
    given = {"address": recorded.address, "policy": "shuffle", "epochs": 3, "data_dir": str(tmp_path)}
    assert train_records.main(**given, run="first") < 0.5
    assert train_records.main(**given, run="again", workers=0) < 0.5
    assert DataDirectory(tmp_path).names() == ["digits-records"]
    for run in ("first", "again"):
        assert recorded.service.statistics(run).reported_rows == 3 * 1797


def test_files_of_images_are_decoded_by_the_service(recorded: ServedService, tmp_path: Path) -> None:
    ingest(
        pa.table({"image": [_flat(i % 10) for i in range(640)], "label": np.arange(640) % 10}),
        "flat",
        data_dir=tmp_path,
    )
    found = train_records.main("flat", recorded.address, run="flat", policy="shuffle", decode=8, workers=0, epochs=20)
    assert found < 0.5, "ten shades of grey can be told apart"


def _flat(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (16, 16), 25 * shade).save(file, "PNG")
    return file.getvalue()
