"""Lightning's Trainer on the service's batches: each example once an epoch, also where a checkpoint is gone on from."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

import sampler_client as sampler
from sampler_client.pytorch.lightning import SamplerCallback
from tests.frameworks.conftest import BATCH, SKETCH_DIM, STEPS, Seen, assert_each_once, losses_of, numbers

EPOCHS = 3


class Module(lightning.LightningModule):
    def __init__(self, attach) -> None:
        super().__init__()
        self.model = nn.Linear(1, 2)
        self.attach = attach

    def train_dataloader(self):
        return self.attach()

    def training_step(self, item, _):
        (x,), batch = item
        losses = losses_of(self.model, x)
        return {"loss": batch.weighted_mean(losses), "losses": losses}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer_of(*callbacks, **options) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given = {"accelerator": "cpu", "enable_checkpointing": False, **quiet, **options}
    return lightning.Trainer(callbacks=[*callbacks], **given)


def fitted(attach, *callbacks, resume: Path | None = None, **options) -> None:
    module = Module(attach)
    with sampler.GradientSketcher(module.model, dim=SKETCH_DIM) as sketcher:
        trainer = trainer_of(SamplerCallback(sketcher), *callbacks, **options)
        trainer.fit(module, ckpt_path=resume)


def test_a_fit_reports_every_example_with_its_sketch_once_an_epoch_and_closes_the_loader(attach, served, reported):
    fitted(attach, max_epochs=EPOCHS)
    assert_each_once(reported, EPOCHS)
    said = served.service.statistics("r")
    assert (said.reported_rows, said.rejected_rows, said.trainers) == (len(reported), {}, 0)
    assert said.sketch_coverage == 1


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path")
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("steps", [3, STEPS - 1, STEPS, STEPS + 2])
def test_going_on_from_a_checkpoint_loses_and_repeats_nothing(attach, reported: Seen, tmp_path, steps, accumulated):
    keep = ModelCheckpoint(tmp_path, filename="kept", every_n_train_steps=1, save_top_k=1)
    if accumulated > 1 and steps % STEPS % accumulated:
        steps += 1  # the Trainer saves after optimiser steps only
    stop = Stop(steps)
    fitted(attach, keep, stop, max_epochs=EPOCHS, enable_checkpointing=True, accumulate_grad_batches=accumulated)
    assert len({epoch for epoch, _ in reported}) == 1 + (steps - 1) // STEPS
    fitted(attach, resume=tmp_path / "kept.ckpt", max_epochs=EPOCHS, accumulate_grad_batches=accumulated)
    assert_each_once(reported, EPOCHS)


class Stop(lightning.Callback):
    """Stops training after so many batches, wherever that is."""

    def __init__(self, batches: int) -> None:
        self._left = batches

    def on_train_batch_end(self, trainer, *_):
        self._left -= 1
        trainer.should_stop = self._left <= 0


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path")
def test_going_on_from_the_end_of_an_epoch_begins_the_next(attach, reported, tmp_path):
    keep = ModelCheckpoint(tmp_path, filename="kept", save_top_k=1)
    fitted(attach, keep, max_epochs=1, enable_checkpointing=True)
    fitted(attach, resume=tmp_path / "kept.ckpt", max_epochs=EPOCHS)
    assert_each_once(reported, EPOCHS)


def test_the_loader_beneath_is_refused_with_the_line_to_write(attach):
    loader = attach()
    with (
        loader,
        pytest.raises(sampler.ConfigError, match=r"lightning.*return what attach gave from train_dataloader\(\)"),
    ):
        trainer_of(max_epochs=1).fit(Module(lambda: loader.loader))


def test_the_callback_says_when_no_attached_loader_is_trained_on():
    plain = DataLoader(numbers(), batch_size=BATCH)
    with pytest.raises(sampler.ConfigError, match="needs what attach returned as train_dataloader, got a DataLoader"):
        trainer_of(SamplerCallback(), max_epochs=1).fit(Module(lambda: plain))


def test_a_step_that_returns_no_losses_is_told_what_to_return(attach, served):
    class Forgetful(Module):
        def training_step(self, item, _):
            return super().training_step(item, _)["loss"]

    with pytest.raises(sampler.ConfigError, match=r'return .*"losses": losses'):
        trainer_of(SamplerCallback(), max_epochs=1).fit(Forgetful(attach))
    assert served.service.statistics("r").trainers == 0, "the loader is closed"
