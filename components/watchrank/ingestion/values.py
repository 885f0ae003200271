"""From what a file holds to the schema's types: one expression a column, NULL where there is no value.

A source's column is text (CSV) or of a Parquet type. What cannot be read as its dtype becomes NULL, and the
text that could not be read is kept beside it, in the column `UNREAD` + name: NULL in every other row.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from watchrank.ingestion.adapter import Field
from watchrank.schema import Dtype, Table

UNREAD = "unread_"
TIMESTAMP = "timestamp('UTC', 6)"
NATIVE = {
    "int64": "int64",
    "float64": "float64",
    "bool": "boolean",
    "string": "string",
    "timestamp": TIMESTAMP,
}
"""The engine's name of each dtype that a log's column may have."""

FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)
LAST_TIME = datetime(2200, 1, 1, tzinfo=UTC)
"""A time outside is taken for a misread number, not for a time."""


def typed(source: ir.Table, table: Table, fields: Mapping[str, Field]) -> ir.Table:
    """Return the columns in `fields` as the schema types them, each with its `UNREAD` text.

    A column whose origin the source lacks is NULL throughout.
    """
    source = _without_missing(source, fields)
    columns, unread = {}, {}
    for name, field in fields.items():
        dtype = table.column(name).dtype
        there = field.origin in source.columns
        columns[name] = _value(source, field, dtype) if there else ibis.null(NATIVE[dtype])
        unread[UNREAD + name] = _unread(columns[name], source[field.origin]) if there else ibis.null("string")
    return source.select(**columns, **unread)


def parse(raw: ir.Value, dtype: Dtype) -> ir.Value:
    """Read a column of text or of a Parquet type as `dtype`; NULL where that cannot be done."""
    readers = {"int64": _whole, "float64": _real, "bool": _flag, "string": _text, "timestamp": _time}
    return readers[dtype](raw)


def since_1970(raw: ir.Value, unit: Literal["s", "ms"]) -> ir.Value:
    """Read whole seconds or milliseconds since 1970 as a time."""
    whole = _whole(raw)
    last = int(LAST_TIME.timestamp()) * {"s": 1, "ms": 1000}[unit]
    return whole.between(0, last - 1).ifelse(whole, None).as_timestamp(unit).cast(TIMESTAMP)


def accepts(dtype: Dtype, found: pa.DataType) -> bool:
    """Say whether a Parquet column of type `found` can hold values of `dtype`."""
    is_ = pa.types
    if is_.is_dictionary(found):
        found = found.value_type
    if is_.is_null(found) or is_.is_string(found) or is_.is_large_string(found) or is_.is_string_view(found):
        return True
    number = is_.is_integer(found) or is_.is_floating(found) or is_.is_decimal(found)
    fits: dict[str, bool] = {
        "int64": number,
        "float64": number,
        "bool": number or is_.is_boolean(found),
        "string": is_.is_integer(found),
        "timestamp": is_.is_timestamp(found) or is_.is_date(found),
    }
    return fits[dtype]


def _without_missing(source: ir.Table, fields: Mapping[str, Field]) -> ir.Table:
    texts = {field.origin: field.missing for field in fields.values() if field.missing}
    known = {name: source[name].isin(missing).ifelse(None, source[name]) for name, missing in texts.items()}
    return source.mutate(**known)


def _value(source: ir.Table, field: Field, dtype: Dtype) -> ir.Value:
    value = field.value(source) if field.value else parse(source[field.origin], dtype)
    return value.cast(NATIVE[dtype])


def _unread(value: ir.Value, raw: ir.Value) -> ir.Value:
    if raw.type().is_floating():
        raw = raw.isnan().ifelse(None, raw)
    return value.isnull().ifelse(raw.cast("string").strip().nullif(""), None)


def _whole(raw: ir.Value) -> ir.Value:
    whole = raw.try_cast("int64")
    if raw.type().is_integer():
        return whole
    return (raw.try_cast("float64") == whole.cast("float64")).ifelse(whole, None)


def _real(raw: ir.Value) -> ir.Value:
    real = raw.try_cast("float64")
    return (real.isnan() | real.isinf()).ifelse(None, real)


def _flag(raw: ir.Value) -> ir.Value:
    if raw.type().is_boolean():
        return raw
    if raw.type().is_numeric():
        return ibis.cases((raw == 1, True), (raw == 0, False))
    text = raw.strip().lower()
    return ibis.cases((text.isin(("true", "t", "1")), True), (text.isin(("false", "f", "0")), False))


def _text(raw: ir.Value) -> ir.Value:
    return raw.cast("string").strip().nullif("")


def _time(raw: ir.Value) -> ir.Value:
    time = raw.try_cast(TIMESTAMP)
    known = (time >= ibis.literal(FIRST_TIME, TIMESTAMP)) & (time < ibis.literal(LAST_TIME, TIMESTAMP))
    return known.ifelse(time, None)
