"""One rank of `train_ddp`, which also writes down what it was given. Started by torchrun: address, run, folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from sampler_client.batch import Batch
from trainer_examples import train_ddp

EPOCHS = 2


def run(address: str, name: str, folder: Path) -> None:
    given: list[tuple[int, int, int]] = []
    report = Batch.report

    def watched(batch: Batch, *arguments) -> None:
        given.extend((batch.epoch, batch.step, int(example)) for example in batch.example_ids)
        report(batch, *arguments)

    Batch.report = watched
    train_ddp.main(address=address, run=name, policy="shuffle", epochs=EPOCHS)
    np.save(folder / f"rank{os.environ['RANK']}.npy", np.array(given))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
