"""The same as `train.py` with Hugging Face Accelerate, in one process or several.

    sampler-service up                                                    # in another terminal
    python -m trainer_examples.train_accelerate                           # scikit-learn's digits
    accelerate launch --num_processes 2 --cpu --module trainer_examples.train_accelerate --checkpoint out/accelerate

It is an ordinary Accelerate script but for the lines marked (1), (2) and (3): above all, the loader is not prepared.
Where the checkpoint is there already, and --run is that of its run, training goes on from it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch.nn import functional as F
from torch.utils.data import DataLoader

import sampler_client as sampler
from trainer_examples.data import load
from trainer_examples.models import accuracy, make_model

GLOBAL_BATCH_SIZE = 64
LEARNING_RATE = 0.1
SKETCH_DIM = 64


def main(
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    address: Annotated[str, typer.Option(help="host:port of the service")] = "localhost:50051",
    run: Annotated[str | None, typer.Option(help="name of this training job; none: a new one")] = None,
    policy: Annotated[str, typer.Option(help="what to prefer; shuffle is the baseline")] = "gradient_clustering",
    epochs: Annotated[int, typer.Option(help="passes over the data")] = 20,
    checkpoint: Annotated[Path | None, typer.Option(help="folder for a checkpoint after each epoch")] = None,
) -> float:
    """Train; returns the accuracy on the test images."""
    accelerator = Accelerator()
    set_seed(0)
    images = load(data)
    loader = DataLoader(images.train, batch_size=GLOBAL_BATCH_SIZE // accelerator.num_processes)
    model = make_model(images.image_shape, images.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    sketcher = sampler.GradientSketcher(model, dim=SKETCH_DIM)

    # (1) After Accelerator(), which knows the ranks, and never in prepare(), which would deal the batches out again.
    (name,) = broadcast_object_list([run or f"{images.name}-{policy}-{time.strftime('%H%M%S')}"])
    loader = sampler.attach(loader, address, run=name, policy=policy, epochs=epochs)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(loader)  # its position
    if checkpoint is not None and checkpoint.exists():
        accelerator.load_state(str(checkpoint))

    with loader:
        for epoch in range(loader.state_dict()["epoch"], epochs):
            for (x, y), batch in loader:
                losses = F.cross_entropy(model(x.to(accelerator.device)), y.to(accelerator.device), reduction="none")
                accelerator.backward(batch.weighted_mean(losses))  # (2)
                optimizer.step()
                optimizer.zero_grad()
                batch.report(losses, sketcher)  # (3) every process reports its own part
            accelerator.print(f"epoch {epoch:3d}  {loader.reason}")
            if checkpoint is not None:
                accelerator.save_state(str(checkpoint))

    sketcher.close()
    found = accuracy(accelerator.unwrap_model(model), images.test)
    accelerator.print(f"accuracy on {len(images.test):,} test images: {found:.1%}")
    accelerator.end_training()
    return found


if __name__ == "__main__":
    typer.run(main)
