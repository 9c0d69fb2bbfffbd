"""What scorers run: the only home of torch on this side. Importing it loads none; a service without scorers has none.

An operator writes a factory and names it when the service is started; no trainer can:

    sampler-service up --scorers 1 --scoring my_project.scoring:factory

    def factory(dataset: str) -> Scoring | None:
        if dataset != "cifar10":
            return None  # not scored here
        return Scoring(model=make_model(), records=CIFAR10("data", transform=plain))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sampler_service.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Scoring"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How the examples of a dataset are scored.

    Args:
        model: built as in training, on the device it is to run on; published weights are loaded into it, and it is in
            evaluation mode from then on.
        records: a map-style dataset; record i is example i of the trainer's. It is read with `__getitems__` where it
            has that, else with `__getitem__`. Without random augmentation scores say more.
        scorer: any function from a collated item to `sampler_client.Scores`, or to norms alone; None: a
            `LastLayerScorer` of the model. It is called under `torch.no_grad()`; one that takes gradients itself needs
            `torch.enable_grad()`. Where trainers choose in two stages, the same one as theirs. Losses that it gives are
            left out: those of a run are the trainers'.
        collate_fn: list of records to item; None: torch's `default_collate`.
        batch_size: records of one forward pass.
    """

    model: nn.Module
    records: Any
    scorer: Callable[[Any], Any] | None = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"Scoring.batch_size must be at least 1, got {self.batch_size}")
        if not hasattr(self.records, "__getitem__") and not hasattr(self.records, "__getitems__"):
            raise ConfigError(
                f"Scoring.records must be a map-style dataset, with __getitem__, got a {type(self.records).__name__}"
            )
