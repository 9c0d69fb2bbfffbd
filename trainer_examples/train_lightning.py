"""The same as `train.py` under Lightning's Trainer, in one process or several.

    sampler-service up                                                    # in another terminal
    python -m trainer_examples.train_lightning                            # scikit-learn's digits
    python -m trainer_examples.train_lightning --devices 2 --checkpoints out/lightning
    python -m trainer_examples.train_lightning --run NAME --resume out/lightning/last.ckpt

It is an ordinary Lightning module but for the lines marked (1), (2) and (3). Checkpoints hold the loader's position.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import lightning
import torch
import typer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_client.pytorch.lightning import SamplerCallback
from trainer_examples.data import ImageData, load
from trainer_examples.models import accuracy, make_model

GLOBAL_BATCH_SIZE = 64
LEARNING_RATE = 0.1
SKETCH_DIM = 64


class Classifier(lightning.LightningModule):
    """A classifier of images; `options` are those of `attach`."""

    def __init__(self, images: ImageData, address: str, run: str, **options: Any) -> None:
        super().__init__()
        self.images, self.address, self.run_name, self.options = images, address, run, options
        self.model = make_model(images.image_shape, images.num_classes)

    def train_dataloader(self) -> sampler.SampledLoader:
        # (1) Here and not earlier: only now does this process know its rank. One run for all of them: rank 0 names it.
        loader = DataLoader(self.images.train, batch_size=GLOBAL_BATCH_SIZE // self.trainer.world_size)
        run = self.trainer.strategy.broadcast(self.run_name)
        return sampler.attach(loader, self.address, run=run, **self.options)

    def training_step(self, item: tuple[Any, sampler.Batch], _: int) -> dict[str, Tensor]:
        (x, y), batch = item
        losses = F.cross_entropy(self.model(x), y, reduction="none")
        return {"loss": batch.weighted_mean(losses), "losses": losses}  # (2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def main(  # noqa: PLR0913 - the options of a command line
    data: Annotated[str | None, typer.Option(help="Parquet file or folder; none: scikit-learn's digits")] = None,
    address: Annotated[str, typer.Option(help="host:port of the service")] = "localhost:50051",
    run: Annotated[str | None, typer.Option(help="name of this training job; none: a new one")] = None,
    policy: Annotated[str, typer.Option(help="what to prefer; shuffle is the baseline")] = "gradient_clustering",
    epochs: Annotated[int, typer.Option(help="passes over the data")] = 20,
    devices: Annotated[int, typer.Option(help="processes")] = 1,
    checkpoints: Annotated[Path | None, typer.Option(help="folder for a checkpoint after each epoch")] = None,
    resume: Annotated[str | None, typer.Option(help="checkpoint to go on from")] = None,
) -> float:
    """Train; returns the accuracy on the test images."""
    lightning.seed_everything(0, verbose=False)
    images = load(data)
    run = run or f"{images.name}-{policy}-{time.strftime('%H%M%S')}"
    module = Classifier(images, address, run, policy=policy, epochs=epochs)
    sketcher = sampler.GradientSketcher(module.model, dim=SKETCH_DIM)
    callbacks: list[lightning.Callback] = [SamplerCallback(sketcher)]  # (3) reports each step
    if checkpoints is not None:
        callbacks.append(ModelCheckpoint(checkpoints, save_last=True))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        max_epochs=epochs,
        callbacks=callbacks,
        use_distributed_sampler=False,
        enable_checkpointing=checkpoints is not None,
        logger=False,
    )
    trainer.fit(module, ckpt_path=resume)
    sketcher.close()
    found = accuracy(module.model, images.test)
    if trainer.is_global_zero:
        print(f"accuracy on {len(images.test):,} test images: {found:.1%}")
    return found


if __name__ == "__main__":
    typer.run(main)
