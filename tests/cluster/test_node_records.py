"""Data sets on the nodes of a real Ray: they go from one to the other, and what changes on one reaches runs on all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from sampler_service.embedded import running_service
from sampler_service.records import DataDirectory, RecordStore, delete, ingest, verify
from tests.cluster.support import PATIENT, epoch, python, until
from tests.records.support import table_of

pytestmark = pytest.mark.timeout(300)

TWO_NODES = """
import json, logging, sys, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from sampler_service.config import RunConfig
from sampler_service.errors import Unavailable
from sampler_service.records import DataDirectory, delete, ingest
from sampler_service.records.copies import bring_up_to_date
from sampler_service.records.desk import RecordDesk
from sampler_service.records.nodes import NodeRecords
from sampler_service.rpc.following import Follower
from sampler_service.runtime import copies, names
from sampler_service.runtime.node_records import RayNodes
from sampler_service.service import InProcessService
from tests.cluster.support import until
from tests.records.support import table_of

here, there = Path({here!r}), Path({there!r})
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False))
other = cluster.add_node(num_cpus=1)
ray.init(cluster.address, logging_level="error")
cluster.wait_for_nodes()
said = dict(warnings=[])

class Warnings(logging.Handler):
    def emit(self, record):
        said["warnings"].append(record.getMessage())

logging.getLogger("sampler_service").addHandler(Warnings(logging.WARNING))

class Apart(RayNodes):
    # The nodes of this cluster share a disk: the other one has its data elsewhere on it.
    def versions(self, folder):
        return super().versions(there / folder.name)

    def fetch(self, node, folder):
        return super().fetch(node, there / folder.name)

def append(start, stop):
    ingest(table_of(stop).slice(start), "data", data_dir=there, append=True)

nodes = Apart("test")
records = NodeRecords(str(here), nodes)
said["brought"] = records.bring("data")
fetch = copies.fetch_from(other.node_id, there / "data")
said["again"] = bring_up_to_date(here / "data", fetch)
said["names"] = [nodes.this, *nodes.versions(here / "data")]

service = InProcessService()
service.register_dataset("data", 500)
service.open_run(RunConfig(run="run", dataset="data", num_examples=500, policy="shuffle"))
follower = Follower(service, RecordDesk(DataDirectory(here), records.bring), 0.2)
append(500, 510)
delete(DataDirectory(there).open("data"), [3, 4])
until(lambda: service.dataset_size("data") == 510, "the other node's examples")
until(lambda: service.statistics("run").deleted == 2, "the other node's deletions")

names.kill("test", names.join("holdings", other.node_id))
append(510, 520)
until(lambda: service.dataset_size("data") == 520, "what was appended when nobody looked on the other node")

cluster.remove_node(other)
delete(DataDirectory(here).open("data"), [5])
until(lambda: service.statistics("run").deleted == 3, "a deletion here, while the other node is gone")
copies.PIECE_S = 20
try:
    bring_up_to_date(here / "data", fetch)
except Unavailable as error:
    said["gone"] = str(error)
follower.stop()
ray.shutdown()
cluster.shutdown()
print(json.dumps(said))
"""


def test_a_run_follows_what_another_node_appends_and_deletes_whatever_becomes_of_that_node(tmp_path: Path):
    here, there = tmp_path / "here", tmp_path / "there"
    ingest(table_of(500), "data", data_dir=there, id_column="key")
    said = json.loads(python(TWO_NODES.format(here=str(here), there=str(there))))
    assert (said["brought"], said["again"]) == (True, 0)
    this, other = said["names"]
    assert this != other and all(name.startswith("node ") for name in said["names"])
    assert any(warning.startswith(f"{other} does not say what it has in") for warning in said["warnings"])
    assert "manifest.json of data from node" in said["gone"]
    copy = RecordStore.open(here / "data")
    verify(copy, sources=False)
    assert copy.take(copy.ids_of(["k0519"]), ["number"]).to_pydict() == {"number": [5190]}
    assert copy.deleted.tolist() == [3, 4, 5]


def test_runs_on_ray_follow_their_records_and_no_others_that_come_under_the_name(tmp_path: Path):
    options = ("--data-dir", str(tmp_path), "--follow-s", "0.2")
    ingest(table_of(64), "data", data_dir=tmp_path)
    with running_service(arguments=options) as address, sampler.SamplerClient(address, timeouts=PATIENT) as client:
        plain = DataLoader(TensorDataset(torch.arange(64)), batch_size=16)
        loader = sampler.attach(plain, str(address), run="ids", dataset="data", timeouts=PATIENT)
        delete(DataDirectory(tmp_path).open("data"), [3, 17])
        ingest(table_of(70).slice(64), "data", data_dir=tmp_path, append=True)
        until(lambda: client.statistics("ids").deleted == 2, "a trainer that asks for ids alone to get two fewer")
        assert sorted(epoch(loader)) == sorted(set(range(64)) - {3, 17}), "it could not load the new ones"
        with client.batches(run="records", dataset="data", batch_size=10) as batches:
            numbers = [number for batch in batches for number in batch.records.column("number").to_pylist()]
        assert sorted(numbers) == [10 * i for i in range(70) if i not in (3, 17)]
        loader.close()
        shutil.rmtree(tmp_path / "data")
        ingest(table_of(200).slice(100), "data", data_dir=tmp_path)
        with pytest.raises(sampler.Conflict, match="'data' stands for the records that were registered as"):
            client.batches(run="others", dataset="data", batch_size=10)
