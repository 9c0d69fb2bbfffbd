"""A Hugging Face Trainer on the service's batches. Importing this imports Transformers (extra `transformers`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from sampler_client.batch import Batch, Sketcher
from sampler_client.errors import ConfigError
from sampler_client.pytorch.loader import SampledLoader

HANDLE = "sampled_batch"
"""key of the handle among a batch's inputs"""


class SampledTrainer(Trainer):
    """A Trainer whose training batches the service plans, with per-example losses, weights and reports.

    Its checkpoints hold the position, in trainer_state.json; `train(resume_from_checkpoint=…)` goes on there. The
    Trainer's own way, to skip batches, is off (`ignore_data_skip`). The loader is closed when `train` is through.
    With several processes, start them by torchrun; several GPUs in one process are refused.

    Args:
        attach: from the Trainer's DataLoader to what `sampler_client.attach` makes of it.
        losses: from the model and a batch of inputs to the loss of each example, (b,).
        sketcher: of the model; None to report losses alone.
        arguments, options: those of `transformers.Trainer`.

    Raises:
        ConfigError: several GPUs in one process.

    Example:
        trainer = SampledTrainer(
            model, args, train_dataset=data,
            attach=lambda loader: sampler_client.attach(loader, "localhost:50051", run="lm"),
            losses=lambda model, inputs: cross_entropy(model(inputs["x"]), inputs["labels"], reduction="none"),
        )
    """

    def __init__(
        self,
        *arguments: Any,
        attach: Callable[[DataLoader[Any]], SampledLoader],
        losses: Callable[[nn.Module, dict[str, Any]], Tensor],
        sketcher: Sketcher | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        if self.args.n_gpu > 1:
            raise ConfigError(
                f"the Trainer would use nn.DataParallel on {self.args.n_gpu} GPUs, of which no sketches can be taken: "
                "start one process for each with torchrun"
            )
        self._attach, self._example_losses, self._sketcher = attach, losses, sketcher
        self._attached: SampledLoader | None = None
        self._batch: Batch | None = None
        self._losses: Tensor | None = None
        self.args.ignore_data_skip = True  # the service goes on where the checkpoint was made
        self.model_accepts_loss_kwargs = False  # means over examples: the Trainer divides by its accumulation steps
        self.add_callback(SampledPosition())

    def get_train_dataloader(self) -> Any:
        """The Trainer's own DataLoader, attached."""
        ours = super().get_train_dataloader()
        plain = DataLoader(
            ours.dataset,
            batch_size=self._train_batch_size,
            drop_last=self.args.dataloader_drop_last,
            collate_fn=ours.collate_fn,
            num_workers=ours.num_workers,
            prefetch_factor=ours.prefetch_factor,
            persistent_workers=ours.persistent_workers,
            pin_memory=ours.pin_memory,
            worker_init_fn=ours.worker_init_fn,
        )
        self._close()  # that of a batch size that was too large
        self._attached = self._attach(plain)
        return _Inputs(self._attached)

    def train(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().train(*arguments, **options)
        finally:
            self._close()

    def _close(self) -> None:
        if self._attached is not None:
            self._attached.close()
            self._attached = None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self._batch = batch = inputs.pop(HANDLE)
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
            batch.report(self._losses, self._sketcher)
        finally:
            self._batch = self._losses = None
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self._batch is None:  # in an evaluation
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._losses = self._example_losses(model, inputs)
        return self._batch.weighted_mean(self._losses)


class SampledPosition(TrainerCallback, ExportableState):
    """Keeps the loader's position in the Trainer's state."""

    def __init__(self) -> None:
        self.position: dict[str, Any] | None = None
        self._loader: SampledLoader | None = None

    def state(self) -> dict[str, Any]:
        if self._loader is not None:
            self.position = self._loader.state_dict()
        return {"args": {}, "attributes": {"position": self.position}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._loader = loader = kwargs["train_dataloader"].sampled
        saved = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step and saved is None:
            raise ConfigError(
                "the checkpoint has no position: it was made by another Trainer than a SampledTrainer. Go on from its "
                "model alone, without resume_from_checkpoint"
            )
        if state.global_step:
            loader.load_state_dict(saved["attributes"]["position"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if self._loader is not None:
            self._loader.end_epoch()


class _Inputs:
    """What the Trainer iterates: each batch's inputs with its handle among them. It has no `set_epoch` to be called."""

    def __init__(self, sampled: SampledLoader) -> None:
        self.sampled = sampled
        self.dataset = sampled.dataset

    def __len__(self) -> int:
        return len(self.sampled)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for inputs, batch in self.sampled:
            if not isinstance(inputs, Mapping):
                raise ConfigError(
                    f"a Trainer's batches are mappings of inputs, the collator made a {type(inputs).__name__}"
                )
            yield {**inputs, HANDLE: batch}
