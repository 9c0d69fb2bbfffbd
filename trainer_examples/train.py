"""Train a classifier on batches that the sampling service chooses. One process, read from top to bottom.

    sampler-service up                                    # the service, in another terminal
    python -m trainer_examples.train                      # scikit-learn's digits
    python -m trainer_examples.train --data path/to/mnist --policy importance --epochs 5

It is an ordinary PyTorch script but for the lines marked (1), (2) and (3). Where the service runs on another
machine, say --address host:50051; where the run goes on, say the same --run again.
"""

from __future__ import annotations

import time
from typing import Annotated

import torch
import typer
from torch.nn import functional as F
from torch.utils.data import DataLoader

import sampler_client as sampler
from trainer_examples.data import load
from trainer_examples.models import accuracy, make_model

BATCH_SIZE = 64
LEARNING_RATE = 0.1
SKETCH_DIM = 64  # numbers by which the service knows an example's gradient


def main(
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    address: Annotated[str, typer.Option(help="host:port of the service")] = "localhost:50051",
    run: Annotated[str | None, typer.Option(help="name of this training job; none: a new one")] = None,
    policy: Annotated[str, typer.Option(help="what to prefer; shuffle is the baseline")] = "gradient_clustering",
    epochs: Annotated[int, typer.Option(help="passes over the data")] = 20,
    seed: Annotated[int, typer.Option(help="of the model and of the sampling")] = 0,
) -> float:
    """Train, and print the loss of each epoch; returns the accuracy on the test images."""
    torch.manual_seed(seed)
    images = load(data)
    print(images)
    loader = DataLoader(images.train, batch_size=BATCH_SIZE, shuffle=True)
    model = make_model(images.image_shape, images.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    # (1) The same DataLoader; from here on the service says which examples it yields.
    run = run or f"{images.name}-{policy}-{time.strftime('%H%M%S')}"
    loader = sampler.attach(loader, address, run=run, policy=policy, seed=seed, epochs=epochs)
    sketcher = sampler.GradientSketcher(model, dim=SKETCH_DIM)

    with loader:
        for epoch in range(epochs):
            total, seen = 0.0, 0
            for (x, y), batch in loader:
                optimizer.zero_grad()
                losses = F.cross_entropy(model(x), y, reduction="none")  # one per example
                loss = batch.weighted_mean(losses)  # (2) was losses.mean(); the weights undo the preference
                loss.backward()
                optimizer.step()
                batch.report(losses, sketcher)  # (3) returns at once; tells what the gradients looked like
                total, seen = total + loss.item() * len(batch), seen + len(batch)
            print(f"epoch {epoch:3d}  {seen:6,d} examples, mean loss {total / seen:.4f}  {loader.reason}")

    sketcher.close()
    found = accuracy(model, images.test)
    print(f"accuracy on {len(images.test):,} test images: {found:.1%}")
    return found


if __name__ == "__main__":
    typer.run(main)
