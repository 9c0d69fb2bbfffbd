"""Which columns a data set has: told by its sources, made plain, and the same in all of them.

Metadata of a field: `sampler.media` is "image" where its bytes are encoded images, `sampler.classes` a JSON list of the
names that its labels stand for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from sampler_service.errors import ConfigError, Conflict, Damaged

MEDIA, CLASSES = b"sampler.media", b"sampler.classes"

IMAGE = {MEDIA: b"image"}

ENCODED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""what Hugging Face keeps an image as, and a sound"""


@dataclass(frozen=True, slots=True)
class Looked:
    """The schema that one file of a source has."""

    where: str
    schema: pa.Schema


def is_image(field: pa.Field) -> bool:
    """Whether its values are encoded images."""
    return (field.metadata or {}).get(MEDIA) == IMAGE[MEDIA]


def is_encoded(kind: pa.DataType) -> bool:
    """Whether it is a struct of bytes and path, which is kept as the bytes alone."""
    return pa.types.is_struct(kind) and {field.name for field in kind} == {field.name for field in ENCODED}


def class_names(field: pa.Field) -> list[str] | None:
    """What the labels of a column stand for, if anybody knows."""
    told = (field.metadata or {}).get(CLASSES)
    return None if told is None else json.loads(told)


def with_classes(field: pa.Field, names: Sequence[str]) -> pa.Field:
    return field.with_metadata({CLASSES: json.dumps(list(names)).encode()})


def plain_type(kind: pa.DataType) -> pa.DataType:
    """What a column is kept as: dictionaries and views become what they stand for."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    return pa.binary() if is_encoded(kind) else kind


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The columns of a source as they will be kept; of the metadata only ours."""
    fields = []
    for field in schema:
        ours = {key: value for key, value in (field.metadata or {}).items() if key.startswith(b"sampler.")}
        fields.append(pa.field(field.name, plain_type(field.type), metadata=ours or None))
    return pa.schema(fields)


def select(schema: pa.Schema, columns: Sequence[str] | None, where: str) -> pa.Schema:
    """Some columns, in the order of `columns`.

    Raises:
        ConfigError: one of them is missing, or two have one name.
    """
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise ConfigError(f"{where} has more than one column named {twice[0]!r}: rename one of them")
    if columns is None:
        return schema
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise ConfigError(f"{where} has no column {missing[0]!r}: it has {', '.join(schema.names)}")
    return pa.schema([schema.field(name) for name in columns])


def common_schema(looked: Sequence[Looked]) -> pa.Schema:
    """One schema for all files: of the same names; integers beside floats become floats.

    Raises:
        ConfigError: a column is missing in one of them, or its types or classes don't go together.
    """
    first = looked[0]
    common = {field.name: field for field in first.schema}
    for each in looked[1:]:
        if set(each.schema.names) != set(common):
            name = sorted(set(each.schema.names) ^ set(common))[0]
            has, lacks = (first, each) if name in common else (each, first)
            raise ConfigError(
                f"column {name!r} is in {has.where} and not in {lacks.where}: choose columns that all files have"
            )
        for field in each.schema:
            known, named = class_names(common[field.name]), class_names(field)
            if known is not None and named is not None and known != named:
                raise ConfigError(
                    f"the classes of column {field.name!r} are {known} in {first.where} and {named} in {each.where}: "
                    "number them alike, or register each as a data set of its own"
                )
            try:
                merged = pa.unify_schemas(
                    [pa.schema([common[field.name]]), pa.schema([field])], promote_options="permissive"
                )
            except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
                raise ConfigError(
                    f"column {field.name!r} is {common[field.name].type} in {first.where} and {field.type} in "
                    f"{each.where}: give the type by schema=, or convert one of them"
                ) from error
            common[field.name] = merged.field(0)
    return pa.schema([common[name] for name in first.schema.names])


def schema_of_types(types: Mapping[str, str]) -> pa.Schema:
    """Types by the names that Arrow has for them: "float64", "string", "timestamp[s]".

    Raises:
        ConfigError: Arrow has no type of such a name.
    """
    try:
        return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in types.items()])
    except ValueError as error:
        raise ConfigError(
            f"{error}: types are named as in Arrow, such as int64, float32, string, timestamp[s]"
        ) from error


def override(schema: pa.Schema, given: pa.Schema | None, where: str) -> pa.Schema:
    """Types that a person gives, in the place of those that were found.

    Raises:
        ConfigError: a column of `given` does not exist.
    """
    if given is None:
        return schema
    select(schema, given.names, where)
    return pa.schema([given.field(field.name) if field.name in given.names else field for field in schema])


def check_appended(registered: pa.Schema, schema: pa.Schema, where: str) -> None:
    """Raise Conflict, naming the first column that differs, unless records of `schema` fit behind those registered.

    A column that is narrower in what is appended (integers where floats are kept, nothing but nulls) fits.
    """
    for name in sorted(set(registered.names) | set(schema.names)):
        if name not in schema.names:
            raise Conflict(f"column {name!r} is registered and {where} has none: append records of the same columns")
        if name not in registered.names:
            raise Conflict(f"column {name!r} of {where} is not registered: choose columns with columns=, --columns")
        ours, theirs = registered.field(name), schema.field(name)
        known, named = class_names(ours), class_names(theirs)
        if named is not None and known != named:
            raise Conflict(f"the classes of column {name!r} of {where} are {named}, registered are {known}")
        if ours.type != theirs.type and not _fits(theirs.type, ours.type):
            raise Conflict(
                f"column {name!r} of {where} is {theirs.type}, registered is {ours.type}: convert it, or register it "
                "as a data set of its own"
            )


def _fits(kind: pa.DataType, into: pa.DataType) -> bool:
    try:
        merged = pa.unify_schemas([pa.schema([("c", into)]), pa.schema([("c", kind)])], promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return False
    return merged.field(0).type == into


def conform(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """Records in the columns and types of the data set.

    Raises:
        Damaged: a column is missing, or a value is none of its type.
    """
    arrays = []
    for field in schema:
        if field.name not in batch.schema.names:
            raise Damaged(f"{where} has no column {field.name!r}, which its first records had")
        array = batch.column(field.name)
        if is_encoded(array.type):
            array = array.flatten()[array.type.get_field_index("bytes")]
        if array.type != field.type:
            try:
                array = array.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
                raise Damaged(
                    f"column {field.name!r} of {where} is {array.type} and not {field.type}: {error}; correct it, or "
                    "give the column another type by schema="
                ) from error
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
