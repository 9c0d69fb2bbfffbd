"""Seeded random matrices: the same on every machine, in every process, under every wrapper.

A matrix belongs to one axis of one parameter: a weight of shape (out, in) has a matrix for its "rows" and one for
its "columns". Tied weights are one parameter, so they share their matrices whatever layer uses them.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def canonical_name(name: str) -> str:
    """A module's or parameter's dotted name without what DDP, FSDP, checkpointing and `torch.compile` add to it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    # Only the outermost "module" is DDP's: a model may well have a submodule of that name.
    return ".".join(parts[1:] if len(parts) > 1 and parts[0] == "module" else parts)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module below DDP, FSDP and `torch.compile`."""
    while True:
        inner = next((m for n, m in model.named_children() if n in _WRAPPERS or _is_parallel(model, n)), None)
        if inner is None:
            return model
        model = inner


def _is_parallel(model: nn.Module, child: str) -> bool:
    return child == "module" and isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel))


def gaussian(seed: int, parameter: str, role: str, shape: tuple[int, ...], *, std: float = 1.0) -> Tensor:
    """Independent N(0, std^2) entries, float32 on the CPU, a function of the arguments alone.

    numpy's Philox is keyed with sha256(seed|parameter|role): torch's own generators differ between CPU and CUDA,
    and Python's `hash` differs between processes.
    """
    digest = hashlib.sha256(f"{seed}|{parameter}|{role}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32) * np.float32(std))
