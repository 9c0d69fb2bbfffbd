"""Data sets on a real Ray: shards are written by Ray Data."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sampler_service.records import RecordStore, verify
from tests.cluster.support import OPEN_CLUSTER, cli, python, ray_head
from tests.records.support import all_of, image, table_of

pytestmark = pytest.mark.timeout(300)


def test_ray_data_writes_the_shards_that_this_process_would_and_keeps_them_when_one_fails(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(6):
        images = [image(number) for _ in range(10)]
        pq.write_table(
            table_of(60).slice(10 * number, 10).append_column("image", [images]), source / f"{number}.parquet"
        )
    bad = pq.read_table(source / "3.parquet").set_column(4, "image", [[b"no", *[image(3)] * 9]])
    pq.write_table(bad, source / "3.parquet")
    with ray_head() as (address, _):

        def ingest() -> subprocess.CompletedProcess[str]:
            options = ("--name", "data", "--data-dir", str(tmp_path), "--address", address)
            return cli("ingest", str(source), *options, timeout_s=120, environment=OPEN_CLUSTER)

        failed = ingest()
        assert failed.returncode == 1
        (message,) = [line for line in failed.stdout.splitlines() if line.startswith("Damaged: ")]
        assert "row 0 of" in message and "3.parquet can't be used: column 'image'" in message
        kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").glob("*.arrow")}
        assert sorted(kept) == [f"0000{number}.arrow" for number in (0, 1, 2, 4, 5)]
        pq.write_table(bad.set_column(4, "image", [[image(3)] * 10]), source / "3.parquet")
        done = ingest()
    assert "data: 60 new examples, 60 in all" in done.stdout, done.stdout + done.stderr
    store = RecordStore.open(tmp_path / "data")
    verify(store)
    assert all_of(store) == [
        row for number in range(6) for row in pq.read_table(source / f"{number}.parquet").to_pylist()
    ]
    assert {name: (tmp_path / "data" / name).stat().st_mtime_ns for name in kept} == kept, "not written again"


IN_MEMORY = """
import json
import datasets
from sampler_service.records import ingest, items
from sampler_service.runtime.ingestion import on_ray

class Counted:
    pickled = 0

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return index * 10

    def __getstate__(self):
        Counted.pickled += 1
        return {{}}

items.SHARD_BYTES = 80  # ten numbers
on_cluster = dict(data_dir={folder!r}, execute=on_ray())
own = ingest(Counted(), "own", **on_cluster)
theirs = ingest(datasets.Dataset.from_dict(dict(n=list(range(40)))), "theirs", **on_cluster)
print(json.dumps([Counted.pickled, len(own.manifest.shards), len(theirs.manifest.shards)]))
"""


def test_an_object_in_memory_goes_to_the_cluster_once_however_many_shards_it_makes(tmp_path: Path):
    assert json.loads(python(IN_MEMORY.format(folder=str(tmp_path)))) == [1, 4, 4]
    assert [row["0"] for row in all_of(RecordStore.open(tmp_path / "own"))] == list(range(0, 400, 10))
    assert [row["n"] for row in all_of(RecordStore.open(tmp_path / "theirs"))] == list(range(40))
