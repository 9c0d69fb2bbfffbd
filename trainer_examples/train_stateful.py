"""The same as `train.py` over torchdata's StatefulDataLoader, with a checkpoint now and then.

    sampler-service up                                                    # in another terminal
    python -m trainer_examples.train_stateful --checkpoint out/stateful.pt
    python -m trainer_examples.train_stateful --checkpoint out/stateful.pt --run NAME    # goes on, inside an epoch

The loader's state is the position in the run, and what the dataset in each worker says of itself.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch.nn import functional as F
from torchdata.stateful_dataloader import StatefulDataLoader

import sampler_client as sampler
from trainer_examples.data import load
from trainer_examples.models import accuracy, make_model

BATCH_SIZE = 64
LEARNING_RATE = 0.1
SKETCH_DIM = 64


def main(  # noqa: PLR0913 - the options of a command line
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    address: Annotated[str, typer.Option(help="host:port of the service")] = "localhost:50051",
    run: Annotated[str | None, typer.Option(help="name of this training job; none: a new one")] = None,
    policy: Annotated[str, typer.Option(help="what to prefer; shuffle is the baseline")] = "gradient_clustering",
    epochs: Annotated[int, typer.Option(help="passes over the data")] = 20,
    checkpoint: Annotated[Path | None, typer.Option(help="file to keep the state in, and to go on from")] = None,
    every: Annotated[int, typer.Option(help="steps between checkpoints")] = 10,
    workers: Annotated[int, typer.Option(help="processes that load")] = 2,
) -> float:
    """Train; returns the accuracy on the test images."""
    torch.manual_seed(0)
    images = load(data)
    run = run or f"{images.name}-{policy}-{time.strftime('%H%M%S')}"
    print(f"{images}; run {run}")
    model = make_model(images.image_shape, images.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    sketcher = sampler.GradientSketcher(model, dim=SKETCH_DIM)

    # (1) It stays a StatefulDataLoader; its state is part of the attached one's.
    loader = StatefulDataLoader(images.train, batch_size=BATCH_SIZE, num_workers=workers)
    loader = sampler.attach(loader, address, run=run, policy=policy, epochs=epochs)
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])

    with loader:
        for epoch in range(loader.state_dict()["epoch"], epochs):
            for (x, y), batch in loader:
                optimizer.zero_grad()
                losses = F.cross_entropy(model(x), y, reduction="none")
                batch.weighted_mean(losses).backward()  # (2)
                optimizer.step()
                batch.report(losses, sketcher)  # (3)
                if checkpoint is not None and batch.run_step % every == 0:
                    parts = {"model": model, "optimizer": optimizer, "loader": loader}
                    checkpoint.parent.mkdir(parents=True, exist_ok=True)
                    torch.save({name: part.state_dict() for name, part in parts.items()}, checkpoint)
            print(f"epoch {epoch:3d}  {loader.reason}")

    sketcher.close()
    found = accuracy(model, images.test)
    print(f"accuracy on {len(images.test):,} test images: {found:.1%}")
    return found


if __name__ == "__main__":
    typer.run(main)
