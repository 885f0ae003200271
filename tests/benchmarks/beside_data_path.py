"""What `data_path.py` runs beside watchrank's steps: pandas, and Feast's file store."""

import shutil
from collections import deque
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from watchrank.datasets.ranking import RankingDataset
from watchrank.feature_store import USER_TABLES, feature_refs, open_store
from watchrank.schema import IMPRESSION_HISTORY, WATCH_HISTORY
from watchrank.workspace import Workspace

KEY = ["timestamp", "user_id", "video_id"]
SAMPLE = 2_000
"""Requests of the join: Feast's file store takes minutes for more."""


def ingest(log: Path, events: Path) -> None:
    """Read the impressions with their types, leave out the bad and repeated, sort, and write a file a day."""
    rows = pd.read_parquet(log / "impressions")
    users, videos = (pd.read_parquet(log / f"{name}.parquet") for name in ("users", "videos"))
    rows = rows.astype(
        {"user_id": "int64", "video_id": "int64", "clicked": "bool", "watch_seconds": "float64"}
    )
    rows["timestamp"] = pd.to_datetime(rows["timestamp"], utc=True)
    known = rows["user_id"].isin(users["user_id"]) & rows["video_id"].isin(videos["video_id"])
    good = known & rows["watch_seconds"].between(0, 86_400) & (rows["clicked"] | (rows["watch_seconds"] == 0))
    rows = rows[good].sort_values("watch_seconds", ascending=False).drop_duplicates(KEY).sort_values(KEY)
    shutil.rmtree(events, ignore_errors=True)
    for day, of_day in rows.groupby(rows["timestamp"].dt.date):
        (events / f"date={day}").mkdir(parents=True)
        of_day.to_parquet(events / f"date={day}" / "part.parquet")


def features(events: Path, folder: Path) -> None:
    """Write the last videos shown and watched after each event, and the counts of users and videos."""
    rows = pd.concat(
        [pd.read_parquet(file) for file in sorted(events.glob("*/*.parquet"))], ignore_index=True
    )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    activity(rows).to_parquet(folder / "user_activity.parquet")
    rolling(rows, "user_id", "1D", ("7D",)).to_parquet(folder / "user_statistics.parquet")
    rolling(rows, "video_id", "1h", ("1D", "7D", "28D")).to_parquet(folder / "video_statistics.parquet")


def activity(rows: pd.DataFrame) -> pd.DataFrame:
    """Return each user's lists after each instant with events, newest first."""
    snapshots = []
    for user, of_user in rows.groupby("user_id", sort=True):
        shown: deque[int] = deque(maxlen=IMPRESSION_HISTORY)
        watched: deque[tuple[int, pd.Timestamp, float]] = deque(maxlen=WATCH_HISTORY)
        for time, at_once in of_user.groupby("timestamp", sort=True):
            for video, clicked, seconds in zip(
                at_once["video_id"], at_once["clicked"], at_once["watch_seconds"], strict=True
            ):
                shown.appendleft(video)
                if clicked:
                    watched.appendleft((video, time, seconds))
            videos, times, seconds = zip(*watched, strict=True) if watched else ((), (), ())
            snapshots.append((user, time, list(shown), list(videos), list(times), list(seconds)))
    names = ["user_id", "time", "shown", "watched", "watched_times", "watched_seconds"]
    return pd.DataFrame(snapshots, columns=names)


def rolling(rows: pd.DataFrame, key: str, cadence: str, windows: tuple[str, ...]) -> pd.DataFrame:
    """Return the counts of an entity over windows at the end of each bucket that has any."""
    buckets = rows.assign(time=rows["timestamp"].dt.floor(cadence) + pd.Timedelta(cadence), shown=1)
    sums = buckets.groupby([key, "time"])[["shown", "clicked", "watch_seconds"]].sum().reset_index("time")
    found = [
        sums.groupby(key).rolling(window, on="time").sum().add_suffix(f"_{window}") for window in windows
    ]
    return pd.concat(found, axis=1).reset_index(drop=True)


def file_repo(feature_repo: Path, folder: Path) -> Path:
    """Copy the feature repository with Feast's default offline store in it."""
    shutil.copytree(feature_repo, folder, dirs_exist_ok=True)
    file = folder / "feature_store.yaml"
    file.write_text(file.read_text().replace("watchrank.offline_store.AsOfOfflineStore", "file"))
    return folder


def join(feature_repo: Path, place: Workspace) -> None:
    """Join the same requests with the user features known at their time; say how many rows came back."""
    store = open_store(feature_repo, place.features, place.root / f"state_{feature_repo.name}")
    requests = RankingDataset.open(place.dataset).split("test").requests
    rows = pd.DataFrame(
        {
            "user_id": requests["user_id"][:SAMPLE],
            "event_timestamp": pd.to_datetime(requests["now"][:SAMPLE], unit="s", utc=True).as_unit("us"),
        }
    )
    ours = not feature_repo.name.startswith("file")
    refs = feature_refs(USER_TABLES)
    joined = store.get_historical_features(rows, features=refs, filter_by_created_timestamp=ours).to_arrow()
    print(f"{len(rows)} rows in, {joined.num_rows} out")


def split_last_day(log: Path, first: Path, last: Path) -> None:
    """Write a log as two: all days but the last, and the last; users and videos are in both."""
    parts = {name: pq.read_table(log / name) for name in ("impressions", "searches")}
    end = pc.max(pc.floor_temporal(parts["impressions"]["timestamp"], unit="day"))
    for folder in (first, last):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("users", "videos"):
            shutil.copyfile(log / f"{name}.parquet", folder / f"{name}.parquet")
        for name, rows in parts.items():
            is_last: pa.ChunkedArray = pc.greater_equal(rows["timestamp"], end)
            pq.write_table(
                rows.filter(is_last if folder == last else pc.invert(is_last)), folder / f"{name}.parquet"
            )
