"""Small logs, written by hand and ingested, for what is built on events."""

from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchrank.config import EngineSettings, FeatureSettings, IngestionSettings

Rows = Iterable[dict]


@pytest.fixture(scope="session")
def make_events(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that ingests a log given as rows, and returns the events folder."""
    from watchrank.ingestion import ingest

    def make(
        impressions: Rows,
        searches: Rows = (),
        users: Rows = (),
        videos: Rows = (),
        earlier_watches: Rows = (),
    ) -> Path:
        folder = tmp_path_factory.mktemp("log")
        impressions, searches, earlier = list(impressions), list(searches), list(earlier_watches)
        active, viewed = [*impressions, *searches, *earlier], [*impressions, *earlier]
        seen = {row["user_id"] for row in active} - {row["user_id"] for row in users}
        shown = {row["video_id"] for row in viewed} - {row["video_id"] for row in videos}
        tables = {
            "impressions": impressions,
            "searches": searches,
            "earlier_watches": earlier,
            "users": [*users, *({"user_id": user} for user in sorted(seen))],
            "videos": [*videos, *(plain_video(video) for video in sorted(shown))],
        }
        for name, rows in tables.items():
            if rows:
                columns = dict.fromkeys(column for row in rows for column in row)
                table = pa.table({column: [row.get(column) for row in rows] for column in columns})
                pq.write_table(table, folder / f"{name}.parquet")
        strict = IngestionSettings(max_quarantine_share=0)
        ingest(folder, "own", folder / "events", strict, EngineSettings())
        return folder / "events"

    return make


@pytest.fixture(scope="session")
def make_features(make_events: Callable[..., Path]) -> Callable[..., tuple[Path, Path]]:
    """Return a function that also builds features, and returns the events folder and the features folder."""
    from watchrank.features import build_features

    def make(
        *impressions: Rows, cadence: int = 0, statistics_cadence: int = 3_600, **tables: Rows
    ) -> tuple[Path, Path]:
        events = make_events(*impressions, **tables)
        settings = FeatureSettings(
            activity_cadence_seconds=cadence, statistics_cadence_seconds=statistics_cadence
        )
        build_features(events, events.parent / "features", settings, EngineSettings())
        return events, events.parent / "features"

    return make


@pytest.fixture(scope="session")
def shown() -> Callable[..., dict]:
    """Return a function that writes one impression: clicked when it was watched for some seconds."""

    def impression(
        user: int, video: int, time: datetime, watched: float | None = None, **rest: object
    ) -> dict:
        return {
            "user_id": user,
            "video_id": video,
            "timestamp": time,
            "clicked": watched is not None,
            "watch_seconds": watched or 0.0,
            **rest,
        }

    return impression


def plain_video(video: int) -> dict:
    """A video of channel 100 + id, of 1000 s, without upload time."""
    return {"video_id": video, "channel_id": 100 + video, "upload_time": None, "duration_seconds": 1_000.0}
