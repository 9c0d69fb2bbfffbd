"""Two ranks share every global batch: disjoint parts, all examples exactly once an epoch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.examples.ddp_worker import EPOCHS
from tests.served import ServedService
from trainer_examples import train_ddp
from trainer_examples.data import load

ROOT = Path(__file__).parents[2]


def trained(served: ServedService, folder: Path, policy: str) -> tuple[str, list[np.ndarray]]:
    """What two ranks print, and what each was given: (rows, 3), epoch, step and example."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    worker = ["-m", "tests.examples.ddp_worker", served.address, "ddp", str(folder), policy]
    done = subprocess.run([*torchrun, *worker], cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, [np.load(folder / f"rank{rank}.npy") for rank in (0, 1)]


def test_two_ranks_get_disjoint_parts_whose_union_is_every_example_once(served: ServedService, tmp_path: Path) -> None:
    said, parts = trained(served, tmp_path, "shuffle")
    examples = len(load().train)
    for epoch in range(EPOCHS):
        first, second = (part[part[:, 0] == epoch] for part in parts)
        assert not set(first[:, 2]) & set(second[:, 2])
        np.testing.assert_array_equal(np.sort(np.concatenate([first, second])[:, 2]), np.arange(examples))
        np.testing.assert_array_equal(np.unique(first[:, 1]), np.unique(second[:, 1]))  # steps in lock-step
    assert "accuracy on 300 test images" in said
    statistics = served.service.statistics("ddp")
    assert statistics.reported_rows == statistics.examples == EPOCHS * examples


def test_two_ranks_choose_each_from_candidates_of_its_own_and_end_with_one_model(
    served: ServedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sampler_service.stages.StageMonitor.decide", lambda self: self.most)  # whatever the clock says
    said, parts = trained(served, tmp_path, "two_stage")
    assert "accuracy on 300 test images" in said
    steps = EPOCHS * -(-len(load().train) // train_ddp.GLOBAL_BATCH_SIZE)
    half = train_ddp.GLOBAL_BATCH_SIZE // 2
    assert [len(part) for part in parts] == [steps * half] * 2
    assert not np.array_equal(parts[0][:, 2], parts[1][:, 2])
    statistics = served.service.statistics("ddp")
    assert statistics.examples == 3 * 2 * half * steps, "three candidates for each example, all of them lent"
    assert statistics.active_policy == "two_stage"
    weights = [np.load(tmp_path / f"weights{rank}.npy") for rank in (0, 1)]
    np.testing.assert_array_equal(weights[0], weights[1])
