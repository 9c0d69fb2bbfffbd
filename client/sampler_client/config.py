"""What a person may set, with defaults that suit one service and a few trainers."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

from sampler_client.errors import ConfigError

_UINT32, _UINT64 = 2**32 - 1, 2**64 - 1


def check_whole(name: str, value: Any, least: int, most: int = _UINT32) -> None:
    """Raise ConfigError unless `value` is a whole number from `least` to `most`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} must be a whole number, got {value!r}") from None
    if not least <= number <= most:
        allowed = f"at least {least}" if number < least else f"at most {most}"
        raise ConfigError(f"{name} must be {allowed}, got {value!r}")


def check_within(name: str, value: Any, interval: str) -> None:
    """Raise ConfigError unless `value` is a number in an interval, written as in mathematics: "[0, 1)", "(0, inf)"."""
    try:
        number = float("text" if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} must be a number, got {value!r}") from None
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    if above and below:
        return
    if high < math.inf:
        allowed = f"lie in {interval}"
    elif number == math.inf:
        allowed = "be finite"
    else:
        allowed = f"be at least {low:g}" if interval[0] == "[" else "be positive"
    raise ConfigError(f"{name} must {allowed}, got {value!r}")


def check_scheduled_lr(value: float) -> None:
    """Raise ConfigError unless a learning rate is finite and at least 0, but for the rounding schedules end with."""
    if not -1e-9 <= value < math.inf:
        raise ConfigError(f"lr must lie in [0, inf) at every step, got {float(value)!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Deadlines, in seconds. Every wait of this client has one.

    Example:
        Timeouts(batch_s=600)  # a service that needs long to read its records
    """

    call_s: float = 20.0
    """One control call: join, fence, statistics."""
    open_s: float = 100.0
    """Opening a run; its processes are started, for which the service allows itself 80 s."""
    batch_s: float = 120.0
    """Waiting for one batch."""
    report_s: float = 30.0
    """Sending queued reports once, and `flush()`."""
    publish_s: float = 300.0
    """Sending a model's weights once, and waiting for it in `flush()`."""
    reconnect_s: float = 60.0
    """How long a service that went away is tried again before ServiceUnavailable is raised."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            check_within(f"Timeouts.{name}, in seconds,", getattr(self, name), "(0, inf]")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeImage:
    """Have the service decode a column of image files: (b, height, width, channels) uint8 instead of bytes."""

    column: str
    mode: str = "RGB"
    """"RGB" or "L", 3 channels or 1"""
    height: int = 0
    width: int = 0
    """what images are scaled to; both 0: all must be of the size of the data set's first one"""

    def __post_init__(self) -> None:
        if self.mode not in ("RGB", "L"):
            raise ConfigError(f'DecodeImage.mode must be "RGB" or "L", got {self.mode!r}')
        for name in ("height", "width"):
            check_whole(name, getattr(self, name), 0)
        if bool(self.height) != bool(self.width):
            raise ConfigError(f"give DecodeImage both height and width or neither, got {self.height} and {self.width}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a run samples; sent when it is opened. A run opened twice must be opened alike."""

    policy: str = "auto"
    """Name of the sampling policy; the service lists what it knows when the name is wrong."""
    policy_options: tuple[tuple[str, str], ...] = ()
    """Hyper-parameters of the policy as sorted (name, text) pairs."""
    seed: int = 0
    """All the service's randomness is a function of (seed, epoch, step)."""
    sketch_dim: int = 64
    """Numbers in one sketch; what the sketcher is made with."""
    sketch_dtype: str = "float16"
    """How the service keeps sketches: "float16" or "float32"."""
    num_clusters: int = 0
    """0: as many as examples in a global batch, the choice of gradient clustering."""
    max_lead: int = 0
    """Batches that a trainer may hold unfinished; 0: the service's default (64)."""
    lease_s: float = 0.0
    """Seconds for which a lost trainer's batches wait for its return; 0: the service's default (60)."""
    on_lost: str = "redeliver"
    """What becomes of a lost trainer's batches: "redeliver" (at least once) or "drop" (at most once)."""
    epochs: int = 0
    """Planned length of the run, for policies with phases; 0: unknown."""
    by_budget: bool = False
    """How far the run is goes by a time budget, of which trainers tell at each epoch, instead of by `epochs`."""
    candidates: int = 1
    """Most examples proposed for each one of a batch, of which the trainer keeps the best; 1: no second stage."""

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, _UINT64)
        check_whole("sketch_dim", self.sketch_dim, 1)
        check_whole("candidates", self.candidates, 1)
        for name in ("num_clusters", "max_lead", "epochs"):
            check_whole(name, getattr(self, name), 0)
