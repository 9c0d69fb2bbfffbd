"""Batches with their records, an epoch for each iteration. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from sampler_client._pb import sampler_pb2 as pb
from sampler_client.batch import Batch
from sampler_client.config import DecodeImage
from sampler_client.epochs import EpochReader
from sampler_client.joining import DEFAULT_POLICY, join
from sampler_client.reporter import ReportCounts
from sampler_client.session import Session

AHEAD = 8
"""batches beside those that are prefetched: a call for each would take longer than most records take to send"""


class RecordStream:
    """Yields `Batch`es that have `records`, Arrow record batches. Not thread-safe: one loop reads it.

    Args:
        session: a trainer's part in a run, with records.
        lead: batches that may be unfinished at once.
        behind: batches by which whoever trains is behind this iteration, because others wait in a queue for it; so
            many more count as unfinished, those at an epoch's end until the next one begins.
    """

    def __init__(self, session: Session, *, lead: int, behind: int = 0) -> None:
        self.session = session
        self.is_through = False
        """whether all batches of the epoch have been yielded"""
        self._behind = behind
        self.reader = EpochReader(
            session,
            run=session.run,
            num_examples=session.num_examples,
            lead=lead,
            record_schema=lambda: session.record_schema,
        )

    @classmethod
    def connect(  # noqa: PLR0913 - keyword-only settings, each with a default
        cls,
        address: str,
        *,
        run: str,
        dataset: str,
        batch_size: int,
        policy: str = DEFAULT_POLICY,
        columns: Sequence[str] = (),
        decode: Sequence[DecodeImage] = (),
        behind: int = 0,
        ahead: int = AHEAD,
        **options: Any,
    ) -> RecordStream:
        """Join a run over a dataset whose records the service holds.

        Args:
            address: "host:port" of the service.
            run: name of the training job; trainers of one job share it.
            dataset: name that it was ingested under.
            batch_size: examples of a batch of this trainer.
            policy: which examples to prefer.
            columns: of the records, in this order; none: all.
            decode: columns of image files that the service is to decode.
            behind: see the class.
            ahead: batches that may be on their way beside those.
            options: of `attach`, and drop_last.

        Raises:
            NotFound: the service holds no records of the dataset.
            ConfigError: an unknown column or option.
            ServiceUnavailable: nobody answers at `address`.
        """
        records = records_request(columns, decode)
        lead = behind + ahead
        session = join(address, run, None, batch_size, policy, lead, ahead, dataset=dataset, records=records, **options)
        return cls(cast(Session, session), lead=lead, behind=behind)

    def __iter__(self) -> Iterator[Batch]:
        self.is_through = False
        for handed, batch in enumerate(self.reader):
            if handed >= self._behind:
                self.reader.received()
            yield batch
            self.reader.finished()  # the loop has come back for another
        if self._behind:  # the last ones are on their way, and no further one will be asked for that tells of them
            self.session.finish_epoch(received=False)
        else:
            self.reader.end_epoch()
        self.is_through = True

    @property
    def reports(self) -> ReportCounts:
        """What became of the reports so far."""
        return self.session.report_counts()

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is; without it each iteration is the next one."""
        self.reader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """JSON-safe position, counting what the loop received."""
        return self.reader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position with the next iteration."""
        self.reader.load_state_dict(state)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until every report made so far is in the service's table."""
        self.session.flush(timeout_s)

    def fence(self) -> int:
        """Like flush, and the next batch to be planned is planned from it; returns the table's version."""
        return self.session.fence()

    def close(self, *, returns: bool = False) -> None:
        """Send what is queued, and give the rank back unless the trainer `returns`, with the same token."""
        self.session.close(returns=returns)

    def __enter__(self) -> RecordStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def records_request(columns: Sequence[str], decode: Sequence[DecodeImage]) -> pb.RecordsRequest:
    """What a stream says of the records that it wants."""
    images = [pb.ImageDecoding(column=how.column, mode=how.mode, height=how.height, width=how.width) for how in decode]
    return pb.RecordsRequest(columns=columns, decode=images)
