"""What is known of a user or a video at any time."""

from datetime import UTC, datetime

import ibis
import ibis.expr.types as ir

from watchrank.features.text import text_ids
from watchrank.features.times import epoch_seconds
from watchrank.schema import CREATED_TIMESTAMP, EVENT_TIMESTAMP, FEATURE_ORIGIN, PAD_ID, Column, Table

_EPOCH = ibis.literal(datetime.fromtimestamp(0, UTC), "timestamp('UTC')")


def profiles(entities: ir.Table, log: Table, table: Table) -> ir.Table:
    """Return the feature table `table` of the users or videos that the log's table `log` describes.

    The log is the only place that says when something changed, and it says nothing of profiles: they hold
    from 1970 on.
    """
    features = {column.name: _feature(entities, log, column) for column in table.columns}
    return entities.select(
        *table.key, _EPOCH.name(EVENT_TIMESTAMP), _EPOCH.name(CREATED_TIMESTAMP), **features
    )


def _feature(entities: ir.Table, log: Table, column: Column) -> ir.Value:
    source = log.column(FEATURE_ORIGIN.get(column.name, column.name).rpartition(".")[2])
    kind = "timestamp('UTC')" if source.dtype == "timestamp" else source.dtype
    values = entities[source.name] if source.name in entities.columns else ibis.null(kind)
    return _number(values).cast(column.dtype)


def _number(values: ir.Value) -> ir.Value:
    """Turn ids, texts and times into whole numbers, with `PAD_ID` for what is missing."""
    if values.type().is_string():
        return text_ids(values)
    if values.type().is_boolean():
        return values.cast("int64").fill_null(PAD_ID)
    if values.type().is_integer():
        return values.fill_null(PAD_ID)
    if values.type().is_timestamp():
        return epoch_seconds(values.cast("timestamp")).fill_null(PAD_ID)
    return values
