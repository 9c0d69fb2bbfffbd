"""Frameworks with two processes: what would deal batches out twice is refused, and the examples share every batch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.frameworks.conftest import N
from tests.served import ServedService
from trainer_examples.data import load
from trainer_examples.texts import load_texts

ROOT = Path(__file__).parents[2]

SAYS = {
    "sharded": r"ConfigError: accelerate\.data_loader iterates .*accelerator\.prepare\(model, optimizer\)",
    "uneven": r"ConfigError: accelerate\.data_loader iterates .*accelerator\.prepare\(model, optimizer\)",
    "beneath": r"ConfigError: accelerate\.data_loader iterates .*accelerator\.prepare\(model, optimizer\)",
    "lightning": r"TypeError: .*use_distributed_sampler=False",  # Lightning's own words
    "left alone": "^nothing$",
}


def test_two_ranks_are_told_what_to_write_and_share_every_batch_where_it_is_written(
    served: ServedService, tmp_path: Path
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    worker = ["-m", "tests.frameworks.two_ranks", served.address, str(tmp_path)]
    done = subprocess.run([*torchrun, *worker], cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found.keys() == SAYS.keys()
        for case, says in SAYS.items():
            assert re.search(says, found[case], re.DOTALL), f"{case}: {found[case]}"
    assert served.service.statistics("alone").examples == N
    sizes = {"accelerate": len(load().train), "lightning": len(load().train), "hf": len(load_texts().train)}
    for name, size in sizes.items():
        statistics = served.service.statistics(f"{name}-example")
        # A sweep: each was lent once, and all of them came back, from one rank or the other.
        assert (statistics.examples, statistics.reported_rows) == (size, size), name
        assert statistics.trainers == 0
