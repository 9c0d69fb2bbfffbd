"""Batches as messages, their records among them.

Protobuf would copy records into a message, and that into its bytes. Here they are joined to what it makes of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sampler_client import wire
from sampler_client._pb import sampler_pb2 as pb
from sampler_service.errors import ConfigError
from sampler_service.types import Batch, Int64

RecordsOf = Callable[[Int64], memoryview]
"""(b,) example ids -> their records, as a message"""


def encode_reply(reply: pb.BatchReply | bytes) -> bytes:
    """What is sent for a reply; that of batches is ready."""
    return reply if isinstance(reply, bytes) else reply.SerializeToString()


def encode_batches(batches: list[Batch], message_bytes: int, records_of: RecordsOf | None = None) -> Iterator[bytes]:
    """Replies with batches, of about `message_bytes` each; the cost of one message is that of some ten batches.

    Raises:
        ConfigError: a batch whose records are too large for a message.
    """
    block: list[bytes | memoryview] = []
    size = 0
    for batch in batches:
        message = pb.Batch()
        encode_batch(batch, message)
        fields: list[bytes | memoryview] = [message.SerializeToString()]
        if records_of is not None:
            fields += _field(pb.Batch.RECORDS_FIELD_NUMBER, [records_of(batch.rows.example_ids)])
        added = sum(map(len, fields))
        if added > wire.MAX_MESSAGE_BYTES - message_bytes:
            raise ConfigError(
                f"the {len(batch.rows)} records of batch {batch.batch_id} have {len(fields[-1])} bytes, a message "
                f"may have {wire.MAX_MESSAGE_BYTES - message_bytes}; ask for fewer columns (columns=), smaller images "
                "(decode=) or smaller batches (batch_size=)"
            )
        block += _field(pb.BatchBlock.BATCH_FIELD_NUMBER, fields)
        size += added
        if size >= message_bytes:
            yield b"".join(_field(pb.BatchReply.BLOCK_FIELD_NUMBER, block))
            block, size = [], 0
    if block:
        yield b"".join(_field(pb.BatchReply.BLOCK_FIELD_NUMBER, block))


def _field(number: int, content: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """A field of bytes or of another message, as protobuf lays it out: number and kind, length, content."""
    return [_varint(number << 3 | 2) + _varint(sum(map(len, content))), *content]


def _varint(number: int) -> bytes:
    """Seven bits in each byte, the lowest ones first; all but the last have the eighth set."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def encode_batch(batch: Batch, message: pb.Batch) -> None:
    """Fill the message of one batch."""
    rows = batch.rows
    message.batch_id = batch.batch_id
    message.epoch = batch.epoch
    message.step = batch.step
    message.table_version = batch.table_version
    message.policy = batch.policy
    message.example_ids = rows.example_ids.tobytes()
    message.weights = rows.weights.tobytes()
    message.probabilities = rows.probabilities.astype("f4").tobytes()
    message.cluster_ids = batch.cluster_ids.tobytes()
    message.lease_deadline = batch.lease_deadline
    message.lead = batch.lead
    message.global_batch_size = batch.global_batch_size
    message.world_size = batch.world_size
    message.keep = batch.keep
    message.choice_seed = batch.choice_seed
