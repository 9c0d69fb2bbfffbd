"""Reports from a Lightning Trainer. Importing this imports Lightning (extra `lightning`)."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from sampler_client.batch import Batch, Sketcher
from sampler_client.errors import ConfigError
from sampler_client.pytorch.loader import SampledLoader


class SamplerCallback(Callback):
    """Reports what every training step showed, says when epochs are over, and closes the loader when `fit` is through.

    `train_dataloader()` of the module or data module returns what `attach` gives: called there, ranks are known. Each
    batch of the Trainer is then (data, handle). Its checkpoints hold the loader's position, by Lightning itself.

    Args:
        sketcher: of the module whose `forward` `training_step` calls; None to report losses alone.
        losses: key of the per-example losses, (b,), in what `training_step` returns.

    Raises:
        ConfigError: when training starts with another train_dataloader, or a step returns no such losses.

    Example:
        def train_dataloader(self):
            return sampler_client.attach(DataLoader(self.data, batch_size=64), "localhost:50051", run="digits")

        def training_step(self, item, _):
            (x, y), batch = item
            losses = F.cross_entropy(self.model(x), y, reduction="none")
            return {"loss": batch.weighted_mean(losses), "losses": losses}

        Trainer(callbacks=[SamplerCallback(GradientSketcher(module.model))])
    """

    def __init__(self, sketcher: Sketcher | None = None, *, losses: str = "losses") -> None:
        self._sketcher = sketcher
        self._losses = losses

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if not isinstance(trainer.train_dataloader, SampledLoader):
            raise ConfigError(
                "SamplerCallback needs what attach returned as train_dataloader, got a "
                f"{type(trainer.train_dataloader).__name__}: return sampler_client.attach(DataLoader(…), …) from "
                "train_dataloader()"
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: tuple[Any, Batch],
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        losses = outputs.get(self._losses) if isinstance(outputs, dict) else None
        if losses is None:
            raise ConfigError(
                f"training_step must return its per-example losses for the report: "
                f'{{"loss": batch.weighted_mean(losses), "{self._losses}": losses}}'
            )
        _, handle = batch
        handle.report(losses, self._sketcher)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        if isinstance(trainer.train_dataloader, SampledLoader):
            trainer.train_dataloader.end_epoch()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        _close(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        _close(trainer)


def _close(trainer: Trainer) -> None:
    if isinstance(trainer.train_dataloader, SampledLoader):
        trainer.train_dataloader.close()
