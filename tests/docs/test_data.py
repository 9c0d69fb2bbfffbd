"""`docs/data.md`, from its first line to its last: what it shows is run, in that order, in one folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs as pafs
from typer.testing import CliRunner

from sampler_service.cli import app
from sampler_service.records import DataDirectory
from sampler_service.records.desk import RecordDesk
from sampler_service.records.schemas import class_names
from tests.records.support import table_of
from tests.served import ServedService

TEXT = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch):
    """`my-bucket`, on a server of the test's own."""
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    filesystem = pafs.S3FileSystem(
        endpoint_override=f"http://{host}:{port}", region="eu-west-1", allow_bucket_creation=True
    )
    filesystem.create_dir("my-bucket")
    with filesystem.open_output_stream("my-bucket/train/a.parquet") as file:
        pq.write_table(table_of(10), file)
    yield
    server.stop()


def test_the_page_runs_from_top_to_bottom(bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    namespace: dict[str, Any] = {}
    served = ServedService(records=RecordDesk(DataDirectory()))
    for language, code in re.findall(r"^```(python|sh)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(code.replace("localhost:50051", served.address), namespace)
            continue
        for line in code.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "sampler-service"
            shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert shown.exit_code == 0, (line, shown.output)
    seen = served.service.statistics("digits-mlp")
    assert (seen.examples, seen.reported_rows) == (1797, 1797)
    assert served.service.statistics("digits-arrow").examples == 1797
    served.stop()
    stores = DataDirectory().open_all()
    same = ("digits-csv", "digits-feather", "digits-jsonl", "digits-table")
    assert {name: store.num_examples for name, store in stores.items()} == {
        "digits": 1802,
        **dict.fromkeys(same, 1797),
        **dict.fromkeys(("photos", "photos-tar"), 50),
        "points": 100,
        "reviews": 3,
        "train": 10,
        "train-again": 10,
    }
    whole = stores["digits"].take(np.array([0, 1796]))
    for name in same:
        columns = stores[name].schema.names
        assert stores[name].take(np.array([0, 1796])).to_pylist() == whole.select(columns).to_pylist(), name
    assert {*stores["photos-tar"].schema.names} == {"__key__", "png"}
    assert class_names(stores["photos"].schema.field("label")) == [str(digit) for digit in range(10)]
    assert stores["digits"].deleted.tolist() == [3, 7, 1798, 1799]
    assert np.array_equal(stores["digits"].ids_of([2000]), [1797])
    assert namespace["tensors"].shape == (16, 3, 8, 8)
