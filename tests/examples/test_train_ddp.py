"""Two ranks share every global batch: disjoint parts, all examples exactly once an epoch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.examples.ddp_worker import EPOCHS
from tests.served import ServedService
from trainer_examples.data import load

ROOT = Path(__file__).parents[2]


def test_two_ranks_get_disjoint_parts_whose_union_is_every_example_once(served: ServedService, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    worker = ["-m", "tests.examples.ddp_worker", served.address, "ddp", str(tmp_path)]
    done = subprocess.run([*torchrun, *worker], cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]

    examples = len(load().train)
    parts = [np.load(tmp_path / f"rank{rank}.npy") for rank in (0, 1)]  # (rows, 3): epoch, step, example
    for epoch in range(EPOCHS):
        first, second = (part[part[:, 0] == epoch] for part in parts)
        assert not set(first[:, 2]) & set(second[:, 2])
        np.testing.assert_array_equal(np.sort(np.concatenate([first, second])[:, 2]), np.arange(examples))
        np.testing.assert_array_equal(np.unique(first[:, 1]), np.unique(second[:, 1]))  # steps in lock-step
    assert "accuracy on 300 test images" in done.stdout
    said = served.service.statistics("ddp")
    assert said.examples == EPOCHS * examples
    # Each rank reports over a channel of its own, so the end of an epoch may be overtaken by the start of the next.
    assert set(said.rejected_rows) <= {"old"}
    assert said.reported_rows + said.rejected_rows.get("old", 0) == EPOCHS * examples
