"""The one codec between numpy arrays and protobuf messages, used by client and service alike.

Shapes: b examples of a batch, r reported rows, d sketch length.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampler_client._pb import sampler_pb2 as pb

PROTOCOL = 1
"""Version of the wire. A service refuses a client that speaks a newer one; additions within a version are optional."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest message either end sends or accepts; gRPC's own default of 4 MiB is too small for big reports."""

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES + 64),  # what a bundle adds to a report
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES + 64),
)

MAX_REPORT_ROWS = 65536
"""Rows in one Report; a larger batch is sent as several reports."""

BUNDLE_BYTES = 1024 * 1024
"""of reports in one message, where there are several"""

WEIGHTS_CHUNK_BYTES = 1024 * 1024
"""of a model's weights in one message"""

SKETCH_DTYPES = ("float16", "float32")

if sys.byteorder != "little":  # every platform that torch and ray run on is little-endian
    raise ImportError("sampler_client needs a little-endian machine: arrays travel in its byte order")


def to_array(data: bytes, dtype: Any, name: str, length: int | None = None) -> NDArray[Any]:
    """Read-only view of `data` as a vector.

    Raises:
        ValueError: when the bytes are no whole number of items, or not `length` of them.
    """
    item = np.dtype(dtype)
    if len(data) % item.itemsize:
        raise ValueError(f"{name} has {len(data)} bytes, which is no whole number of {item.name}")
    array = np.frombuffer(data, dtype=item)
    if length is not None and len(array) != length:
        raise ValueError(f"{name} has {len(array)} values where {length} are needed")
    return array


def encode_array(array: NDArray[Any]) -> pb.Array:
    """An array with its dtype and shape."""
    return pb.Array(dtype=array.dtype.name, shape=array.shape, data=np.ascontiguousarray(array).tobytes())


def decode_array(message: pb.Array, name: str, dtypes: tuple[str, ...]) -> NDArray[Any]:
    """The array of a message, read-only.

    Raises:
        ValueError: an unlisted dtype, a negative size, or bytes that do not fill the shape.
    """
    if message.dtype not in dtypes:
        raise ValueError(f"{name} has dtype {message.dtype!r}; allowed are {', '.join(dtypes)}")
    shape = tuple(message.shape)
    if any(size < 0 for size in shape):
        raise ValueError(f"{name} has the shape {shape}; sizes can't be negative")
    length = 1
    for size in shape:
        length *= size
    return to_array(message.data, message.dtype, name, length).reshape(shape)


def encode_report(  # noqa: PLR0913 - keyword-only, the fields of the message
    *,
    session: str,
    batch_id: int,
    step: int,
    example_ids: NDArray[np.int64],
    losses: NDArray[np.float32] | None,
    norms: NDArray[np.float32] | None,
    sketches: NDArray[Any] | None,
    scores: bool = False,
    stage: pb.Stage | None = None,
    evidence: pb.Evidence | None = None,
) -> pb.Report:
    """One Report message from arrays of r rows; sketches are (r, d) float16 or float32."""
    return pb.Report(
        session=session,
        batch_id=batch_id,
        step=step,
        example_ids=np.ascontiguousarray(example_ids, dtype=np.int64).tobytes(),
        losses=b"" if losses is None else np.ascontiguousarray(losses, dtype=np.float32).tobytes(),
        norms=b"" if norms is None else np.ascontiguousarray(norms, dtype=np.float32).tobytes(),
        sketches=None if sketches is None else encode_array(sketches),
        scores=scores,
        stage=stage,
        evidence=evidence,
    )


def bundle_reports(reports: Iterable[pb.Report]) -> Iterator[pb.ReportBundle]:
    """The same reports in few messages: bundles of up to a megabyte, or of one report that is larger."""
    bundle, size = pb.ReportBundle(), 0
    for report in reports:
        if bundle.reports and size + report.ByteSize() > BUNDLE_BYTES:
            yield bundle
            bundle, size = pb.ReportBundle(), 0
        bundle.reports.append(report)
        size += report.ByteSize()
    if bundle.reports:
        yield bundle


def encode_weights(session: str, step: int, data: bytes) -> Iterator[pb.WeightsChunk]:
    """The messages of one Publish: a header, then a safetensors file in chunks."""
    yield pb.WeightsChunk(header=pb.WeightsHeader(session=session, step=step, num_bytes=len(data)))
    for start in range(0, len(data), WEIGHTS_CHUNK_BYTES):
        yield pb.WeightsChunk(data=data[start : start + WEIGHTS_CHUNK_BYTES])
