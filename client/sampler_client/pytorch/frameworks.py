"""Frameworks that rewrite samplers: told by the modules that their code comes from, with the line to write instead.

None of them is imported here. What each does, and what can't be told, is in docs/frameworks.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch.distributed
from torch.utils.data import DataLoader

from sampler_client.errors import ConfigError

LINES = {
    "accelerate.data_loader": (
        "Accelerate deals batches out over the processes, which the service has done already, and fetches one ahead. "
        "Leave the loader out of prepare(): model, optimizer = accelerator.prepare(model, optimizer)"
    ),
    "ray.train": (
        "Ray Train's prepare_data_loader puts a sampler of its own in, and fetches one batch ahead. Leave it out: "
        "loader = sampler_client.attach(DataLoader(…), …), and move what comes by .to(device)"
    ),
    "lightning": (
        "return what attach gave from train_dataloader(), not its .loader; where a DataLoader of your own has a "
        "RemoteBatchSampler, Trainer(use_distributed_sampler=False)"
    ),
    "transformers": "a Trainer knows no weights and reports: use sampler_client.pytorch.transformers.SampledTrainer",
}
LINES["pytorch_lightning"] = LINES["lightning"]

_REWRITING = ("accelerate.data_loader", "ray.train.torch.train_loop_utils", "ray.train.v2.torch.train_loop_utils")
"""modules whose loaders and samplers take others apart; what else of these frameworks iterates does no harm"""

_PLUMBING = ("sampler_client.", "torch.utils.data.", "torchdata.", "multiprocessing.")


def refuse_rewriting(what: str) -> None:
    """Raise ConfigError where a framework's wrapper, and not a training loop, begins to iterate over `what`."""
    caller = next(_callers(), "")
    if caller in _REWRITING:
        raise ConfigError(f"{caller} iterates over {what}. {line_for(caller)}")


def refuse_stranger(what: str) -> None:
    """Raise ConfigError: somebody begins to iterate over `what`, which only what `attach` returned may."""
    caller = next(_callers(), "")
    line = line_for(caller) or "iterate over what attach returned, not over its .loader"
    raise ConfigError(f"{caller} iterates over {what}: {line}")


def refuse_wrapper(loader: DataLoader[Any]) -> None:
    """Raise ConfigError for a DataLoader whose class changes what is yielded: attaching would lose that."""
    kind = type(loader)
    if not changes_iteration(kind):
        return
    name = f"{kind.__module__}.{kind.__qualname__}"
    line = line_for(kind.__iter__.__module__) or "attach the DataLoader that it was made of"
    raise ConfigError(f"attach needs a plain DataLoader, got a {name}, whose own __iter__ would be lost: {line}")


def changes_iteration(kind: type[DataLoader[Any]]) -> bool:
    """Whether a class of DataLoaders iterates in a way of its own; torchdata's StatefulDataLoader is known."""
    return not kind.__iter__.__module__.startswith(("torch.utils.data.", "torchdata."))


def is_stateful(loader: DataLoader[Any]) -> bool:
    """Whether it is torchdata's StatefulDataLoader."""
    return type(loader).__iter__.__module__.startswith("torchdata.")


def line_for(module: str) -> str:
    """The line to write for a module of a known framework, else ""."""
    return next((line for name, line in LINES.items() if f"{module}.".startswith(f"{name}.")), "")


def check_place(found: tuple[int, int]) -> None:
    """Raise ConfigError when torch.distributed now says another (rank, world size) than was found when attaching."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    now = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if now != found:
        raise ConfigError(
            f"this loader was attached as rank {found[0]} of {found[1]}, but torch.distributed says rank {now[0]} of "
            f"{now[1]}: call attach after the process group is made (Accelerate: after Accelerator(); Lightning: in "
            "train_dataloader()), or pass rank and world_size"
        )


def _callers() -> Iterator[str]:
    """Modules that the present call came through, innermost first, but for this client's and the DataLoader's own, with
    what starts its workers."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not f"{name}.".startswith(_PLUMBING):
            yield name
        frame = frame.f_back
