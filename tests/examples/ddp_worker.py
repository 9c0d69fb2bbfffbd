"""One rank of `train_ddp`, which also writes down what it was given and the model it ends with.

Started by torchrun: address, run, folder, policy.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch

from sampler_client.batch import Batch
from trainer_examples import train_ddp

EPOCHS = 2


def run(address: str, name: str, folder: Path, policy: str) -> None:
    given: list[tuple[int, int, int]] = []
    models: list[torch.nn.Module] = []
    report, wrap = Batch.report, train_ddp.DistributedDataParallel

    def kept(model: torch.nn.Module) -> torch.nn.Module:
        models.append(model)
        return wrap(model)

    def watched(batch: Batch, *arguments) -> None:
        given.extend((batch.epoch, batch.step, int(example)) for example in batch.example_ids)
        report(batch, *arguments)

    Batch.report, train_ddp.DistributedDataParallel = watched, kept
    two_stage = policy == "two_stage"
    train_ddp.main(address=address, run=name, policy=policy, epochs=EPOCHS, two_stage=two_stage)
    np.save(folder / f"rank{os.environ['RANK']}.npy", np.array(given))
    weights = torch.cat([value.detach().flatten() for value in models[0].parameters()])
    np.save(folder / f"weights{os.environ['RANK']}.npy", weights.numpy())


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
