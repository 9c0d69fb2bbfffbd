"""One rank of `train_ddp`, which also writes down what it was given and the model it ends with.

Started by torchrun: address, run, folder, policy.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch

from sampler_client import SampledLoader
from sampler_client.batch import Batch
from trainer_examples import train_ddp

EPOCHS = 2


def run(address: str, name: str, folder: Path, policy: str) -> None:
    given: list[tuple[int, int, int]] = []
    models: list[torch.nn.Module] = []
    loaders: list[SampledLoader] = []
    report, wrap = Batch.report, train_ddp.DistributedDataParallel
    attach, all_reduce = train_ddp.sampler.attach, train_ddp.dist.all_reduce

    def kept(model: torch.nn.Module) -> torch.nn.Module:
        models.append(model)
        return wrap(model)

    def watched(batch: Batch, *arguments) -> None:
        given.extend((batch.epoch, batch.step, int(example)) for example in batch.example_ids)
        report(batch, *arguments)

    def attached(*arguments, **options) -> SampledLoader:
        loaders.append(attach(*arguments, **options))
        return loaders[-1]

    def flushed(total: torch.Tensor) -> None:
        """Ranks report over channels of their own: none goes on before what all reported of this epoch is there."""
        loaders[0].flush()
        all_reduce(total)

    Batch.report, train_ddp.DistributedDataParallel = watched, kept
    train_ddp.sampler.attach, train_ddp.dist.all_reduce = attached, flushed
    two_stage = policy == "two_stage"
    train_ddp.main(address=address, run=name, policy=policy, epochs=EPOCHS, two_stage=two_stage)
    np.save(folder / f"rank{os.environ['RANK']}.npy", np.array(given))
    weights = torch.cat([value.detach().flatten() for value in models[0].parameters()])
    np.save(folder / f"weights{os.environ['RANK']}.npy", weights.numpy())


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
