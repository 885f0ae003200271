"""Splits by time: a model is trained on the past and judged on what came after.

The window rolls: `split.until` is its last day, after which nothing is seen, and `split.train_days` says how
many days it trains on.
"""

from collections.abc import Collection
from datetime import UTC, date, datetime, time, timedelta

import ibis.expr.types as ir

from watchrank.config import SplitSettings
from watchrank.errors import InputError

SPLITS = ("train", "validation", "test")

Limits = tuple[datetime | None, datetime | None]
"""When a window starts and when it has ended, in UTC; None where the log itself does."""

_DAY = timedelta(days=1)


def split_days(days: Collection[date], settings: SplitSettings) -> dict[str, list[date]]:
    """Give the last days of the window to test, those before to validation and the rest to train.

    Args:
        days: what the log has.
        settings: where the window ends and how many days each split takes.

    Raises:
        InputError: no day is left to train on, or a day of the window is missing.
    """
    start, end = window(days, settings)
    ordered = [
        day
        for day in sorted(days)
        if (not start or start <= _midnight(day)) and (not end or _midnight(day) < end)
    ]
    held_out = settings.test_days + settings.validation_days
    if len(ordered) <= held_out:
        raise InputError(
            f"The events have {len(ordered)} days{f' up to {settings.until}' if settings.until else ''}, but "
            f"split.test_days and split.validation_days take {held_out}; ingest more days or lower the "
            "settings."
        )
    first_test = len(ordered) - settings.test_days
    first_held_out = len(ordered) - held_out
    return {
        "train": ordered[:first_held_out],
        "validation": ordered[first_held_out:first_test],
        "test": ordered[first_test:],
    }


def window(days: Collection[date], settings: SplitSettings) -> Limits:
    """Return the limits of the window.

    Raises:
        InputError: a day that the settings count is missing.
    """
    if not days or not (settings.until or settings.train_days):
        return None, None
    last = settings.until or max(days)
    first = last - _DAY * (settings.test_days + settings.validation_days + (settings.train_days or 0) - 1)
    missing = [day for day in _calendar(first, last) if day not in days]
    if missing:
        raise InputError(
            f"The events have no {missing[0]}, but the window of the settings `split` takes every day from "
            f"{first} to {last}; ingest that day or set another split.until."
        )
    return _midnight(first) if settings.train_days else None, _midnight(
        last + _DAY
    ) if settings.until else None


def between(rows: ir.Table, start: datetime | None, end: datetime | None) -> ir.Table:
    """Return the rows whose `timestamp` lies in a window, the end excluded."""
    if start:
        rows = rows.filter(rows.timestamp >= start)
    return rows.filter(rows.timestamp < end) if end else rows


def uploaded_before(videos: ir.Table, end: datetime | None) -> ir.Table:
    """Return the videos without those that the log says came after the window."""
    if not end or "upload_time" not in videos.columns:
        return videos
    return videos.filter(videos.upload_time.isnull() | (videos.upload_time < end))


def _calendar(first: date, last: date) -> list[date]:
    return [first + _DAY * number for number in range((last - first).days + 1)]


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
