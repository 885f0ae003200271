"""The events as the feature tables read them: from some instant on, times in UTC without a time zone."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ibis
import ibis.expr.types as ir

from watchrank import events
from watchrank.engine import Engine
from watchrank.features.text import search_tokens
from watchrank.schema import EARLIER_WATCHES, IMPRESSIONS, PAD_ID, SEARCHES, Table


@dataclass(frozen=True)
class Log:
    """An events folder; `since` is an instant in UTC from which on to read, None for all."""

    con: Engine
    folder: Path

    @property
    def users(self) -> ir.Table:
        """The users."""
        return events.users(self.con, self.folder)

    @property
    def videos(self) -> ir.Table:
        """The videos."""
        return events.videos(self.con, self.folder)

    def impressions(self, since: datetime | None) -> ir.Table:
        """Return the impressions with the channel and their `time`."""
        rows = self._with_channel(_from(events.impressions(self.con, self.folder), since))
        return rows.select(
            "user_id",
            "video_id",
            "clicked",
            "watch_seconds",
            "channel_id",
            time=rows.timestamp.cast("timestamp"),
        )

    def searches(self, since: datetime | None) -> ir.Table:
        """Return the searches with the list of their tokens; no rows when the log has no searches."""
        if not events.has(self.folder, SEARCHES):
            none = self.impressions(since).filter(ibis.literal(False))
            return none.select(
                "user_id", "time", query=ibis.null("string"), tokens=ibis.null("array<string>")
            )
        rows = _from(events.searches(self.con, self.folder), since)
        time, tokens = rows.timestamp.cast("timestamp"), search_tokens(rows["query"])
        return rows.select("user_id", "query", time=time, tokens=tokens)

    def earlier_watches(self, since: datetime | None) -> ir.Table:
        """Return watches from before the log with their channel; no rows when the log has none.

        `time` is from when on a watch is known: its `bound`, or that of an older watch where that is later,
        for a list holds no watch without the user's older ones.
        """
        if not events.has(self.folder, EARLIER_WATCHES):
            none = self.impressions(since).filter(ibis.literal(False))
            none = none.select("user_id", "video_id", "channel_id", "time")
            return none.mutate(bound=none.time, place=ibis.null("int64"))
        rows = self._with_channel(events.earlier_watches(self.con, self.folder))
        bound = rows.timestamp.cast("timestamp")
        in_order = ibis.cumulative_window(group_by="user_id", order_by="place")
        known = bound.max().over(in_order)
        found = rows.select("user_id", "video_id", "channel_id", time=known, bound=bound, place="place")
        return found.filter(found.time >= naive(since)) if since else found

    def horizon(self) -> datetime:
        """Return the end of the log: the instant after its last event."""
        last = [self._last(table) for table in (IMPRESSIONS, SEARCHES) if events.days(self.folder, table)]
        return max(last) + timedelta(microseconds=1)

    def _last(self, table: Table) -> datetime:
        file = events.partition_of(self.folder, table, events.days(self.folder, table)[-1])
        last: datetime = self.con.read_parquet([file]).timestamp.max().to_pyarrow().as_py()
        return last.astimezone(UTC)

    def _with_channel(self, rows: ir.Table) -> ir.Table:
        videos = self.videos
        channel = videos.channel_id if "channel_id" in videos.columns else ibis.null("int64")
        joined = rows.left_join(videos.select("video_id", channel_id=channel), "video_id")
        return joined.mutate(channel_id=joined.channel_id.fill_null(PAD_ID))


def naive(time: datetime) -> ir.TimestampScalar:
    """Return an instant in UTC as the tables here have it."""
    return ibis.literal(time.replace(tzinfo=None), "timestamp")


def _from(rows: ir.Table, since: datetime | None) -> ir.Table:
    """Leave out what was before an instant; a day that was is not read."""
    if since is None:
        return rows
    return rows.filter(rows.date >= since.date(), rows.timestamp >= ibis.literal(since, "timestamp('UTC')"))
