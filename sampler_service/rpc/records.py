"""The port for records: what a server asks of whatever holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, Protocol

from sampler_client._pb import sampler_pb2 as pb
from sampler_service.errors import NotFound
from sampler_service.types import Decoding, Int64


class Reader(Protocol):
    """Reads for one stream."""

    schema_message: bytes
    """of what is read, an Arrow IPC schema message"""

    def encode(self, example_ids: Int64) -> bytes:
        """Records of the ids (b,), in their order, as an Arrow IPC record batch message."""
        ...


class Records(Protocol):
    """Records of all datasets that have some."""

    def describe(self, dataset: str) -> tuple[int, bytes]:
        """Number of records, and their schema as an Arrow IPC message.

        Raises:
            NotFound: there are none.
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

    def describe(self, dataset: str) -> NoReturn:
        raise no_records(dataset)

    def reader(self, dataset: str, columns: Sequence[str], decode: Sequence[Decoding]) -> NoReturn:  # noqa: ARG002
        raise no_records(dataset)


def no_records(dataset: str) -> NotFound:
    return NotFound(
        f"the service holds no records of dataset {dataset!r}; `sampler-service ingest URI --name {dataset}` adds some"
    )


def decodings(request: pb.RecordsRequest) -> list[Decoding]:
    """What a request says of images."""
    return [
        Decoding(column=how.column, mode=how.mode or "RGB", height=how.height, width=how.width)
        for how in request.decode
    ]
