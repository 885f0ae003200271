"""Row counts and checksums by group, the same whatever the rows' order."""

from collections.abc import Sequence

import ibis
import ibis.expr.types as ir

from watchrank.events import Day

_31_BITS = 2**31 - 1


def measure(rows: ir.Table, columns: Sequence[str], by: str) -> dict[str, Day]:
    """Count and checksum the rows of each value of the text column `by`.

    The checksum is the sum of the rows' hashes, in two halves that cannot overflow below four thousand
    million rows. Hashes are the engine's own: another engine or version finds every group changed, once.
    """
    row_hash = ibis.struct({name: rows[name] for name in columns}).hash()
    halves = rows.select(group=rows[by], low=row_hash & _31_BITS, high=(row_hash >> 32) & _31_BITS)
    groups = halves.group_by("group").agg(rows=halves.count(), low=halves.low.sum(), high=halves.high.sum())
    return {
        group["group"]: Day(rows=group["rows"], checksum=f"{group['high']:016x}{group['low']:016x}")
        for group in groups.order_by("group").to_pyarrow().to_pylist()
    }


def measure_all(rows: ir.Table, columns: Sequence[str]) -> Day:
    """Count and checksum all rows; there must be one."""
    return measure(rows.mutate(everything=ibis.literal("")), columns, "everything")[""]
