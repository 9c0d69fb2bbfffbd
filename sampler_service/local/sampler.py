"""A weighted sampler for a DataLoader that needs no service: correct at any size, distributed, resumable.

Shapes: n examples, m draws of an epoch over all ranks.
"""

from __future__ import annotations

import operator
import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sampler_service.config import MOST_EXAMPLES, check_whole
from sampler_service.errors import ConfigError, Stale
from sampler_service.planning.distinct import draw_distinct
from sampler_service.planning.randomness import Stream, generator
from sampler_service.planning.weighted import WeightedDrawer, check_weights
from sampler_service.types import Float64, Int64

STATE_VERSION = 1

_CHUNK = 1 << 16
"""ids that are Python numbers at a time"""


@dataclass(slots=True, eq=False)
class _Pass:
    """One iteration: where it began, and what was yielded since."""

    epoch: int
    first: int
    """draws of the epoch that lay behind it, over all ranks"""
    checksum: int
    """of its weights"""
    chunks: int = 0
    """ids of this rank in chunks that were begun"""
    chunk: Iterator[int] = field(default_factory=lambda: iter(()))

    @property
    def yielded(self) -> int:
        return self.chunks - operator.length_hint(self.chunk)


class LocalSampler:
    """Draws examples in proportion to their weights: `DataLoader(dataset, sampler=LocalSampler(weights, n))`.

    Arguments are named as those of torch's WeightedRandomSampler and DistributedSampler, which it joins, and torch
    itself is not needed. Any number of examples up to 2^31 can have weights, where `torch.multinomial` ends at 2^24.

    **Draws.** An epoch is one draw of `num_samples` examples, a function of the weights at its start, the seed and the
    epoch. With replacement it is a systematic sample in random order: example i comes floor or ceil of
    num_samples * w_i / sum(w) times, and that often on average, so even weights and num_samples = n make a shuffled
    epoch. Without, it is what drawing one by one from those left makes.

    **Ranks.** Each takes every num_replicas-th of the same draws: together they have them all, whatever the number of
    ranks. When it does not divide them, the first draws are repeated to even out the ranks, or with `drop_last` the
    last ones left out, as DistributedSampler does.

    **Epochs.** Each iteration is the next epoch; `set_epoch` says which. New weights count from the next one on.

    **Positions.** `state_dict` counts what was yielded. A DataLoader with workers asks for num_workers x
    prefetch_factor batches before the loop gets them, and these are counted too. Count what the loop received, then,
    and say so when restoring: `load_state_dict(state, examples=steps * batch_size * num_replicas)`. Without workers
    both are the same. The number of ranks may be another after restoring; the weights must be those of the epoch.

    Args:
        weights: (n,) at least 0, in any unit: an array, a torch tensor or a sequence. They are copied.
        num_samples: m, draws of an epoch, over all ranks.
        replacement: whether an example may come more than once in an epoch.
        num_replicas, rank: default: those of torch.distributed, then WORLD_SIZE and RANK, then 1 and 0.
        seed: the same on every rank.
        drop_last: leave out the last draws that would not be as many on every rank.

    Raises:
        ConfigError: a weight that is negative, NaN or infinite (with its index), all of them 0, or another argument
            out of its range; without replacement also more samples than positive weights.

    Example:
        >>> sampler = LocalSampler([1, 1, 2], num_samples=8)
        >>> sorted(sampler)
        [0, 0, 1, 1, 2, 2, 2, 2]
        >>> sorted(LocalSampler([1, 0, 5, 1], num_samples=3, replacement=False))
        [0, 2, 3]
    """

    def __init__(
        self,
        weights: ArrayLike,
        num_samples: int,
        replacement: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.num_samples = check_whole("num_samples", num_samples, 1)
        self.replacement = _flag("replacement", replacement)
        self.num_replicas, self.rank = _place(num_replicas, rank)
        self.seed = check_whole("seed", seed, 0)
        self.drop_last = bool(drop_last)
        self._take(self._checked(weights))
        if self.drop_last and self.num_samples < self.num_replicas:
            raise ConfigError(
                f"drop_last leaves nothing: num_samples={self.num_samples} for num_replicas={self.num_replicas}"
            )
        self._pass: _Pass | None = None  # the newest iteration; None: the next one is not begun
        self._next_epoch = 0
        self._next_first = 0

    def __len__(self) -> int:
        """Examples of a whole epoch for this rank."""
        return self._share(self.num_samples)

    def __iter__(self) -> Iterator[int]:
        """Begin the next epoch, or go on inside a restored one."""
        begun = self._pass = _Pass(self._next_epoch, self._next_first, self._checksum)
        self._next_epoch, self._next_first = begun.epoch + 1, 0
        return self._ids(begun, self._draw(begun.epoch))

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is. To say it again changes nothing, nor does it lose a restored position in
        this very epoch."""
        if check_whole("epoch", epoch, 0) != self._next_epoch:
            self._pass, self._next_epoch, self._next_first = None, epoch, 0

    def update(self, weights: ArrayLike) -> None:
        """Draw by other weights of the same examples, from the next iteration on; the present one is not disturbed.

        Raises:
            ConfigError: as for a new sampler, or for another number of examples.
        """
        checked = self._checked(weights)
        if len(checked) != len(self.weights):
            raise ConfigError(
                f"weights must be for the same {len(self.weights)} examples, got {len(checked)}; make another sampler "
                "for another data set"
            )
        self._take(checked)

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe position: the epoch and the examples of it that were yielded, counted over all ranks."""
        begun = self._pass
        if begun is None:
            begun = _Pass(self._next_epoch, self._next_first, self._checksum)
        examples = begun.first + begun.yielded * self.num_replicas
        draw = self._identity(begun.checksum)
        return {"version": STATE_VERSION, "epoch": begun.epoch, "examples": examples, "draw": draw}

    def load_state_dict(self, state: dict[str, Any], *, examples: int | None = None) -> None:
        """Go on at a saved position with the next iteration.

        Args:
            state: from `state_dict`, of any rank and any number of ranks.
            examples: of the state's epoch, over all ranks, that the training loop received; default: all that were
                yielded.

        Raises:
            ConfigError: more `examples` than were yielded.
            Stale: the state is of another version, or lies inside an epoch of other draws: by other weights, another
                seed or another number of samples.
        """
        if state.get("version") != STATE_VERSION:
            raise Stale(f"the saved position has version {state.get('version')!r}, this sampler reads {STATE_VERSION}")
        epoch, yielded = int(state["epoch"]), int(state["examples"])
        first = yielded if examples is None else check_whole("examples", examples, 0)
        if first > yielded:
            raise ConfigError(f"examples must be at most the {yielded} that were yielded of epoch {epoch}, got {first}")
        if self._share(self.num_samples - first) <= 0:  # the epoch is over
            epoch, first = epoch + 1, 0
        if first:
            self._check_same(state["draw"])
        self._pass, self._next_epoch, self._next_first = None, epoch, first

    # --- inside ---

    def _draw(self, epoch: int) -> Int64:
        """(m,) ids of an epoch over all ranks."""
        order = generator(Stream.ORDER, seed=self.seed, epoch=epoch)
        if not self.replacement:
            return draw_distinct(self.weights, self.num_samples, order)
        # The whole epoch is one batch: evenly spread over the examples, and in random order.
        drawer = WeightedDrawer(self.weights, order)
        rng = generator(Stream.DRAW, seed=self.seed, epoch=epoch)
        return drawer.draw(num_batches=1, size=self.num_samples, rng=rng)[0]

    def _ids(self, begun: _Pass, id_m: Int64) -> Iterator[int]:
        total = begun.first + self._share(self.num_samples - begun.first) * self.num_replicas
        own = np.resize(id_m, max(total, 0))[begun.first + self.rank :: self.num_replicas]
        for start in range(0, len(own), _CHUNK):
            chunk = own[start : start + _CHUNK].tolist()
            begun.chunks, begun.chunk = begun.chunks + len(chunk), iter(chunk)
            yield from begun.chunk

    def _share(self, draws: int) -> int:
        """Of so many draws, how many each rank gets."""
        return draws // self.num_replicas if self.drop_last else -(-draws // self.num_replicas)

    def _take(self, weight_n: Float64) -> None:
        weight_n.flags.writeable = False
        self.weights, self._checksum = weight_n, zlib.crc32(weight_n.data)

    def _checked(self, weights: ArrayLike) -> Float64:
        weight_n = _as_array(weights)
        if weight_n.ndim != 1 or not 1 <= len(weight_n) <= MOST_EXAMPLES:
            raise ConfigError(
                f"weights must have the shape (n,) for n from 1 to {MOST_EXAMPLES} examples, got {weight_n.shape}"
            )
        check_weights(weight_n)
        positive = int(np.count_nonzero(weight_n))
        if not self.replacement and self.num_samples > positive:
            raise ConfigError(
                f"num_samples must be at most {positive} without replacement, as many as there are positive weights; "
                f"got {self.num_samples}"
            )
        return weight_n

    def _identity(self, checksum: int) -> dict[str, Any]:
        """What an epoch's draws are made of, beside the epoch."""
        return {
            "seed": self.seed,
            "num_samples": self.num_samples,
            "replacement": self.replacement,
            "weights": f"{len(self.weights)} of checksum {checksum:08x}",
        }

    def _check_same(self, saved: dict[str, Any]) -> None:
        differ = [
            f"{name} was {saved.get(name)}, is {value}"
            for name, value in self._identity(self._checksum).items()
            if saved.get(name) != value
        ]
        if differ:
            raise Stale(
                f"the saved position lies inside an epoch of other draws: {'; '.join(differ)}; restore into a sampler "
                "made alike, or begin the next epoch with set_epoch()"
            )


def _flag(name: str, value: Any) -> bool:
    """True or False. Numbers are refused: they are arguments that were meant for another place."""
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name} must be True or False, got {value!r}: give all behind num_samples by their names")
    return bool(value)


def _as_array(weights: Any) -> NDArray[np.float64]:
    """A float64 copy; of a tensor on any device and of any type too."""
    try:
        if hasattr(weights, "detach"):
            weights = weights.detach().cpu().double().numpy()
        return np.array(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"weights must be numbers, one for each example: {error}") from error


def _place(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """Ranks and this one: as given, else of torch.distributed, else of the environment, else alone."""
    if (num_replicas is None) != (rank is None):
        raise ConfigError(f"give both num_replicas and rank or neither, got {num_replicas} and {rank}")
    if num_replicas is None:
        # A process group can only be there if its module is loaded; torch is not loaded for the question.
        distributed: Any = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            num_replicas, rank = distributed.get_world_size(), distributed.get_rank()
        else:
            num_replicas, rank = _of_environment("WORLD_SIZE", 1), _of_environment("RANK", 0)
    num_replicas, rank = check_whole("num_replicas", num_replicas, 1), check_whole("rank", rank, 0)
    if rank >= num_replicas:
        raise ConfigError(f"rank must be 0 to num_replicas-1, got rank={rank} of num_replicas={num_replicas}")
    return num_replicas, rank


def _of_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"the environment's {name} must be a whole number, got {text!r}") from None
