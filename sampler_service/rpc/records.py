"""The port for records: what a server asks of whatever holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, Protocol

from sampler_client._pb import sampler_pb2 as pb
from sampler_service.errors import Conflict, Damaged, NotFound
from sampler_service.service import Service
from sampler_service.types import Decoding, Int64, Recorded


class Reader(Protocol):
    """Reads for one stream."""

    schema_message: bytes
    """of what is read, an Arrow IPC schema message"""

    def encode(self, example_ids: Int64) -> memoryview:
        """Records of the ids (b,), in their order, as an Arrow IPC record batch message."""
        ...


class Records(Protocol):
    """Records of all datasets that have some."""

    def describe(self, dataset: str) -> Recorded:
        """What there is now.

        Raises:
            NotFound: there are no records.
        """
        ...

    def generation(self, dataset: str) -> int:
        """Rises when examples are appended or deleted; cheap to ask."""
        ...

    def reader(self, dataset: str, columns: Sequence[str], decode: Sequence[Decoding]) -> Reader:
        """Reads these columns (none: all), some of them decoded.

        Raises:
            NotFound: there are no records.
            ConfigError: an unknown column, or one that can't be decoded.
        """
        ...


class NoRecords:
    """A service that holds none."""

    def describe(self, dataset: str) -> NoReturn:
        raise no_records(dataset)

    def generation(self, dataset: str) -> NoReturn:
        raise no_records(dataset)

    def reader(self, dataset: str, columns: Sequence[str], decode: Sequence[Decoding]) -> NoReturn:  # noqa: ARG002
        raise no_records(dataset)


def no_records(dataset: str) -> NotFound:
    return NotFound(
        f"the service holds no records of dataset {dataset!r}; `sampler-service ingest URI --name {dataset}` adds some"
    )


def follow(service: Service, records: Records, dataset: str) -> Recorded:
    """Have the service know of a dataset what its records are by now: how many, and which of them were deleted.

    Raises:
        NotFound: there are no records.
        Conflict: there are fewer than the service knows of: other data under the same name.
    """
    found = records.describe(dataset)
    try:
        service.register_dataset(dataset, found.num_examples)
    except Conflict:
        service.grow_dataset(dataset, found.num_examples)
    if len(found.deleted):
        service.delete_examples(dataset, found.deleted)
    return found


class FollowedRecords:
    """The records that one stream reads. What is appended or deleted meanwhile, the service hears of here.

    Args:
        service: it lends the batches.
        records: of all datasets.
        dataset: the run's.
        asked: what the trainer wants of its records.

    Raises:
        NotFound, ConfigError: see `Records.reader`.
    """

    def __init__(self, service: Service, records: Records, dataset: str, asked: pb.RecordsRequest) -> None:
        self._service, self._records, self._dataset = service, records, dataset
        decode = [
            Decoding(column=how.column, mode=how.mode or "RGB", height=how.height, width=how.width)
            for how in asked.decode
        ]
        self._reader = records.reader(dataset, list(asked.columns), decode)
        self._generation = -1
        self.schema_message = self._reader.schema_message

    def follow(self) -> None:
        """Have the service know of what was appended and deleted; cheap while nothing was."""
        generation = self._records.generation(self._dataset)
        if generation != self._generation:
            follow(self._service, self._records, self._dataset)
            self._generation = generation

    def encode(self, example_ids: Int64) -> memoryview:
        """Records of the ids (b,), in their order, as an Arrow IPC record batch message."""
        try:
            return self._reader.encode(example_ids)
        except NotFound as error:  # to a stream this would say that its session is forgotten
            raise Damaged(
                f"the records of dataset {self._dataset!r} here are not those of its runs: {error}"
            ) from error
