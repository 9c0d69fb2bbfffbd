"""A data directory of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sampler_service.records import RecordStore, ingest
from tests.records.support import Ingest


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def register(data_dir: Path) -> Ingest:
    """`ingest` into the test's own directory, under the name "data"."""

    def register(data: Any, name: str = "data", **options: Any) -> RecordStore:
        return ingest(data, name, data_dir=data_dir, **options)

    return register
