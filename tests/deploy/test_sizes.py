"""The table of sizes is that of the code, the code's memory that of the table, and the manifests are large enough."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import numpy as np
import pytest

from sampler_service import sizes
from sampler_service.leases import Group
from sampler_service.sampler import Sampler
from sampler_service.types import Report
from tests.deploy.conftest import DEPLOY, only
from tests.deploy.test_kubernetes import templates
from tests.support import DIM, FakeTrainer, make_sampler

SCRIPT = DEPLOY / "sizing.py"


def load() -> Any:
    spec = spec_from_file_location("sizing", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["sizing"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sizing = load()


def printed(*arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_table_in_the_readme_is_the_one_that_the_script_prints() -> None:
    assert f"\n{printed()}\n" in (DEPLOY / "README.md").read_text(encoding="utf-8")


def test_a_set_of_ones_own_gets_a_line() -> None:
    assert "\n| 3e8 | 128 |" in printed("3e8", "128")


def test_bytes_an_example_are_those_of_the_readme() -> None:
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert "2 d + 23 bytes in its shard" in readme
    assert sizing.Need(1, 64).row_bytes == 2 * 64 + 23
    assert "44 in the run's table and counts" in readme
    columns = sizing.Need(10**6, 64).run_bytes - sizing.Need(0, 64).run_bytes
    assert columns == pytest.approx((44 + sizes.WORKING_BYTES) * 10**6)
    assert f"up to {sizes.WORKING_BYTES} while rates and statistics are made" in readme


EXAMPLES = 200_000


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def report_all(sampler: Sampler, trainer: FakeTrainer, epoch: int, count: int = 50) -> None:
    """Rates are made anew after reports; norms are uneven, so that the policy draws."""
    for number, ids in enumerate(np.array_split(np.random.default_rng(0).permutation(EXAMPLES), count)):
        norms = (ids % 97).astype(np.float32) ** 3
        report = Report(
            batch_id=10**9 + epoch * count + number,
            step=epoch * count + number,
            example_ids=ids,
            losses=norms,
            norms=norms,
            sketches=np.zeros((len(ids), DIM)),
        )
        assert sampler.report(trainer.session, [report]).accepted > 0
        trainer.take_acked(1)


@pytest.mark.parametrize("policy", ["shuffle", "importance", "infobatch"])
def test_a_run_holds_no_more_beside_its_columns_than_the_table_says(policy: str, traced: None) -> None:
    sampler = make_sampler(EXAMPLES, policy=policy)
    trainer = FakeTrainer(sampler, 0, Group(world_size=1, batch_size=64, drop_last=False), lead=8)
    for epoch in range(2):
        trainer.start(epoch)
        report_all(sampler, trainer, epoch)
        sampler.statistics(detail=True)
    _, peak = tracemalloc.get_traced_memory()
    shards = EXAMPLES * sizing.Need(EXAMPLES, DIM).row_bytes
    run = sizing.Need(EXAMPLES, DIM).run_bytes - sizes.PROCESS_BYTES
    working = EXAMPLES * sizes.WORKING_BYTES
    assert run - working / 2 < peak - shards < run, f"{(peak - shards - run + working) / EXAMPLES:.0f} bytes an example"


def memory(template: dict[str, Any]) -> int:
    """Bytes of a pod's first container, in which Ray runs."""
    return int(template["spec"]["containers"][0]["resources"]["limits"]["memory"].removesuffix("Gi")) * sizes.GIB


def test_every_node_can_hold_the_largest_part_of_what_the_readme_says_of_its_overlay(manifests) -> None:
    cluster = only(manifests, "RayCluster")
    need = sizing.Need(10**8 if "nvidia.com/gpu" in str(cluster) else 10**7, 64)
    head, *workers = map(memory, templates(cluster))
    assert need.run_bytes + 2 * sizes.GIB < head
    replicas = cluster["spec"]["workerGroupSpecs"][0]["replicas"]
    assert max(need.run_bytes, need.shards * need.shard_bytes / replicas) + sizes.GIB < min(workers)
