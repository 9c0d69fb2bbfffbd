"""The same as `train.py` on several processes: each rank trains on its own part of every global batch.

    sampler-service up                                                       # in another terminal
    torchrun --nproc-per-node 2 -m trainer_examples.train_ddp
    torchrun --nproc-per-node 2 -m trainer_examples.train_ddp --data path/to/mnist --policy importance
    torchrun --nproc-per-node 2 -m trainer_examples.train_ddp --two-stage

The ranks join one run. The service splits each global batch over them, so no two get the same example in a step of
a sweep, and no DistributedSampler is needed. Rank and world size come from torch.distributed.
"""

from __future__ import annotations

import time
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
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
    two_stage: Annotated[
        bool, typer.Option(help="let a forward pass choose each batch, with the policy of that name")
    ] = False,
) -> None:
    """Train on the processes that torchrun started; rank 0 prints."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same model everywhere
    torch.set_num_threads(1)
    images = load(data)
    loader = DataLoader(images.train, batch_size=GLOBAL_BATCH_SIZE // world_size, shuffle=True)
    model = make_model(images.image_shape, images.num_classes)
    sketcher = None if two_stage else sampler.GradientSketcher(model, dim=SKETCH_DIM)
    model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    # (1) One run for all ranks, so rank 0 names it.
    name = [run or f"{images.name}-{policy}-{time.strftime('%H%M%S')}"]
    dist.broadcast_object_list(name)
    chosen_by = model if two_stage else None
    policy = "two_stage" if two_stage else policy
    loader = sampler.attach(loader, address, run=name[0], policy=policy, epochs=epochs, two_stage=chosen_by)

    with loader:
        for epoch in range(epochs):
            total = torch.zeros(2)
            for (x, y), batch in loader:
                optimizer.zero_grad()
                losses = F.cross_entropy(model(x), y, reduction="none")
                loss = batch.weighted_mean(losses)  # (2) DDP's average over ranks makes it the global batch's mean
                loss.backward()
                optimizer.step()
                batch.report(losses, sketcher)  # (3) every rank reports its own part
                total += torch.tensor([loss.item(), 1.0])
            dist.all_reduce(total)
            if rank == 0:
                print(f"epoch {epoch:3d}  mean loss {total[0] / total[1]:.4f}  {loader.reason}")

    if rank == 0:
        print(f"accuracy on {len(images.test):,} test images: {accuracy(model.module, images.test):.1%}")
    if sketcher is not None:
        sketcher.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
