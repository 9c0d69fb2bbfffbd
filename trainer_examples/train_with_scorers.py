"""Train with scorers beside the trainer: it publishes its weights now and then, and they keep the sketches fresh.

    sampler-service up --scorers 1 --scoring trainer_examples.scoring:digits   # in another terminal
    python -m trainer_examples.train_with_scorers
    python -m trainer_examples.train_with_scorers --publish-every 0            # for comparison: a sketcher, no scorers

It is `trainer_examples.train` but for the lines marked (1) and (2): nothing is sketched in the backward pass, so a step
costs what it costs without a sampler.
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


def main(
    address: Annotated[str, typer.Option(help="host:port of the service")] = "localhost:50051",
    run: Annotated[str | None, typer.Option(help="name of this training job; none: a new one")] = None,
    policy: Annotated[str, typer.Option(help="what to prefer")] = "auto",
    epochs: Annotated[int, typer.Option(help="passes over the data")] = 60,
    publish_every: Annotated[int, typer.Option(help="steps between two publishes; 0: a sketcher instead")] = 10,
    seed: Annotated[int, typer.Option(help="of the model and of the sampling")] = 0,
) -> float:
    """Train, and print how old the sketches are; returns the accuracy on the test images."""
    torch.manual_seed(seed)
    images = load()
    loader = DataLoader(images.train, batch_size=BATCH_SIZE, shuffle=True)
    model = make_model(images.image_shape, images.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    sketcher = None if publish_every else sampler.GradientSketcher(model)

    run = run or f"digits-{policy}-{time.strftime('%H%M%S')}"
    # (1) The dataset's name tells the service's scoring factory what to score.
    with sampler.attach(loader, address, run=run, dataset="digits", policy=policy, seed=seed) as loader:
        step = 0
        for epoch in range(epochs):
            total, seen = 0.0, 0
            for (x, y), batch in loader:
                optimizer.zero_grad()
                losses = F.cross_entropy(model(x), y, reduction="none")
                loss = batch.weighted_mean(losses)
                loss.backward()
                optimizer.step()
                batch.report(losses, sketcher)
                if publish_every and step % publish_every == 0:
                    loader.publish(model)  # (2) returns at once; scorers take it from here
                step += 1
                total, seen = total + loss.item() * len(batch), seen + len(batch)
            if epoch % 10 == 9:
                print(f"epoch {epoch:3d}  mean loss {total / seen:.4f}  {_known(address, run)}  {loader.reason}")
        loader.flush()

    found = accuracy(model, images.test)
    print(f"accuracy on {len(images.test):,} test images: {found:.1%}")
    return found


def _known(address: str, run: str) -> str:
    with sampler.SamplerClient(address) as client:
        said = client.statistics(run)
    return (
        f"{said.scored_rows:,} rows scored, sketches {said.median_age_steps:.0f} steps old (median), "
        f"{said.p99_age_steps:.0f} (99th percentile)"
    )


if __name__ == "__main__":
    typer.run(main)
