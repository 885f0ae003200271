"""What makes a row bad: one expression a rule, and the first that holds is the row's reason."""

from dataclasses import dataclass
from datetime import UTC, datetime

import ibis
import ibis.expr.types as ir

from watchrank.config import IngestionSettings
from watchrank.events import DAILY
from watchrank.ingestion.values import TIMESTAMP, UNREAD
from watchrank.schema import IMPRESSIONS, SEARCHES, Table

Rule = tuple[ir.BooleanValue, str]

DUPLICATE = "duplicate"


@dataclass(frozen=True, kw_only=True)
class References:
    """The good users and videos, which the other tables must refer to."""

    users: ir.Table
    videos: ir.Table


def judge(
    rows: ir.Table,
    table: Table,
    settings: IngestionSettings,
    references: References | None = None,
) -> ir.Table:
    """Return the typed rows with their `reason`, NULL for a good one.

    Of good rows with the same key, one stays and the others are duplicates: the row that comes first when
    sorted by its other columns, largest value first (so a click stays rather than its repeat without one).

    Args:
        rows: the table's columns, each with its unread text (see `values.typed`).
        table: the schema's table.
        settings: what is absurd, too long or in the future.
        references: what the table must refer to; None for users and videos.
    """
    columns = [name for name in table.names if name in rows.columns]
    rules = _column_rules(rows, table, columns)
    if table in DAILY:
        rows = _find_robots(rows, settings.max_user_rows_a_day)
    if references:
        rows = _refer(rows, references, "clicked_video_id" if table is SEARCHES else "video_id")
        rules += [*_time_rules(rows, settings), *_reference_rules(rows)]
    if table in DAILY:
        rules.append((rows.robot, "too many events of the user in a day"))
    if table is IMPRESSIONS:
        rules += _watch_rules(rows, settings)
    rows = rows.mutate(reason=ibis.cases(*rules))
    return _mark_duplicates(rows, table, columns).select(
        *columns, *(UNREAD + name for name in columns), "reason"
    )


def _column_rules(rows: ir.Table, table: Table, columns: list[str]) -> list[Rule]:
    rules = [(rows[UNREAD + name].notnull(), f"unparsable {name}") for name in columns]
    for column in map(table.column, columns):
        value = rows[column.name]
        if not column.nullable:
            rules.append((value.isnull(), f"missing {column.name}"))
        if column.minimum is not None:
            watch = column.name == "watch_seconds"
            rules.append(
                (value < column.minimum, "negative watch time" if watch else f"{column.name} out of range")
            )
        if column.maximum is not None:
            rules.append((value > column.maximum, f"{column.name} out of range"))
    return rules


def _time_rules(rows: ir.Table, settings: IngestionSettings) -> list[Rule]:
    latest = settings.as_of or datetime.now(UTC)
    latest = latest if latest.tzinfo else latest.replace(tzinfo=UTC)
    return [(rows.timestamp > ibis.literal(latest, TIMESTAMP), "time in the future")]


def _refer(rows: ir.Table, references: References, video_id: str) -> ir.Table:
    known_users = references.users.select(known_user="user_id")
    videos = references.videos
    duration = videos.duration_seconds if "duration_seconds" in videos.columns else ibis.null("float64")
    known_videos = videos.select(known_video="video_id", duration_seconds=duration)
    rows = rows.left_join(known_users, rows.user_id == known_users.known_user)
    if video_id not in rows.columns:
        return rows.mutate(unknown_video=False)
    rows = rows.left_join(known_videos, rows[video_id] == known_videos.known_video)
    return rows.mutate(unknown_video=rows[video_id].notnull() & rows.known_video.isnull())


def _reference_rules(rows: ir.Table) -> list[Rule]:
    return [(rows.known_user.isnull(), "unknown user"), (rows.unknown_video, "unknown video")]


def _find_robots(rows: ir.Table, most: int) -> ir.Table:
    """Add `robot`: true where the user has more rows than that on the row's day, else NULL."""
    rows = rows.mutate(day=rows.timestamp.date())
    counted = rows.group_by("user_id", "day").agg(rows=rows.count())
    robots = counted.filter(counted.rows > most).select("user_id", "day", robot=True)
    return rows.left_join(robots, ["user_id", "day"])


def _watch_rules(rows: ir.Table, settings: IngestionSettings) -> list[Rule]:
    longest = rows.duration_seconds * settings.max_watch_ratio
    return [
        (rows.watch_seconds > settings.max_watch_seconds, "absurd watch time"),
        (~rows.clicked & (rows.watch_seconds > 0), "watch time without a click"),
        ((rows.duration_seconds > 0) & (rows.watch_seconds > longest), "watch time too long for the video"),
    ]


def _mark_duplicates(rows: ir.Table, table: Table, columns: list[str]) -> ir.Table:
    good = rows.reason.isnull()
    others = [ibis.desc(name) for name in columns if name not in table.key]
    window = ibis.window(group_by=[*table.key, good], order_by=others or [table.key[0]])
    return rows.mutate(reason=(good & (ibis.row_number().over(window) > 0)).ifelse(DUPLICATE, rows.reason))
