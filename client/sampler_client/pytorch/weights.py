"""A model's weights as they are now, on their way to a safetensors file: never pickle."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from sampler_client.errors import ConfigError
from sampler_client.pytorch.projection import unwrapped

_POLL_S = 0.0005

_SHARDED = (
    "publish() copies whole tensors, and this model is {}, of which a rank holds a part; gather the weights into an "
    "unsharded copy of the model on all ranks (torch.distributed.checkpoint.state_dict), and publish that"
)


class Snapshot:
    """The state dict of a model, copied: what training does to the model afterwards is not in it.

    From a GPU the copies go to pinned memory behind what the device was given to do, and nothing here waits for
    them. Wrappers (DDP, `torch.compile`) are passed by. Tied weights become copies under each of their names.

    Args:
        model: to be copied.

    Raises:
        ConfigError: its state dict holds something else than whole tensors, or safetensors is not installed.
    """

    def __init__(self, model: nn.Module) -> None:
        try:
            import safetensors.torch  # noqa: F401 - said now, not from a thread
        except ImportError:
            raise ConfigError(
                "publish() needs safetensors, which is not installed; pip install 'gradient-sampler[torch]'"
            ) from None
        if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
            raise ConfigError(_SHARDED.format("wrapped in FSDP"))
        self._tensors: dict[str, Tensor] = {}
        self._events: list[torch.cuda.Event] = []
        devices: set[torch.device] = set()
        for name, value in unwrapped(model).state_dict().items():
            if not isinstance(value, Tensor):
                raise ConfigError(
                    f"publish() sends tensors, and state_dict()[{name!r}] is a {type(value).__name__}; publish a "
                    "module without such extra state"
                )
            if type(value).__name__ == "DTensor":  # not worth an import of torch.distributed
                raise ConfigError(_SHARDED.format(f"sharded: {name} is a DTensor"))
            self._tensors[name] = _copied(value.detach())
            if value.is_cuda:
                devices.add(value.device)
        for device in devices:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            self._events.append(event)

    def safetensors(self) -> bytes:
        """A safetensors file; waits for the device."""
        from safetensors.torch import save

        for event in self._events:
            while not event.query():  # not synchronize(): see captured.py
                time.sleep(_POLL_S)
        return save(self._tensors)


def _copied(value: Tensor) -> Tensor:
    """A contiguous copy in the host's memory, that of a GPU perhaps still under way."""
    if not value.is_cuda:
        return value.to("cpu", copy=True).contiguous()
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    return host.copy_(value, non_blocking=True)
