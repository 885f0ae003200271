"""KuaiRand's original files (Gao et al. 2022, https://kuairand.com), the standard log.

What is its own: `tab` is the surface ("tab1"). In the feeds a video that was not clicked has been playing
all the same; that time counts as 0 watched. A video's length stands with the video; the log's `duration_ms`
repeats it (0 where it is unknown). An upload is known by its day only and counts from midnight UTC. Users
have no age, gender, country or language.

`user_sequences.parquet`, which may be missing, holds each user's last 50 exposures, likes and long watches
before the log, oldest first: of all 787 users with over 100 exposures and 50 long watches, the last long
watch is among the last 50 exposures and the first is not. The long watches are the earlier watches; that
none was later than `last_time_ms`, the user's last exposure, is all that is known of their times.
"""

import ibis.expr.types as ir

from watchrank.ingestion import values
from watchrank.ingestion.adapter import PLACE, Adapter, Feed, Field, same


def _watch_seconds(row: ir.Table) -> ir.Value:
    played = values.parse(row.play_time_ms, "float64") / 1000
    return values.parse(row.is_click, "bool").ifelse(played, played * 0)


def _duration_seconds(row: ir.Table) -> ir.Value:
    return values.parse(row.video_duration, "float64") / 1000


def _files(stem: str) -> tuple[str, ...]:
    return (f"{stem}*.csv", f"{stem}*.csv.gz")


KUAIRAND: Adapter = {
    "users": Feed(patterns=_files("user_features"), fields=same("user_id")),
    "videos": Feed(
        patterns=_files("video_features_basic"),
        fields={
            **same("video_id"),
            "channel_id": Field(origin="author_id"),
            "upload_time": Field(origin="upload_dt"),
            "duration_seconds": Field(origin="video_duration", missing=("0", "0.0"), value=_duration_seconds),
            "category": Field(origin="tag", value=lambda row: row.tag.split(",")[0]),
        },
    ),
    "impressions": Feed(
        patterns=_files("log_standard"),
        fields={
            **same("user_id", "video_id", "long_view"),
            "timestamp": Field(origin="time_ms", value=lambda row: values.since_1970(row.time_ms, "ms")),
            "clicked": Field(origin="is_click"),
            "watch_seconds": Field(origin="play_time_ms", value=_watch_seconds),
            "surface": Field(origin="tab", value=lambda row: "tab" + row.tab),
            "liked": Field(origin="is_like"),
            "followed": Field(origin="is_follow"),
        },
    ),
    "earlier_watches": Feed(
        patterns=("user_sequences.parquet",),
        fields={
            **same("user_id", PLACE),
            "video_id": Field(origin="long_watch_seq"),
            "timestamp": Field(
                origin="last_time_ms", value=lambda row: values.since_1970(row.last_time_ms, "ms")
            ),
        },
        unnest="long_watch_seq",
    ),
}
