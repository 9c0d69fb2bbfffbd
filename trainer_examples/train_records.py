"""Train on records that the service holds, with none on the trainer's own machine. One process, top to bottom.

    sampler-service up                                                      # in another terminal
    python -m trainer_examples.train_records                                # registers the digits, trains on them
    sampler-service ingest path/to/cifar10/train.parquet --name cifar10     # data of your own, once
    python -m trainer_examples.train_records --dataset cifar10 --decode 32  # its images are files of 32 x 32 pixels

A data set has the columns `image` and `label` (0 … 9). Files of images are decoded by the service, on the processors of
its nodes, and arrive as (b, h, w, 3) uint8; arrays arrive as they are.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_service.records import ingest

BATCH_SIZE = 64
LEARNING_RATE = 0.05
CLASSES = 10


def register_digits(data_dir: str | None) -> str:
    """Registers scikit-learn's digits for the service on this machine; the name. Doing so again changes nothing."""
    import pyarrow as pa
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = pa.FixedSizeListArray.from_arrays(digits.images.astype("uint8").ravel(), 64)
    ingest(pa.table({"image": pixels, "label": digits.target}), "digits-records", data_dir=data_dir)
    return "digits-records"


def scaled(image: Tensor) -> Tensor:
    """(b, values) float32 of about 0 … 1 and 0 on average, of uint8 of any shape (b, …)."""
    flat = image.flatten(1).float()
    return flat / flat.amax().clamp(min=1) - 0.5


def main(  # noqa: PLR0913 - the options of a command line
    dataset: Annotated[str | None, typer.Option(help="name that it was ingested under; none: the digits")] = None,
    address: Annotated[str, typer.Option(help="host:port of the service")] = "localhost:50051",
    run: Annotated[str | None, typer.Option(help="name of this training job; none: a new one")] = None,
    policy: Annotated[str, typer.Option(help="what to prefer; shuffle is the baseline")] = "selective_backprop",
    epochs: Annotated[int, typer.Option(help="passes over the data")] = 10,
    decode: Annotated[int, typer.Option(help="height and width that image files are decoded to; 0: arrays")] = 0,
    workers: Annotated[int, typer.Option(help="processes that receive; each has a stream of its own")] = 2,
    data_dir: Annotated[str | None, typer.Option(help="the service's --data-dir, if it has one")] = None,
) -> float:
    """Train, and print the loss of each epoch; returns that of the last one."""
    torch.manual_seed(0)
    dataset = dataset or register_digits(data_dir)
    run = run or f"{dataset}-{policy}-{time.strftime('%H%M%S')}"

    # (1) In the place of a data set and its sampler. Each worker has a stream; gRPC does not survive a fork.
    images = [sampler.DecodeImage(column="image", height=decode, width=decode)] if decode else []
    records = sampler.RemoteBatches(
        address, run=run, dataset=dataset, batch_size=BATCH_SIZE, policy=policy, decode=images
    )
    context = "forkserver" if workers else None
    loader = DataLoader(records, batch_size=None, num_workers=workers, multiprocessing_context=context)

    model = nn.Sequential(nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, CLASSES))  # knows its width by the first batch
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    mean = float("nan")
    with records:
        for epoch in range(epochs):
            total, seen = 0.0, 0
            for columns, batch in loader:
                losses = F.cross_entropy(model(scaled(columns["image"])), columns["label"], reduction="none")
                optimizer.zero_grad()
                batch.weighted_mean(losses).backward()  # (2)
                optimizer.step()
                batch.report(losses)  # (3)
                total, seen = total + losses.sum().item(), seen + len(batch)
            mean = total / seen
            print(f"epoch {epoch:3d}  {seen:6,d} examples, mean loss {mean:.4f}")
    return mean


if __name__ == "__main__":
    typer.run(main)
