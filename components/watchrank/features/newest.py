"""The newest row of each entity."""

from collections.abc import Sequence

import ibis.expr.types as ir


def newest_rows(rows: ir.Table, key: Sequence[str], times: Sequence[str]) -> ir.Table:
    """Return of each entity the row with the greatest first time; of several, that with the greatest second.

    Which rows these are is found by key and times alone: DuckDB holds what a query reads twice.

    Args:
        rows: unique by key and times.
        key: the columns that name an entity.
        times: the columns by which a row is newer.
    """
    stamps, named = rows.select(*key, *times), list(key)
    for time in times:
        last = stamps.group_by(named).agg(stamps[time].max().name(time))
        named.append(time)
        stamps = stamps.semi_join(last, named)
    return rows.semi_join(stamps, named)
