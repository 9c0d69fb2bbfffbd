"""A trainer's process ends soon after its last line, whatever it left open."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

TRAINER = """
import sys, time
import numpy as np
import sampler_client as sampler
import torch
from torch.utils.data import DataLoader, TensorDataset

plain = DataLoader(TensorDataset(torch.arange(50)), batch_size=8)
loader = sampler.attach(plain, sys.argv[1], run="r", policy="shuffle")
epoch = iter(loader)
_, batch = next(epoch)
batch.report(np.ones(len(batch)))
print("last line", flush=True)
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "raise ValueError('training failed')"])
def test_a_trainer_that_closes_nothing_ends_within_5_seconds(served, end):
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER + end, served.address], stdout=subprocess.PIPE)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == b"last line\n"
    started = time.monotonic()
    trainer.wait(timeout=30)
    trainer.stdout.close()
    assert time.monotonic() - started < 5
    assert trainer.returncode == {"": 0, "raise SystemExit(3)": 3}.get(end, 1)
    deadline = time.monotonic() + 5
    while served.service.statistics("r").trainers and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.service.statistics("r").trainers == 0
