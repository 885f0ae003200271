"""The feature tables, from events to files.

A row stamped `s` covers exactly the events with `timestamp < s`, so a join that takes the latest row with
`event_timestamp <= now` sees only the past. What a late log changes of it, `backfill` says. Everything is an
Ibis expression, made of what both DuckDB and Spark can run.
"""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ibis
import ibis.expr.types as ir

from watchrank import events as event_files
from watchrank.config import EngineSettings, FeatureSettings
from watchrank.engine import Engine, connect
from watchrank.features.backfill import keep_past
from watchrank.features.counts import activity_counts, user_statistics, video_statistics
from watchrank.features.files import file_of, partition_of, write
from watchrank.features.histories import histories, with_lists
from watchrank.features.profiles import profiles
from watchrank.features.record import Build
from watchrank.features.searches import last_searches
from watchrank.features.text import search_tokens
from watchrank.schema import (
    CREATED_TIMESTAMP,
    EARLIER_WATCHES,
    EVENT_TIMESTAMP,
    PAD_ID,
    SEARCHES,
    USER_ACTIVITY,
    USER_PROFILE,
    USER_SEARCH,
    USER_STATISTICS,
    USERS,
    VIDEO_PROFILE,
    VIDEO_STATISTICS,
    VIDEOS,
    Table,
)
from watchrank.storage import atomic_path, writing


def build_features(events: Path, features: Path, settings: FeatureSettings, engine: EngineSettings) -> None:
    """Write the feature tables of `schema.FEATURE_TABLES` under `features`; the same events change nothing.

    Rows are created at their event timestamp. Over features of the same settings, and of this log when it was
    shorter or not yet corrected, what they say of the past stays, and what now differs is created at the end
    of the log (`backfill`). Over others the tables are built afresh, and the log of the program says so.

    The profiles are one file each, stamped 1970-01-01; activity and statistics are
    partitioned by the day of their stamp. Lists come newest first, unpadded. Of a column that the log
    lacks the feature is `PAD_ID`, missing (a float) or an empty list.
    """
    with ExitStack() as stack:
        con = connect(engine)
        stack.callback(con.disconnect)
        stack.enter_context(con.running(f"the events in {events}"))
        stack.enter_context(writing(features))
        fresh = stack.enter_context(atomic_path(features))
        stage = fresh.with_name("stage")
        fresh.mkdir()
        stage.mkdir()
        users, videos = event_files.users(con, events), event_files.videos(con, events)
        impressions = _impressions(con, events, videos)
        searches = _searches(con, events, impressions)
        earlier = _earlier_watches(con, events, impressions, videos)
        write(con, profiles(users, USERS, USER_PROFILE), USER_PROFILE, file_of(fresh, USER_PROFILE))
        write(con, profiles(videos, VIDEOS, VIDEO_PROFILE), VIDEO_PROFILE, file_of(fresh, VIDEO_PROFILE))
        of_videos = video_statistics(impressions, settings.statistics_cadence_seconds)
        _write_days(con, con.staged(of_videos, stage / "videos"), VIDEO_STATISTICS, fresh)
        of_users = user_statistics(
            impressions, settings.user_statistics_cadence_seconds, settings.user_statistics_lag_seconds
        )
        _write_days(con, con.staged(of_users, stage / "users"), USER_STATISTICS, fresh)
        counts = activity_counts(impressions, searches, earlier, settings.activity_cadence_seconds)
        packed = [
            replace(history, blocks=con.staged(history.blocks, stage / history.count))
            for history in histories(impressions, searches, earlier)
        ]
        finish = functools.partial(with_lists, packed=packed)
        _write_days(con, con.staged(counts, stage / "counts"), USER_ACTIVITY, fresh, finish)
        searched = last_searches(con, searches, settings.activity_cadence_seconds, stage / "ngrams")
        _write_days(con, con.staged(searched, stage / "searches"), USER_SEARCH, fresh)
        build = Build.of(settings, _horizon(impressions, searches))
        former = build.former(features)
        if former:
            keep_past(con, features, fresh, stage, former.horizon, build)
        build.write(fresh)


def _horizon(impressions: ir.Table, searches: ir.Table) -> datetime:
    """Return the end of the log: the instant after its last event."""
    times = impressions.select("time").union(searches.select("time"))
    last: datetime = times.time.max().to_pyarrow().as_py()
    return last.replace(tzinfo=UTC) + timedelta(microseconds=1)


def _impressions(con: Engine, events: Path, videos: ir.Table) -> ir.Table:
    """Impressions with the channel, and with the time in UTC but without a time zone: faster to add to."""
    joined = _with_channel(event_files.impressions(con, events), videos)
    return joined.select(
        "user_id",
        "video_id",
        "clicked",
        "watch_seconds",
        "channel_id",
        time=joined.timestamp.cast("timestamp"),
    )


def _with_channel(rows: ir.Table, videos: ir.Table) -> ir.Table:
    channel = videos.channel_id if "channel_id" in videos.columns else ibis.null("int64")
    joined = rows.left_join(videos.select("video_id", channel_id=channel), "video_id")
    return joined.mutate(channel_id=joined.channel_id.fill_null(PAD_ID))


def _searches(con: Engine, events: Path, impressions: ir.Table) -> ir.Table:
    """Searches with the list of their tokens; no rows when the log has no searches."""
    if not event_files.has(events, SEARCHES):
        none = impressions.filter(ibis.literal(False))
        return none.select("user_id", "time", query=ibis.null("string"), tokens=ibis.null("array<string>"))
    searches = event_files.searches(con, events)
    time, tokens = searches.timestamp.cast("timestamp"), search_tokens(searches["query"])
    return searches.select("user_id", "query", time=time, tokens=tokens)


def _earlier_watches(con: Engine, events: Path, impressions: ir.Table, videos: ir.Table) -> ir.Table:
    """Watches from before the log with their channel; no rows when the log has none.

    `time` is from when on a watch is known: its `bound`, or that of an older watch where that is later, for
    a list holds no watch without the user's older ones.
    """
    if not event_files.has(events, EARLIER_WATCHES):
        none = impressions.filter(ibis.literal(False)).select("user_id", "video_id", "channel_id", "time")
        return none.mutate(bound=none.time, place=ibis.null("int64"))
    joined = _with_channel(event_files.earlier_watches(con, events), videos)
    bound = joined.timestamp.cast("timestamp")
    in_order = ibis.cumulative_window(group_by="user_id", order_by="place")
    known = bound.max().over(in_order)
    return joined.select("user_id", "video_id", "channel_id", time=known, bound=bound, place="place")


def _write_days(
    con: Engine,
    rows: ir.Table,
    table: Table,
    features: Path,
    finish: Callable[[ir.Table], ir.Table] = lambda rows: rows,
) -> None:
    """Write one file a day of the stamp, `time`, with the columns of `table` after `finish` made them.

    Of a table without rows it is one file without rows, as Feast reads no empty folder.
    """
    day = rows.time.date()
    days = sorted(rows.select(day=day).distinct().to_pyarrow()["day"].to_pylist())
    for date in days or [datetime.fromtimestamp(0, UTC).date()]:
        snapshots = finish(rows.filter(day == date))
        stamp = snapshots.time.cast("timestamp('UTC')")
        stamped = snapshots.mutate(**dict.fromkeys((EVENT_TIMESTAMP, CREATED_TIMESTAMP), stamp))
        write(con, stamped, table, partition_of(features, table, date))
