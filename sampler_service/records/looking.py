"""A look at fragments before they are read: which columns they have, and whether these go together."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from sampler_service.records.fragments import Bad, Fragment
from sampler_service.records.images import mark_images
from sampler_service.records.keys import key_type
from sampler_service.records.manifest import Manifest
from sampler_service.records.schemas import (
    Looked,
    check_appended,
    common_schema,
    conform,
    override,
    plain_schema,
    select,
)

LOOKERS = 8
"""files whose schemas are read at once"""


def schema_of(
    fragments: Sequence[Fragment], columns: Sequence[str] | None, given: pa.Schema | None, id_column: str | None
) -> pa.Schema:
    """The columns of a new data set; which of them are images is seen in its first records.

    Args:
        fragments: all of them.
        columns: those that are wanted; None: all.
        given: types in the place of those that are found.
        id_column: column of the keys, if there is one.

    Raises:
        ConfigError: a column that there is not, columns that don't go together, or values that are no keys.
        Damaged: a fragment can't be read.
    """
    if columns is not None and fragments[0].identity.kind == "images":
        columns = list(dict.fromkeys([*columns, "path"]))  # by which it is known what is registered
    where = str(fragments[0].identity)
    found = common_schema(_looked(fragments, columns, given))
    if id_column is not None:
        key = select(found, [id_column], where).field(0)
        found = found.set(found.get_field_index(id_column), key.with_type(key_type(key, where)))
    first = next(iter(fragments[0].batches(found, Bad("skip"))), None)
    return found if first is None else mark_images(found, conform(first, found, where))


def check_fragments(
    fragments: Sequence[Fragment], registered: Manifest, columns: Sequence[str] | None, given: pa.Schema | None
) -> None:
    """Raise Conflict, naming a column, unless fragments fit behind what is registered; arguments as of `schema_of`."""
    names = set(registered.schema.names)
    for each in _looked(fragments, None, given):
        chosen = registered.selected or columns is not None
        kept = [name for name in each.schema.names if name in names or not chosen]
        check_appended(registered.schema, select(each.schema, kept, each.where), each.where)


def _looked(fragments: Sequence[Fragment], columns: Sequence[str] | None, given: pa.Schema | None) -> list[Looked]:
    """The schemas of all fragments, of the types that a person gives; parts of one file have one."""
    first = {fragment.identity.uri: fragment for fragment in reversed(fragments)}
    # Files of an object store take long to open; objects of a person's own may not like threads.
    lookers = LOOKERS if all(fragment.identity.kind == "file" for fragment in fragments) else 1
    with ThreadPoolExecutor(lookers) as pool:
        schemas = pool.map(lambda fragment: plain_schema(fragment.schema()), reversed(first.values()))
        named = [
            (str(fragment.identity), schema) for fragment, schema in zip(reversed(first.values()), schemas, strict=True)
        ]
    return [Looked(where, override(select(schema, columns, where), given, where)) for where, schema in named]
