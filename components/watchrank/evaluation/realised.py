"""What the ranker promised users, beside what they then watched."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ibis

from watchrank import events as event_files
from watchrank.config import EngineSettings
from watchrank.engine import connect
from watchrank.serving.request_log import read_log


def realised_watch_time(log: Path, events: Path, window_seconds: int) -> list[dict[str, Any]]:
    """Join the answers of a request log with the impressions that came of them.

    An impression came of the user's last logged request before it that answered the video, when that was at
    most `window_seconds` earlier. Videos that were answered and not shown have no part in this.

    Args:
        log: folder of a `RequestLog`.
        events: folder that `ingestion.ingest` wrote.
        window_seconds: how long after a request an impression may come of it.

    Returns:
        In order, each UTC `day` of impressions that came of a request: how many `impressions`, the sums
        `predicted_seconds` and `observed_seconds`, and their `ratio` (None when nothing was watched).

    Raises:
        InputError: there is no log, or the events cannot be read.
    """
    files = [str(file) for file in read_log(log).files]
    with ExitStack() as stack:
        con = connect(EngineSettings())
        stack.callback(con.disconnect)
        stack.enter_context(con.running(f"the request log in {log} or the events in {events}"))
        logged = con.backend.read_parquet(files)
        answered = logged.select(
            "user_id",
            requested="timestamp",
            video_id=logged.video_ids.unnest(),
            predicted=logged.expected_watch_seconds.unnest(),
        )
        impressions = event_files.impressions(con, events)
        shown = impressions.select("user_id", "video_id", "watch_seconds", time="timestamp")
        joined = shown.asof_join(
            answered, on=shown.time >= answered.requested, predicates=["user_id", "video_id"]
        )
        came = joined.filter(joined.time <= joined.requested + ibis.interval(seconds=window_seconds))
        days = came.group_by(day=came.time.cast("timestamp").date()).agg(
            impressions=came.count(),
            predicted_seconds=came.predicted.cast("float64").sum(),
            observed_seconds=came.watch_seconds.sum(),
        )
        rows = days.order_by("day").to_pyarrow().to_pylist()
    return [{**row, "day": str(row["day"]), "ratio": ratio(row)} for row in rows]


def overall(days: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums over all days, and their ratio."""
    names = ("impressions", "predicted_seconds", "observed_seconds")
    sums = {name: sum(day[name] for day in days) for name in names}
    return {**sums, "ratio": ratio(sums)}


def ratio(sums: dict[str, Any]) -> float | None:
    """Return predicted / observed seconds; None when nothing was watched."""
    observed = sums["observed_seconds"]
    return sums["predicted_seconds"] / observed if observed else None
