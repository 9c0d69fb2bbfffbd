"""What a backward pass left on the device, to be brought to the host later and in another thread.

Shapes: b examples, d sketch length.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_POLL_S = 0.0005


class Deferred:
    """A tensor as it is now, without waiting for the device that is still computing it.

    Args:
        tensor: on any device.
        copy: keep a copy, for a tensor that others may change; it is made on the device, behind what computes it.
    """

    def __init__(self, tensor: Tensor, *, copy: bool = True) -> None:
        self._tensor = tensor.detach().clone() if copy else tensor.detach()
        self._ready: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> NDArray[np.float32]:
        """Its values, when the device has them; what the device was given to do afterwards is not waited for."""
        if self._ready is None:
            return self._tensor.float().cpu().numpy()
        # Not synchronize(): a daemon thread that is inside it when Python ends aborts the process.
        while not self._ready.query():
            time.sleep(_POLL_S)
        with torch.cuda.stream(_copies(self._tensor.device)):
            return self._tensor.float().cpu().numpy()


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """A stream beside that of the training, whose queue may be long."""
    return torch.cuda.Stream(device)


@dataclass(frozen=True, slots=True)
class GradientSketches:
    """What one backward pass told about its b examples, in the order of the batch."""

    sketches: NDArray[Any]
    """(b, d) of the sketcher's dtype; inner products approximate those of the gradients of the examples' losses."""
    norms: NDArray[np.float32]
    """(b,) lengths of those gradients over the sketched layers."""
    usable: NDArray[np.bool_]
    """(b,) False where the gradient can't be told: coefficient zero, or something not finite. Those rows are zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedSketches:
    """The sketches of one backward pass as the device has them, on their way to `GradientSketches`."""

    entries: Callable[[], NDArray[np.float32]]
    """(b, d + 1): c_i times the sketch, and the squared norm"""
    coefficients: Callable[[], NDArray[np.float32]]
    """(b,) c_i = dL/dl_i"""
    dtype: np.dtype[Any]
    norms_from_sketches: bool

    def resolve(self) -> GradientSketches:
        """Wait for the device, and divide by the coefficients. Any thread may do it."""
        entries, c = self.entries(), self.coefficients().reshape(-1)
        with np.errstate(all="ignore"):  # rows that divide by zero or overflow are the ones marked not usable
            exact = entries[:, :-1] / c[:, None]
            sketches = exact
            if self.dtype == np.float16:  # torch converts, and adds up below, five times as fast as numpy
                sketches = torch.from_numpy(exact).half().numpy()
            if self.norms_from_sketches:
                norms = np.linalg.norm(exact, axis=1)
            else:
                norms = np.sqrt(np.maximum(entries[:, -1], np.float32(0))) / np.abs(c)
            # A sum is finite only if all of its terms are, and 0/0 and x/0 are not.
            sums = torch.from_numpy(sketches).sum(1, dtype=torch.float32).numpy()
            usable = np.isfinite(norms + sums) & np.isfinite(c)
        if not usable.all():
            sketches[~usable], norms[~usable] = 0, 0
        return GradientSketches(sketches, norms.astype(np.float32, copy=False), usable)
