"""How a data set changed while it was in use, and which of its examples a run draws from.

A data set only grows, and what was deleted stays deleted. Its changes are kept in their order, so that a number names
each state that it was in: a run says by it which examples an epoch began with, and a trainer that resumes the epoch,
after whatever was lost, gets the same order again.

Shapes: r example ids.
"""

from __future__ import annotations

import base64
import logging
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from sampler_service.config import MOST_EXAMPLES
from sampler_service.errors import ConfigError, Conflict, Stale
from sampler_service.population import Population
from sampler_service.types import Int64

log = logging.getLogger(__name__)

_NAME = re.compile(r"(\d{1,18})\.(\d{1,18})")


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A data set as it is now, and as it was."""

    changes: tuple[int | Int64, ...]
    """numbers of examples, the first as it was registered and then those that it grew to, and ids (r,), rising, that
    were deleted"""

    @property
    def version(self) -> int:
        """Changes so far."""
        return len(self.changes)

    @property
    def sizes(self) -> range:
        """Numbers of examples that it can have had, deleted ones among them: from the first to the present one."""
        sizes = [change for change in self.changes if isinstance(change, int)]
        return range(sizes[0], sizes[-1] + 1)

    @property
    def size(self) -> int:
        """Its number of examples, deleted ones among them: ids are below it."""
        return self.sizes[-1]

    @property
    def deleted(self) -> int:
        return sum(len(change) for change in self.changes if not isinstance(change, int))

    def deleted_ids(self, version: int | None = None) -> Int64:
        """(r,) those that were, after so many changes; None: by now."""
        ids = [change for change in self.changes[:version] if not isinstance(change, int)]
        return np.concatenate([np.empty(0, np.int64), *ids])

    def grown(self, name: str, num_examples: int) -> Dataset:
        """With so many examples.

        Raises:
            Conflict: it has more.
        """
        if num_examples < self.size:
            raise Conflict(
                f"dataset {name!r} has {self.size} examples, asked to grow to {num_examples}; it never shrinks: delete "
                "examples by their ids"
            )
        return self if num_examples == self.size else Dataset((*self.changes, num_examples))

    def without(self, name: str, example_ids: Int64) -> Dataset:
        """Without these examples; those that were deleted before are passed over.

        Raises:
            ConfigError: an id that it does not have, or no example would be left.
        """
        unknown = example_ids[(example_ids < 0) | (example_ids >= self.size)]
        if len(unknown):
            raise ConfigError(
                f"example {unknown[0]} is not one of dataset {name!r}, whose ids are 0 to {self.size - 1} "
                f"({len(unknown)} such); nothing was deleted"
            )
        new = np.setdiff1d(example_ids, self.deleted_ids())
        if self.deleted + len(new) == self.size:
            raise ConfigError(
                f"these {len(example_ids)} ids are all that is left of dataset {name!r}; close its runs and register "
                "another one instead. Nothing was deleted"
            )
        return Dataset((*self.changes, new)) if len(new) else self

    def population(self, size: int, version: int | None = None) -> Population:
        """Its examples below `size`, after so many changes. O(size) where any was deleted."""
        version = self.version if version is None else version
        name, ids = f"{version}.{size}", self.deleted_ids(version)
        ids = ids[ids < size]
        if not len(ids):
            return Population(name=name, size=size, alive=size)
        deleted_n = np.zeros(size, dtype=bool)
        deleted_n[ids] = True
        return Population(name=name, size=size, deleted_n=deleted_n, alive=size - len(ids))

    def state(self) -> list[int | str]:
        """JSON-safe: numbers as they are, ids as text."""
        return [change if isinstance(change, int) else _packed(change) for change in self.changes]

    @classmethod
    def of(cls, state: Iterable[int | str]) -> Dataset:
        """The one that `state` is of."""
        return cls(tuple(change if isinstance(change, int) else _unpacked(change) for change in state))


def _packed(ids: Int64) -> str:
    """Rising ids, about a byte for each where they lie close."""
    steps = np.diff(ids, prepend=0).astype("<i8")
    return base64.b64encode(zlib.compress(steps.tobytes(), 1)).decode()


def _unpacked(text: str) -> Int64:
    return np.cumsum(np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8"))


class Examples:
    """What a run has of its data set. Not thread-safe: the sampler holds its lock.

    A run grows when an epoch begins, to as many examples as its data set has and all its trainers can load, and never
    shrinks. Deletions hold at once.

    Args:
        dataset: as it is.
        size: that the run was opened with.
        served: examples that all its trainers can load.
        grew: told after the run did.
    """

    def __init__(self, dataset: Dataset, size: int, *, served: Callable[[], int], grew: Callable[[int], None]) -> None:
        self._dataset = dataset
        self._served = served
        self._grew = grew
        self._present = dataset.population(size)
        self._earlier: Population | None = None  # of the same data set, below another number; the latest

    @property
    def present(self) -> Population:
        """Those that the run has now."""
        return self._present

    @property
    def dataset(self) -> Dataset:
        return self._dataset

    def follow(self, dataset: Dataset) -> Int64:
        """Take changes of the data set in; returns the examples of the run that were deleted by them, (r,). An older
        state than the known one changes nothing."""
        if dataset.version <= self._dataset.version:
            return np.empty(0, np.int64)
        before, self._dataset, self._earlier = self._present, dataset, None
        self._present = dataset.population(before.size)
        return np.setdiff1d(self._present.deleted_ids, before.deleted_ids)

    def grow(self, size: int) -> None:
        """Take in the examples below `size`, if they are more."""
        if size > self._present.size:
            self._present, self._earlier = self._dataset.population(size), None
            self._grew(size)

    def begin(self, name: str = "", most: int = MOST_EXAMPLES) -> Population:
        """Those of an epoch that begins: all that the run can have by now, or, of an epoch that is resumed, those that
        it began with, by the name that was said then.

        Args:
            name: empty for an epoch that begins.
            most: that the trainer which resumes it can load.

        Raises:
            ConfigError: it is no name.
            Stale: they are more than the trainer can load.
        """
        if not name:
            self.grow(min(self._dataset.size, self._served()))
            return self._present
        parts = _NAME.fullmatch(name)
        if parts is None:
            raise ConfigError(f"population {name!r} was never given by this service; leave it out for a new epoch")
        version, size = int(parts[1]), int(parts[2])
        if version > self._dataset.version or not 0 < size <= self._dataset.size:
            # The whole service was lost with what it knew, and the trainers have registered the data set anew.
            log.warning("an epoch goes on with examples %s, of which nothing is known: by those of now", name)
            return self.begin()
        if size > most:
            raise Stale(
                f"the position is of an epoch of {size} examples, this trainer can load {most}; extend its data set, "
                "or begin the epoch anew"
            )
        self.grow(size)
        return self._dataset.population(size, version)

    def below(self, size: int) -> Population:
        """Those of now, of an epoch that began when there were ids below `size`."""
        if size == self._present.size:
            return self._present
        if self._earlier is None or self._earlier.size != size:
            self._earlier = self._dataset.population(size)
        return self._earlier
