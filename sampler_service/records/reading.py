"""What a stream sends of records: the columns that were asked for, images decoded if so wished, as Arrow messages.

Shapes: b records, h x w pixels, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from sampler_service.errors import ConfigError
from sampler_service.records.images import open_image
from sampler_service.types import Decoding, Int64

CHANNELS = {"RGB": 3, "L": 1}

MOST_PIXELS = 4096 * 4096
"""of one decoded image"""

MOST_BYTES = 64 * 1024**2
"""of the decoded images of one batch: those that no message could carry are not decoded at all"""


class Store(Protocol):
    """Records of one dataset, such as a `RecordStore`."""

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def num_examples(self) -> int: ...

    @property
    def deleted(self) -> Int64:
        """Ids of examples that are no more, ascending."""
        ...

    def take(
        self, example_ids: Int64, columns: Sequence[str] | None = None, *, also_deleted: bool = False
    ) -> pa.RecordBatch:
        """Their records, in the order of the ids."""
        ...


def first_of(store: Store) -> Int64:
    """The id (1,) of the first example that there is."""
    gone = store.deleted
    return np.flatnonzero(np.append(gone, -1) != np.arange(len(gone) + 1))[:1].astype(np.int64)


class RecordReader:
    """Reads records for one stream. Not thread-safe.

    Args:
        store: where they are.
        columns: in this order; none: all.
        decode: columns of image files that are to be decoded.

    Attributes:
        schema: of what is read; `schema_message`, the same as an Arrow IPC message.

    Raises:
        ConfigError: an unknown column, or one that can't be decoded as was asked.
    """

    def __init__(self, store: Store, columns: Sequence[str] = (), decode: Sequence[Decoding] = ()) -> None:
        self._store = store
        self._columns = list(columns) or list(store.schema.names)
        unknown = [name for name in self._columns if name not in store.schema.names]
        if unknown:
            raise ConfigError(f"no column {unknown[0]!r} in these records; there are {store.schema.names}")
        self._decoders = {how.column: self._decoder(how) for how in decode}
        fields = [store.schema.field(name) for name in self._columns]
        self.schema = pa.schema(
            pa.field(field.name, self._decoders[field.name].type) if field.name in self._decoders else field
            for field in fields
        )
        self.schema_message = self.schema.serialize().to_pybytes()

    def read(self, example_ids: Int64) -> pa.RecordBatch:
        """Records of the ids (b,), in their order.

        Raises:
            ConfigError: an image that does not decode, or is of another size; the message names its example.
        """
        # Whoever lends batches knows what was deleted; one that was planned before is none the less whole.
        records = self._store.take(example_ids, self._columns, also_deleted=True)
        if not self._decoders:
            return records
        arrays = [
            self._decoders[name].decode(column, example_ids) if name in self._decoders else column
            for name, column in zip(self._columns, records.columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def encode(self, example_ids: Int64) -> memoryview:
        """The same as an Arrow IPC record batch message."""
        return memoryview(self.read(example_ids).serialize())

    def _decoder(self, how: Decoding) -> _Decoder:
        if how.column not in self._columns:
            raise ConfigError(f"decode names the column {how.column!r}, which is not among {self._columns}")
        type_ = self._store.schema.field(how.column).type
        if not (pa.types.is_binary(type_) or pa.types.is_large_binary(type_)):
            raise ConfigError(f"decode needs a column of files as bytes, {how.column!r} has {type_}")
        if how.mode not in CHANNELS:
            raise ConfigError(f"decode has the modes {sorted(CHANNELS)}, got {how.mode!r}")
        if bool(how.height) != bool(how.width) or how.height * how.width > MOST_PIXELS:
            raise ConfigError(
                f"decode needs both height and width or neither, and at most {MOST_PIXELS} pixels; got {how.height} "
                f"and {how.width}"
            )
        if how.height:
            return _Decoder(how.mode, (how.width, how.height), scales=True)
        first = first_of(self._store)
        file = self._store.take(first, [how.column]).column(0)[0].as_py()
        width, height = _open(file, int(first[0])).size
        if width * height > MOST_PIXELS:
            raise ConfigError(
                f"the image of example {first[0]} has {width} x {height} pixels, and at most {MOST_PIXELS} are sent: "
                "say the height and width to decode to"
            )
        return _Decoder(how.mode, (width, height), scales=False)


class _Decoder:
    """Makes pixels of one column.

    Args:
        mode: of CHANNELS.
        size: (width, height).
        scales: images of another size, instead of refusing them.
    """

    def __init__(self, mode: str, size: tuple[int, int], *, scales: bool) -> None:
        self._mode, self._size, self._scales = mode, size, scales
        self._shape = size[1], size[0], CHANNELS[mode]
        self.type = pa.fixed_shape_tensor(pa.uint8(), self._shape)

    def decode(self, files: pa.Array, example_ids: Int64) -> pa.Array:
        shape = len(files), *self._shape
        if math.prod(shape) > MOST_BYTES:
            raise ConfigError(
                f"{len(files)} images decoded to {self._shape} have {math.prod(shape)} bytes, and a batch may have "
                f"{MOST_BYTES}: decode to a smaller height and width, or ask for a smaller batch_size"
            )
        pixels = np.empty(shape, dtype=np.uint8)
        for row, file in enumerate(files):
            pixels[row] = self._pixels(file.as_py(), int(example_ids[row]))
        storage = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), int(np.prod(self._shape)))
        return pa.ExtensionArray.from_storage(self.type, storage)

    def _pixels(self, file: bytes | None, example_id: int) -> NDArray[np.uint8]:
        image = _open(file, example_id)
        if image.size != self._size:
            if not self._scales:
                raise ConfigError(
                    f"the image of example {example_id} has {image.size[0]} x {image.size[1]} pixels, the first one "
                    f"{self._size[0]} x {self._size[1]}; say the height and width to decode to"
                )
            image.draft(self._mode, self._size)  # JPEG can decode at a smaller scale, many times faster
        try:
            image = image.convert(self._mode)
        except Exception as error:  # see `open_image`
            raise ConfigError(_undecodable(example_id, error)) from error
        if image.size != self._size:
            image = image.resize(self._size, Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(self._shape)


def _open(file: bytes | None, example_id: int) -> Image.Image:
    try:
        return open_image(file or b"")
    except Exception as error:  # see `open_image`
        raise ConfigError(_undecodable(example_id, error)) from error


def _undecodable(example_id: int, error: Exception) -> str:
    return (
        f"the image of example {example_id} does not decode ({error}); delete the example, or ingest with on_bad='skip'"
    )
