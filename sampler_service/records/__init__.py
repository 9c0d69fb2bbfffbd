"""Records: data that lies anywhere, registered once, and read by example_id out of memory-mapped Arrow files.

Example:
    from sampler_service.records import RecordStore, ingest

    store = ingest("s3://bucket/mnist/*.parquet", "mnist", id_column="id")
    batch = store.take(np.array([59_999, 0, 17]), ["image", "label"])
"""

from sampler_service.records.deletion import delete
from sampler_service.records.directory import DataDirectory, open_all
from sampler_service.records.ingestion import ingest
from sampler_service.records.schemas import schema_of_types
from sampler_service.records.store import RecordStore
from sampler_service.records.verification import verify

__all__ = ["DataDirectory", "RecordStore", "delete", "ingest", "open_all", "schema_of_types", "verify"]
