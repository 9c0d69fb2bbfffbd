"""The port for records: what a server asks of whatever holds them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NoReturn, Protocol

from sampler_client._pb import sampler_pb2 as pb
from sampler_service.errors import Conflict, Damaged, NotFound
from sampler_service.service import Service
from sampler_service.types import Decoding, Int64, Recorded, Version

CATCH_UP_S = 60.0
"""within which records must be here that the service knows of from another node"""

PAUSE_S = 0.2
"""between two tries to have them here"""


class Reader(Protocol):
    """Reads for one stream."""

    schema_message: bytes
    """of what is read, an Arrow IPC schema message"""

    def encode(self, example_ids: Int64) -> memoryview:
        """Records of the ids (b,), in their order, as an Arrow IPC record batch message."""
        ...


class Records(Protocol):
    """Records of all datasets that have some."""

    def bring(self, dataset: str) -> bool:
        """Have here what other nodes have of a dataset that is newer, or that is not here at all; may take long.

        Returns:
            False: what is here stays as it is for now.

        Raises:
            Conflict: nodes have different data under the same name.
            Damaged, Unavailable, Busy: it could not be copied, and there is nothing of it here.
        """
        ...

    def describe(self, dataset: str) -> Recorded:
        """What there is here now.

        Raises:
            NotFound: there are no records.
        """
        ...

    def version(self, dataset: str) -> Version:
        """Which data there is here, and as of which change; cheap to ask.

        Raises:
            NotFound: there are no records.
        """
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

    def bring(self, dataset: str) -> bool:  # noqa: ARG002
        return True

    def describe(self, dataset: str) -> NoReturn:
        raise no_records(dataset)

    def version(self, dataset: str) -> NoReturn:
        raise no_records(dataset)

    def reader(self, dataset: str, columns: Sequence[str], decode: Sequence[Decoding]) -> NoReturn:  # noqa: ARG002
        raise no_records(dataset)


def no_records(dataset: str) -> NotFound:
    return NotFound(
        f"the service holds no records of dataset {dataset!r}; `sampler-service ingest URI --name {dataset}` adds some"
    )


def follow(service: Service, records: Records, dataset: str) -> Recorded:
    """Have the service know of a dataset what its records here are by now: how many, and which of them were deleted.

    Raises:
        NotFound: there are no records.
        Conflict: they are other data than the service knows under this name.
    """
    found = records.describe(dataset)
    service.follow_records(dataset, found.uid, found.num_examples, found.deleted)
    return found


class FollowedRecords:
    """The records that one stream reads. What is appended or deleted here meanwhile, the service hears of at the
    trainer's next request.

    Args:
        service: it lends the batches.
        records: of all datasets.
        dataset: the run's.
        asked: what the trainer wants of its records.

    Raises:
        NotFound, ConfigError: see `Records.reader`.
        Conflict, Damaged, Unavailable, Busy: see `Records.bring`.
    """

    def __init__(self, service: Service, records: Records, dataset: str, asked: pb.RecordsRequest) -> None:
        self._service, self._records, self._dataset = service, records, dataset
        decode = [
            Decoding(column=how.column, mode=how.mode or "RGB", height=how.height, width=how.width)
            for how in asked.decode
        ]
        records.bring(dataset)
        self._uid = records.describe(dataset).uid
        self._reader = records.reader(dataset, list(asked.columns), decode)
        self._followed: Version | None = None
        self.schema_message = self._reader.schema_message

    def follow(self) -> None:
        """Have the service know of what was appended and deleted; cheap while nothing was.

        Raises:
            Conflict: the data was removed, and there is other data under its name.
            Damaged: it was removed.
        """
        try:
            version = self._records.version(self._dataset)
            if version.uid != self._uid:
                raise Conflict(
                    f"the records of dataset {self._dataset!r} were removed while they were read, and other data is "
                    "registered under its name: ingest that under another name, and restore these"
                )
            if version != self._followed:
                follow(self._service, self._records, self._dataset)
                self._followed = version
        except NotFound as error:
            raise self._gone(error) from error

    def encode(self, example_ids: Int64) -> memoryview:
        """Records of the ids (b,), in their order, as an Arrow IPC record batch message. Those of which another node
        was quicker to tell the service are waited for.

        Raises:
            Damaged: there are none such, or after CATCH_UP_S they are still not here.
            ConfigError: see `records.reading.RecordReader`.
        """
        try:
            return self._reader.encode(example_ids)
        except NotFound:
            self._catch_up()
        try:
            return self._reader.encode(example_ids)
        except NotFound as error:
            raise self._gone(error) from error

    def _catch_up(self) -> None:
        until = time.monotonic() + CATCH_UP_S
        while not self._records.bring(self._dataset) and time.monotonic() < until:
            time.sleep(PAUSE_S)
        self.follow()

    def _gone(self, error: NotFound) -> Damaged:
        """What is raised in its place: to a stream it would say that its session is forgotten."""
        return Damaged(f"the records of dataset {self._dataset!r} here are not those of its runs: {error}")
