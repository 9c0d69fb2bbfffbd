"""A small language model from scratch: one loss, one weight and one sketch for each text, not for each token.

    sampler-service up                                                    # in another terminal
    python -m trainer_examples.train_language_model                       # descriptions of scikit-learn's data sets
    python -m trainer_examples.train_language_model --data path/to/multi30k --column en --steps 2000
    python -m trainer_examples.train_language_model --policies shuffle,auto --seeds 3   # compared at equal steps

It is an ordinary script but for the lines marked (1), (2) and (3).
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Annotated

import torch
import typer
from torch.utils.data import DataLoader, TensorDataset

import sampler_client as sampler
from trainer_examples.models import CausalTransformer
from trainer_examples.texts import LENGTH, VOCABULARY, TextData, load_texts, sequence_losses

BATCH_SIZE = 32
LEARNING_RATE = 3e-3
SKETCH_DIM = 64


def train(texts: TextData, address: str, run: str, policy: str, steps: int, seed: int) -> float:
    """Train for so many steps; returns the loss on the test texts, in bits a byte."""
    torch.manual_seed(seed)
    model = CausalTransformer(VOCABULARY, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    sketcher = sampler.GradientSketcher(model, dim=SKETCH_DIM)
    loader = DataLoader(TensorDataset(texts.train), batch_size=BATCH_SIZE, shuffle=True)
    epochs = math.ceil(steps / len(loader))

    # (1) From here on the service says which texts the loader yields.
    loader = sampler.attach(loader, address, run=run, policy=policy, seed=seed, epochs=epochs)

    step = 0
    with loader, sketcher:
        while step < steps:
            for (text,), batch in loader:
                optimizer.zero_grad()
                losses = sequence_losses(model(text[:, :-1]), text)  # one per text
                batch.weighted_mean(losses).backward()  # (2)
                optimizer.step()
                batch.report(losses, sketcher)  # (3)
                step += 1
                if step == steps:
                    break
            print(f"step {step:5d}  {loader.reason}")

    model.eval()
    with torch.no_grad():
        parts = [sequence_losses(model(text[:, :-1]), text) for text in texts.test.split(256)]
    return torch.cat(parts).mean().item() / math.log(2)


def main(
    data: Annotated[
        str | None, typer.Option(help="text file, or folder with Parquet files; none: descriptions")
    ] = None,
    column: Annotated[str, typer.Option(help="of the Parquet files")] = "en",
    address: Annotated[str, typer.Option(help="host:port of the service")] = "localhost:50051",
    run: Annotated[str | None, typer.Option(help="name of this training job; none: a new one")] = None,
    policies: Annotated[str, typer.Option(help="what to prefer, comma-separated; shuffle is the baseline")] = "auto",
    steps: Annotated[int, typer.Option(help="of each policy")] = 300,
    seeds: Annotated[int, typer.Option(help="runs of each policy")] = 1,
) -> dict[str, list[float]]:
    """Train under each policy, and print the losses; returns {policy: bits a byte for each seed}."""
    texts = load_texts(data, column)
    print(texts)
    name = run or f"{texts.name}-{time.strftime('%H%M%S')}"
    chosen = policies.split(",")
    found: dict[str, list[float]] = {policy: [] for policy in chosen}
    for seed in range(seeds):
        for policy in chosen:
            found[policy].append(train(texts, address, f"{name}-{policy}-{seed}", policy, steps, seed))
    for policy, losses in found.items():
        deviation = f" ± {statistics.stdev(losses):.3f}" if seeds > 1 else ""
        print(f"{policy}: test loss {statistics.mean(losses):.3f}{deviation} bits a byte after {steps} steps")
    return found


if __name__ == "__main__":
    typer.run(main)
