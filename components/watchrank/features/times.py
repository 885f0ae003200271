"""Stamps: from when on an event may be known. All times are UTC without a time zone."""

import math
from datetime import UTC, datetime, timedelta

import ibis
import ibis.expr.types as ir

from watchrank.schema import DAY_SECONDS

INSTANT = ibis.interval(microseconds=1)


def stamp(time: ir.TimestampValue, cadence: int) -> ir.TimestampValue:
    """Return the first instant from which an event may be known: right after it, or its bucket's end."""
    if cadence == 0:
        return time + INSTANT
    left = cadence - epoch_seconds(time) % cadence
    return time.truncate("s") + left.as_interval("s")


def edge(time: datetime, cadence: int) -> datetime:
    """Return the last instant up to a time that no stamp strides: its events have stamps up to it."""
    if cadence == 0:
        return time
    past = (time - datetime.fromtimestamp(0, UTC)) % timedelta(seconds=cadence)
    return time - past


def rounded(time: ir.TimestampValue, cadence: int) -> ir.TimestampValue:
    """Round down as far as no window can tell: stamps and whole days before them are multiples of it."""
    if cadence == 0:
        return time
    past = epoch_seconds(time) % math.gcd(cadence, DAY_SECONDS)
    return time.truncate("s") - past.as_interval("s")


def epoch_seconds(time: ir.TimestampValue) -> ir.IntegerValue:
    """Whole seconds since 1970, rounded down (DuckDB's epoch has a fraction)."""
    return time.epoch_seconds() // 1
