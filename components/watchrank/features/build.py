"""The feature tables, from events to files.

A row stamped `s` covers exactly the events with `timestamp < s`, so a join that takes the latest row with
`event_timestamp <= now` sees only the past. What a late log changes of it, `backfill` says; where all that is
new came after the former log, only its rows are computed. Everything is an Ibis expression, made of what both
DuckDB and Spark can run.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path

import ibis
import ibis.expr.types as ir

from watchrank.config import EngineSettings, FeatureSettings
from watchrank.engine import Engine, connect
from watchrank.features.backfill import keep_past
from watchrank.features.counts import (
    USER_STATISTICS_DAYS,
    activity_counts,
    user_statistics,
    video_statistics,
)
from watchrank.features.files import day_of, file_of, files_of, link, partition_of, write
from watchrank.features.histories import histories, lists_before, no_lists, with_lists
from watchrank.features.log import Log
from watchrank.features.profiles import profiles
from watchrank.features.record import Build, LogRecord
from watchrank.features.searches import last_searches, query_ngrams
from watchrank.features.times import edge
from watchrank.schema import (
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    FEATURE_TABLES,
    STATISTICS_DAYS,
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
from watchrank.storage import atomic_path, reading, writing

_EPOCH = date(1970, 1, 1)
PROFILES = (USER_PROFILE, VIDEO_PROFILE)


def build_features(events: Path, features: Path, settings: FeatureSettings, engine: EngineSettings) -> None:
    """Write the feature tables of `schema.FEATURE_TABLES` under `features`; the same events change nothing.

    Rows are created at their event timestamp. Over features of the same settings, and of this log when it was
    shorter or not yet corrected, what they say of the past stays, and what now differs is created at the end
    of the log (`backfill`). Where the log has only got later days, the rows before them are not computed
    again. Over others the tables are built afresh, and the log of the program says so.

    The profiles are one file each, stamped 1970-01-01; activity and statistics are
    partitioned by the day of their stamp. Lists come newest first, unpadded. Of a column that the log
    lacks the feature is `PAD_ID`, missing (a float) or an empty list.
    """
    with ExitStack() as stack:
        con = connect(engine)
        stack.callback(con.disconnect)
        stack.enter_context(con.running(f"the events in {events}"))
        stack.enter_context(reading(events))
        stack.enter_context(writing(features))
        fresh = stack.enter_context(atomic_path(features))
        stage = fresh.with_name("stage")
        fresh.mkdir()
        stage.mkdir()
        log = Log(con, events)
        write(con, profiles(log.users, USERS, USER_PROFILE), USER_PROFILE, file_of(fresh, USER_PROFILE))
        write(con, profiles(log.videos, VIDEOS, VIDEO_PROFILE), VIDEO_PROFILE, file_of(fresh, VIDEO_PROFILE))
        build = Build.of(settings, log.horizon(), LogRecord.of(events))
        former = build.former(features)
        since = build.unchanged_until(former) if former else None
        if since and not _same_channels(con, features, fresh):
            since = None
        days = _Days(con, features, fresh, stage, since)
        _statistics(log, settings, days)
        _activity(log, settings, days)
        if former:
            tables = PROFILES if since else FEATURE_TABLES
            keep_past(con, tables, features, fresh, stage, former.horizon, build)
        build.write(fresh)


def _same_channels(con: Engine, former: Path, fresh: Path) -> bool:
    """Tell whether all videos of a former build have the channels that its lists say."""
    before, now = (con.read_parquet([file_of(folder, VIDEO_PROFILE)]) for folder in (former, fresh))
    newest = before.group_by("video_id").agg(before[CREATED_TIMESTAMP].max().name(CREATED_TIMESTAMP))
    known = before.semi_join(newest, ["video_id", CREATED_TIMESTAMP]).select("video_id", "channel_id")
    other = known.anti_join(now, ["video_id", "channel_id"])
    return not other.count().to_pyarrow().as_py()


def _statistics(log: Log, settings: FeatureSettings, days: "_Days") -> None:
    since = days.edge(settings.statistics_cadence_seconds)
    shown = log.impressions(since and since - timedelta(days=max(STATISTICS_DAYS)))
    rows = video_statistics(shown, settings.statistics_cadence_seconds, since, log.horizon())
    days.write(rows, VIDEO_STATISTICS, since)

    cadence, lag = settings.user_statistics_cadence_seconds, settings.user_statistics_lag_seconds
    since = days.edge(cadence)
    shown = log.impressions(since and since - timedelta(days=USER_STATISTICS_DAYS))
    rows = user_statistics(shown, cadence, lag, since)
    days.write(rows, USER_STATISTICS, since and since + timedelta(seconds=lag))


def _activity(log: Log, settings: FeatureSettings, days: "_Days") -> None:
    con, stage, cadence = days.con, days.stage, settings.activity_cadence_seconds
    since = days.edge(cadence)
    impressions, searches = log.impressions(since), log.searches(since)
    earlier, before = log.earlier_watches(since), no_lists(impressions)
    if since:
        active = impressions.select("user_id").union(searches.select("user_id"), earlier.select("user_id"))
        lists = lists_before(con, days.former, active, since)
        before = con.staged(lists, stage / "before").cast(before.schema())
    packed = [
        replace(history, blocks=con.staged(history.blocks, stage / history.count))
        for history in histories(impressions, searches, earlier, before)
    ]
    counts = activity_counts(impressions, searches, earlier, before, cadence, since)
    days.write(counts, USER_ACTIVITY, since, partial(with_lists, packed=packed))
    ngrams = query_ngrams(con, searches, stage / "ngrams")
    days.write(
        last_searches(searches, cadence), USER_SEARCH, since, lambda rows: rows.inner_join(ngrams, "query")
    )


@dataclass(frozen=True)
class _Days:
    """Writes the daily tables into a new folder, over those of a former one that hold until `since`."""

    con: Engine
    former: Path
    fresh: Path
    stage: Path
    since: datetime | None

    def edge(self, cadence: int) -> datetime | None:
        """Return the instant from which on events are to be stamped; None for all events."""
        return self.since and edge(self.since, cadence)

    def write(
        self,
        rows: ir.Table,
        table: Table,
        since: datetime | None,
        finish: Callable[[ir.Table], ir.Table] = lambda rows: rows,
    ) -> None:
        """Write one file a day of the stamp, `time`, with the columns of `table` after `finish` made them.

        Former rows stamped up to `since` stay; `rows` come after it. Of a table without rows it is one file
        without rows, as Feast reads no empty folder.
        """
        kept = {day_of(file): file for file in files_of(self.former, table)} if since else {}
        for day, file in kept.items():
            if since and day < since.date():
                link(file, partition_of(self.fresh, table, day))
        new = self._by_day(rows, self.stage / f"{table.name}.days")
        split = {since.date()} & kept.keys() if since else set()
        for day in sorted({*new, *split}) or ([] if kept else [_EPOCH]):
            snapshots = finish(new.get(day, rows.filter(ibis.literal(False))))
            stamp = snapshots.time.cast("timestamp('UTC')")
            whole = snapshots.mutate(**dict.fromkeys((EVENT_TIMESTAMP, CREATED_TIMESTAMP), stamp))
            if since and day in split:
                former = self.con.read_parquet([kept[day]])
                stays = former.filter(former[EVENT_TIMESTAMP] <= ibis.literal(since, "timestamp('UTC')"))
                whole = stays.union(whole.select(stays.columns).cast(stays.schema()))
            write(self.con, whole, table, partition_of(self.fresh, table, day))

    def _by_day(self, rows: ir.Table, folder: Path) -> dict[date, ir.Table]:
        """Compute the rows once, and return them by the day of their stamp."""
        self.con.write_partitions(rows.mutate(day=rows.time.date().cast("string")), folder, "day")
        parts = {part.name.removeprefix("day="): part.glob("*.parquet") for part in folder.glob("day=*")}
        return {
            date.fromisoformat(day): self.con.read_parquet(files).cast(rows.schema())
            for day, files in parts.items()
        }
