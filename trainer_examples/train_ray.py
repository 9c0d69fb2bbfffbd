"""The same as `train_ddp.py` on Ray Train's workers.

    sampler-service up                                                    # in another terminal
    python -m trainer_examples.train_ray --workers 2                      # scikit-learn's digits

It is an ordinary Ray Train script but for the lines marked (1), (2) and (3): above all, the loader is not prepared.
When a worker is lost, Ray starts all of them again, and they go on from the latest checkpoint.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import ray.train
import torch
import typer
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch.nn import functional as F
from torch.utils.data import DataLoader

import sampler_client as sampler
from trainer_examples.data import load
from trainer_examples.models import accuracy, make_model

GLOBAL_BATCH_SIZE = 64
LEARNING_RATE = 0.1
SKETCH_DIM = 64
KEPT = "state.pt"


def train(config: dict[str, Any]) -> None:
    """What each worker runs."""
    torch.manual_seed(0)  # the same model everywhere
    torch.set_num_threads(1)
    workers, device = ray.train.get_context().get_world_size(), get_device()
    images = load(config["data"])
    loader = DataLoader(images.train, batch_size=GLOBAL_BATCH_SIZE // workers)
    bare = make_model(images.image_shape, images.num_classes)
    sketcher = sampler.GradientSketcher(bare, dim=SKETCH_DIM)
    model = prepare_model(bare)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    # (1) No prepare_data_loader, which would put a sampler of its own in.
    loader = sampler.attach(loader, config["address"], run=config["run"], policy=config["policy"])
    if (kept := ray.train.get_checkpoint()) is not None:
        with kept.as_directory() as folder:
            state = torch.load(Path(folder, KEPT), map_location=device)
        bare.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])

    with loader:
        for epoch in range(loader.state_dict()["epoch"], config["epochs"]):
            for (x, y), batch in loader:
                optimizer.zero_grad()
                losses = F.cross_entropy(model(x.to(device)), y.to(device), reduction="none")
                batch.weighted_mean(losses).backward()  # (2)
                optimizer.step()
                batch.report(losses, sketcher)  # (3) every worker reports its own part
            loader.flush()  # the service knows all of an epoch before any worker begins the next
            state = {"model": bare.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
            found = {"epoch": epoch, "accuracy": accuracy(bare, images.test)}
            with tempfile.TemporaryDirectory() as folder:
                torch.save(state, Path(folder, KEPT))
                first = ray.train.get_context().get_world_rank() == 0
                ray.train.report(found, checkpoint=ray.train.Checkpoint.from_directory(folder) if first else None)
    sketcher.close()


def main(
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    address: Annotated[str, typer.Option(help="host:port of the service")] = "localhost:50051",
    run: Annotated[str | None, typer.Option(help="name of this training job; none: a new one")] = None,
    policy: Annotated[str, typer.Option(help="what to prefer; shuffle is the baseline")] = "gradient_clustering",
    epochs: Annotated[int, typer.Option(help="passes over the data")] = 20,
    workers: Annotated[int, typer.Option(help="processes")] = 2,
    storage: Annotated[str | None, typer.Option(help="folder for checkpoints; none: Ray's own")] = None,
) -> float:
    """Train; returns the accuracy on the test images."""
    run = run or f"ray-{policy}-{time.strftime('%H%M%S')}"
    trainer = TorchTrainer(
        train,
        train_loop_config={"data": data, "address": address, "run": run, "policy": policy, "epochs": epochs},
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(
            name=run, storage_path=storage, failure_config=ray.train.FailureConfig(max_failures=3)
        ),
    )
    found = (trainer.fit().metrics or {})["accuracy"]
    print(f"accuracy on the test images: {found:.1%}")
    return found


if __name__ == "__main__":
    typer.run(main)
