"""Records that come with batches: Arrow on the wire. The only home of pyarrow in the client."""

from __future__ import annotations

from functools import lru_cache

from sampler_client.errors import ConfigError

try:
    import pyarrow as pa
except ImportError as error:  # the client has no need of it otherwise
    raise ConfigError("records need pyarrow: pip install 'gradient-sampler[records]'") from error


def decode(message: bytes, schema: bytes) -> pa.RecordBatch:
    """The records of one batch; their arrays lie in `message`, which must be nobody else's: tensors over them can be
    written to.

    Raises:
        ConfigError: there are none, because nobody asked for them.
    """
    if not schema:
        raise ConfigError("batches of this stream come without records; use RemoteBatches or SamplerClient.batches")
    return pa.ipc.read_record_batch(pa.py_buffer(message), schema_of(schema))


@lru_cache(maxsize=64)
def schema_of(message: bytes) -> pa.Schema:
    """A schema from its message."""
    return pa.ipc.read_schema(pa.py_buffer(message))
