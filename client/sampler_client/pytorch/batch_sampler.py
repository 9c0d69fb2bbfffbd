"""A torch batch sampler whose batches the service plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Sampler

from sampler_client.batch import Batch
from sampler_client.epochs import EpochReader, Source
from sampler_client.errors import ConfigError
from sampler_client.joining import DEFAULT_POLICY, Joinable, join, place_of
from sampler_client.pytorch import frameworks

AHEAD = 2
"""batches beside the DataLoader's own prefetch: one in the loop's hands, one under way"""


class RemoteBatchSampler(Sampler[list[int]]):
    """A torch batch sampler whose batches the service plans: `DataLoader(dataset, batch_sampler=…)`.

    It runs in the main process, so the connection never meets a fork. The DataLoader asks it for
    num_workers x prefetch_factor batches ahead of the loop; they are planned that much earlier.

    Call `received()` once for each batch that the loop gets; it returns the batch's handle. A pass that came to its
    end is over, and its last batch done, with the next iteration, `state_dict()` or `close()`.

    Args:
        source: where batches come from; `connect` makes one.
        run: name of the run, kept in saved positions.
        num_examples: of the dataset.
        lead: batches that may be unfinished at once; num_workers x prefetch_factor + 2.
        found_place: (rank, world size) that nobody gave: they are looked up again when a pass begins.
    """

    def __init__(
        self,
        source: Source,
        *,
        run: str,
        num_examples: int,
        lead: int,
        found_place: tuple[int, int] | None = None,
    ) -> None:
        self.source = source
        self.reader = EpochReader(source, run=run, num_examples=num_examples, lead=lead)
        self.open = True
        """whether an iteration may begin; that of an attached loader only inside of its loop"""
        self._found_place = found_place

    @classmethod
    def connect(  # noqa: PLR0913 - keyword-only settings, each with a default
        cls,
        address: str | Joinable,
        *,
        run: str,
        num_examples: int,
        batch_size: int,
        policy: str = DEFAULT_POLICY,
        num_workers: int = 0,
        prefetch_factor: int = 2,
        ahead: int = AHEAD,
        **options: Any,
    ) -> RemoteBatchSampler:
        """Join a run. `options` are those of `attach`."""
        lead = num_workers * prefetch_factor + ahead
        session = join(address, run, num_examples, batch_size, policy, lead, ahead, **options)
        return cls(session, run=run, num_examples=num_examples, lead=lead, found_place=found_place_of(options))

    def __iter__(self) -> Iterator[list[int]]:
        """The ids of the next epoch, batch by batch.

        The first one raises ConfigError where a framework's wrapper asks, which would hand on other batches than it was
        given, or where this trainer's rank is another than the one it joined with.
        """
        try:
            self.check_open()
            frameworks.refuse_rewriting("a RemoteBatchSampler")
            if self._found_place is not None:
                frameworks.check_place(self._found_place)
        except ConfigError as error:
            return refusing(error)
        return _Ids(self.reader)

    def check_open(self) -> None:
        """Raise ConfigError unless an iteration may begin."""
        if not self.open:
            frameworks.refuse_stranger("the batches of an attached loader")

    def __len__(self) -> int:
        """Batches of the present epoch; of one that keeps every example before it starts, or if it was resumed."""
        known = self.reader.num_steps
        return self.source.steps_per_epoch if known is None else known

    def received(self) -> Batch:
        """Handle of the batch that just came out of the DataLoader; the one before it counts as done."""
        return self.reader.received()

    def set_epoch(self, epoch: int) -> None:
        self.reader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Position of the loop; after a whole pass, the start of the next."""
        self.reader.end_if_exhausted()
        return self.reader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reader.load_state_dict(state)

    def close(self) -> None:
        self.reader.end_if_exhausted()
        self.source.close()


class _Ids(Iterator[list[int]]):
    """The ids of one pass. Its position counts what was handed out: torchdata keeps that of each batch it yields."""

    def __init__(self, reader: EpochReader) -> None:
        self._reader = reader
        self._batches = iter(reader)

    def __next__(self) -> list[int]:
        return next(self._batches).example_ids.tolist()

    def state_dict(self) -> dict[str, Any]:
        return self._reader.state_dict(given=True)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._reader.load_state_dict(state)


def refusing(error: ConfigError) -> Iterator[Any]:
    """Raises with the first item: who is still making an iterator, as DataLoaders and Lightning are, can't undo it."""
    raise error
    yield


def found_place_of(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """The place that was not given but found."""
    return place_of(None, None) if options.get("rank") is None else None
