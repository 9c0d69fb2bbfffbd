"""Seeded random matrices: the same on every machine, in every process, under every wrapper.

A matrix belongs to one axis of one parameter: a weight of shape (out, in) has a matrix for its "rows" and one for
its "columns". Tied weights are one parameter, so they share their matrices whatever layer uses them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
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


_WORTH_ONEDNN = 1 << 15
"""Entries of the rows from which oneDNN's product pays for its longer call."""


def project(rows: Tensor, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
    """rows (..., n) and matrix (d, n) -> rows matrix^T + shift, (..., d), float32 and without autograd.

    `F.linear`, except that eager code on a CPU asks oneDNN for it. torch gives float32 products to MKL, which keeps to
    AVX2 on processors other than Intel's. With AVX-512 oneDNN takes half the time there (AMD EPYC, 512 rows of 512;
    less is gained between a small layer's cold caches), and these products are most of what a sketch costs.
    """
    if rows.device.type == "cpu" and not torch.compiler.is_compiling() and rows.numel() >= _WORTH_ONEDNN:
        onednn = _onednn_linear()
        if onednn is not None:
            return onednn(rows, matrix, shift, "none", [], "")
    return F.linear(rows, matrix, shift)


@cache
def _onednn_linear() -> Callable[..., Any] | None:
    """The operator torch.compile itself uses; None in a torch built without it."""
    try:
        linear = torch.ops.mkldnn._linear_pointwise
        linear(torch.zeros(1, 1), torch.zeros(1, 1), None, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return linear
