"""What two ranks are told when a loader is given to a framework in a way that would deal its batches out again.

Started by torchrun: address, folder. Each rank writes {case: error} to the folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import lightning
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

import sampler_client as sampler
from tests.frameworks.conftest import N, numbers
from tests.frameworks.test_lightning import Module, trainer_of
from trainer_examples import train_accelerate, train_huggingface, train_lightning

SIZE = 4


def said(act: Callable[[], object]) -> str:
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def errors(address: str) -> dict[str, str]:
    """What is said in each case."""
    found = {}
    for case, settings in (("sharded", {}), ("uneven", {"even_batches": False})):
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**settings))
        with closing(connected(address, case)) as batches:
            prepared = accelerator.prepare(DataLoader(numbers(), batch_sampler=batches))
            found[case] = said(lambda prepared=prepared: list(prepared))
    with sampler.attach(DataLoader(numbers(), batch_size=SIZE), address, run="beneath", policy="shuffle") as loader:
        found["beneath"] = said(lambda: list(accelerator.prepare(loader.loader)))
    with closing(connected(address, "lightning")) as batches:
        plain = DataLoader(numbers(), batch_sampler=batches)
        found["lightning"] = said(lambda: fit(plain, use_distributed_sampler=True))
    with sampler.attach(DataLoader(numbers(), batch_size=SIZE), address, run="alone", policy="shuffle") as loader:
        found["left alone"] = said(lambda: fit(loader, use_distributed_sampler=True))
    return found


def connected(address: str, run: str) -> sampler.RemoteBatchSampler:
    return sampler.RemoteBatchSampler.connect(address, run=run, num_examples=N, batch_size=SIZE, ahead=8)


def fit(loader: object, **options: object) -> None:
    trainer: lightning.Trainer = trainer_of(devices=2, max_epochs=1, **options)
    trainer.fit(Module(lambda: loader))


def run(address: str, folder: Path) -> None:
    found = errors(address)
    # Accelerate's last: it ends the process group, and torchrun's store makes no second one.
    for example, name in ((train_lightning, "lightning"), (train_huggingface, "hf"), (train_accelerate, "accelerate")):
        extra = {"devices": 2} if name == "lightning" else {}
        example.main(address=address, run=f"{name}-example", policy="shuffle", epochs=1, **extra)
    Path(folder, f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
