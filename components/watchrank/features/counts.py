"""How much happened before each stamp: to a video, or by a user.

Measures are whole numbers (watch time in microseconds) kept as float64: their sums are exact in any order,
and become int64 at the end. DuckDB would add int64 up to 128 bits, which Parquet does not have.
"""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from itertools import pairwise

import ibis
import ibis.expr.types as ir

from watchrank.features.log import naive
from watchrank.features.times import rounded, stamp
from watchrank.schema import DAY_SECONDS, STATISTICS_DAYS

USER_STATISTICS_DAYS = 7
_MICROSECONDS = 1_000_000
_MICROSECOND = timedelta(microseconds=1)
_NONE, _ONE = ibis.literal(0.0), ibis.literal(1.0)


def video_statistics(
    impressions: ir.Table, cadence: int, since: datetime | None, until: datetime
) -> ir.Table:
    """Count each video's impressions, clicks and seconds at the end of every bucket that has any.

    Args:
        impressions: those of the longest window before the first stamp, too.
        cadence: seconds between two stamps.
        since: the first stamps are those of events from then on, an edge of a bucket; None for all.
        until: the end of the log.

    Returns:
        `video_id`, the stamp as `time`, and the columns of `schema.VIDEO_STATISTICS`.
    """
    totals = {name: total for days in STATISTICS_DAYS for name, total in _statistics("video", days).items()}
    shown = _measured(impressions, "video_id")
    if since:
        shown = shown.mutate(time=_merged(shown.time, STATISTICS_DAYS, cadence, since, until))
    return _totals_before(shown, "video_id", cadence, totals, since)


def user_statistics(impressions: ir.Table, cadence: int, lag: int, since: datetime | None) -> ir.Table:
    """Count each user's impressions, clicks and seconds at the end of every bucket that has any.

    What a user does raises the counts that their next impressions see, so that of two impressions of a
    user the later one looks better after a watch: the counts are held back for `lag` seconds.

    Returns:
        `user_id`, the stamp as `time`, and the columns of `schema.USER_STATISTICS`.
    """
    totals = _statistics("user", USER_STATISTICS_DAYS)
    counts = _totals_before(_measured(impressions, "user_id"), "user_id", cadence, totals, since)
    return counts.mutate(time=counts.time + ibis.interval(seconds=lag))


def _statistics(entity: str, days: int) -> dict[str, tuple[str, int | None]]:
    return {
        f"{entity}_impressions_{days}d": ("impressions", days),
        f"{entity}_clicks_{days}d": ("clicks", days),
        f"{entity}_watch_seconds_{days}d": ("watch", days),
    }


def activity_counts(
    impressions: ir.Table,
    searches: ir.Table,
    earlier: ir.Table,
    before: ir.Table,
    cadence: int,
    since: datetime | None,
) -> ir.Table:
    """Count what each snapshot of a user follows. An earlier watch is a click without an impression.

    Args:
        impressions: from `since` on.
        searches: likewise.
        earlier: likewise.
        before: a row of lists a user, see `histories.lists_before`: what else there was.
        cadence: seconds between two stamps, 0 for one after each event.
        since: the instant from which on events have stamps here; None for all.

    Returns:
        `user_id`, the stamp as `time`, and how many `impressions`, `clicks` and `tokens` there were.
    """
    totals: dict[str, tuple[str, int | None]] = {
        "impressions": ("impressions", None),
        "clicks": ("clicks", None),
        "tokens": ("tokens", None),
    }
    shown = _measured(impressions, "user_id").mutate(tokens=_NONE)
    tokens = searches.tokens.length().cast("float64")
    searched = searches.select("user_id", "time", impressions=_NONE, clicks=_NONE, watch=_NONE, tokens=tokens)
    watched = earlier.select("user_id", "time", impressions=_NONE, clicks=_ONE, watch=_NONE, tokens=_NONE)
    listed = before.select(
        "user_id",
        "time",
        impressions=before.impression_video_ids.length().cast("float64"),
        clicks=before.watched_video_ids.length().cast("float64"),
        watch=_NONE,
        tokens=before.search_token_ids.length().cast("float64"),
    )
    return _totals_before(shown.union(searched, watched, listed), "user_id", cadence, totals, since)


def _measured(impressions: ir.Table, key: str) -> ir.Table:
    return impressions.select(
        key,
        "time",
        impressions=_ONE,
        clicks=impressions.clicked.cast("int64").cast("float64"),
        watch=(impressions.watch_seconds * _MICROSECONDS).round().cast("float64"),
    )


def _merged(
    time: ir.TimestampValue, days: Collection[int], cadence: int, since: datetime, until: datetime
) -> ir.TimestampValue:
    """Make one time of all those that the same windows hold at every stamp: fewer rows, the same sums.

    Between two lengths of window lie times that the longer holds at the last stamp still, and the shorter
    not even at the first.
    """
    last, lengths = until + timedelta(seconds=cadence), [timedelta(days=each) for each in sorted(days)]
    for shorter, longer in pairwise([timedelta(0), *lengths]):
        start, end = last - longer, since - shorter
        if start < end:
            time = time.between(naive(start), naive(end - _MICROSECOND)).ifelse(naive(start), time)
    return time


def _totals_before(
    events: ir.Table,
    key: str,
    cadence: int,
    totals: Mapping[str, tuple[str, int | None]],
    since: datetime | None,
) -> ir.Table:
    """Stamp the events and add up, at each stamp, what came before.

    What a window holds is all until its end less all until its start: running sums cost less than windows.

    Args:
        events: `key`, `time` and measures.
        key: the entity's column.
        cadence: seconds between two stamps, 0 for one after each event.
        totals: a name for each sum, with its measure and how many days it goes back; None for all.
        since: events before it have no stamps, and entities without later ones no rows; None for all.

    Returns:
        `key`, the stamp as `time`, and the sums; those of `watch` in seconds.
    """
    measures = [name for name in events.columns if name not in (key, "time")]
    events = events.mutate(time=rounded(events.time, cadence))
    events = events.group_by(key, "time").agg(**{name: events[name].sum() for name in measures})
    stamped = events.filter(events.time >= naive(since)) if since else events
    stamps = stamped.select(key, time=stamp(stamped.time, cadence)).distinct()
    if since:
        events = events.semi_join(stamps, key)
    rows = events.mutate(is_stamp=ibis.literal(False)).union(
        stamps.mutate(**dict.fromkeys(measures, _NONE), is_stamp=ibis.literal(True))
    )
    in_turn = ibis.cumulative_window(group_by=key, order_by=["time", "is_stamp"])
    sums = ibis.struct({name: rows[name].sum().over(in_turn) for name in measures})
    summed = rows.select(key, "time", "is_stamp", sums=sums)

    def until(days: int) -> ir.Value:
        """Return the sums of all that came before the instant so many days ago."""
        end = ibis.interval(microseconds=days * DAY_SECONDS * _MICROSECONDS + 1)
        before = ibis.range_window(group_by=key, order_by="time", preceding=(None, end))
        return summed.sums.last().over(before)

    lengths = {days for _, days in totals.values() if days}
    stamped = summed.mutate(**{f"until_{days}": until(days) for days in (0, *lengths)})
    stamped = stamped.filter(stamped.is_stamp)

    def total(measure: str, days: int | None) -> ir.Value:
        value = stamped.until_0[measure]
        if days:
            value -= stamped[f"until_{days}"][measure].fill_null(0)
        return (value / _MICROSECONDS).cast("float32") if measure == "watch" else value.cast("int64")

    return stamped.select(key, "time", **{name: total(*what) for name, what in totals.items()})
