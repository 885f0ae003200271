"""The examples of candidate generation: a user's watch, and what was known of the user before it.

```
<dataset>/manifest.json           its splits, the absent features, the end of the training window
<dataset>/videos/<column>.npy     the catalogue [N], sorted by id, with what is known of each video
<dataset>/users/<column>.npy      the users [U], sorted by id, with their segment
<dataset>/watches/<column>.npy    every watch to learn from [M], sorted by user and time; none held out
<dataset>/<split>/<column>.npy    examples [E] in order of time: `user_id`, `now`, `video_id` and features
```
The rules (Covington et al. 2016, section 3.4): examples come from all watches, whatever proposed them; a
watch counts when it was completed, and the first time only; a user gives at most a fixed number; inputs are
from strictly before the watch; each user's last watch is held out for the test, the one before it for
validation. The window of the settings `split` binds: nothing after `split.until` is seen, and a watch before
the days that `split` counts is known, but no example.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pyarrow as pa

from watchrank import events as event_files
from watchrank.config import EngineSettings, ExampleSettings, SplitSettings
from watchrank.datasets.columns import Columns, ColumnWriter, read_dataset
from watchrank.datasets.windows import Limits, between, uploaded_before, window
from watchrank.engine import Engine, connect
from watchrank.errors import InputError
from watchrank.schema import (
    EARLIER_WATCHES,
    EVENT_TIMESTAMP,
    FEATURE_ORIGIN,
    PAD_ID,
    USER_ACTIVITY,
    USER_PROFILE,
    VIDEO_PROFILE,
    Table,
)
from watchrank.storage import atomic_path, reading, write_json, writing

if TYPE_CHECKING:
    from feast import FeatureStore

BLOCK_EXAMPLES = 50_000
"""Examples that are held at once with their features."""

SPLITS = ("train", "validation", "test")

_ACTIVITY = replace(
    USER_ACTIVITY,
    columns=tuple(USER_ACTIVITY.column(name) for name in ("watched_video_ids", "search_token_ids")),
)
_TABLES: tuple[Table, ...] = (USER_PROFILE, _ACTIVITY)
_SEGMENT = ("user_language", "country")


@dataclass(frozen=True)
class CandidateDataset:
    """A dataset on disk."""

    path: Path
    manifest: dict[str, Any]
    tables: dict[str, Columns]

    @classmethod
    def open(cls, path: Path) -> "CandidateDataset":
        """Open what `build_candidate_dataset` wrote, as a whole.

        Raises:
            InputError: there is no dataset, or a column is damaged.
        """
        return cls(path, *read_dataset(path, "candidate-dataset"))

    @property
    def absent_features(self) -> frozenset[str]:
        """The features that the log could not give."""
        return frozenset(self.manifest["absent_features"])

    @property
    def videos(self) -> Columns:
        """The catalogue [N], sorted by `video_id`."""
        return self.tables["videos"]

    @property
    def users(self) -> Columns:
        """The users [U], sorted by `user_id`, with `user_language` and `country`."""
        return self.tables["users"]

    @property
    def watches(self) -> Columns:
        """Every watch to learn from [M]: `user_id`, `video_id`, `timestamp_us`."""
        return self.tables["watches"]

    def split(self, name: str) -> Columns:
        """Return the examples of "train", "validation" or "test"."""
        assert name in SPLITS, name
        return self.tables[name]


def build_candidate_dataset(
    events: Path,
    store: "FeatureStore",
    output: Path,
    settings: ExampleSettings,
    split: SplitSettings = SplitSettings(),
) -> None:
    """Choose the examples, join each with its user's features and write them to `output`.

    Args:
        events: folder that `ingestion.ingest` wrote.
        store: from `feature_store.open_store`, on the features of those events.
        output: folder of the dataset; replaced as a whole.
        settings: which watches are examples.
        split: the window; of its days, only how many there are in all matters here.

    Raises:
        InputError: the events have no watch that counts, or lack a day of the window.
    """
    from watchrank.feature_store import features_of  # Feast is slow to import

    with ExitStack() as stack:
        stack.enter_context(reading(events))
        limits = window(event_files.days(events), split)
        now = limits[1] or datetime.now(UTC)
        stack.enter_context(reading(features_of(store)))
        con = connect(EngineSettings())
        stack.callback(con.disconnect)
        stack.enter_context(con.running(f"the events in {events}"))
        stack.enter_context(writing(output))
        fresh = stack.enter_context(atomic_path(output))
        watches = choose_examples(_watches(con, events, settings, limits), settings.max_a_user)
        if watches.empty:
            raise InputError(
                f"The events in {events} have no watch that is {settings.positive}; "
                "set examples.positive or examples.completed_share."
            )
        catalogue = uploaded_before(event_files.videos(con, events), limits[1])
        videos = catalogue.select("video_id").to_pyarrow()["video_id"].to_numpy()
        users = event_files.users(con, events).select("user_id").to_pyarrow()["user_id"].to_numpy()
        _write_profiles(store, fresh / "videos", "video_id", VIDEO_PROFILE, np.sort(videos), now)
        _write_profiles(store, fresh / "users", "user_id", USER_PROFILE, np.sort(users), now, _SEGMENT)
        learned = watches[watches["split"].isin(["train", "none"])]
        _write(fresh / "watches", {n: learned[n].to_numpy() for n in ("user_id", "video_id", "timestamp_us")})
        splits = {name: _write_split(store, fresh / name, watches, name) for name in SPLITS}
        end = watches.loc[watches["split"] == "train", "timestamp_us"].max()
        manifest = {
            "absent_features": sorted(
                name for name, origin in FEATURE_ORIGIN.items() if origin in event_files.absent(events)
            ),
            "end_seconds": int(end) // 1_000_000 if len(learned) else 0,
            "settings": settings.model_dump(),
            "window": [str(limit) if limit else None for limit in limits],
            "splits": splits,
        }
        write_json(fresh / "manifest.json", manifest)


# -- Choosing examples ----------------------------------------------------------------------------------


def choose_examples(watches: pd.DataFrame, max_a_user: int) -> pd.DataFrame:
    """Decide which watches are examples, and of which split.

    Args:
        watches: `user_id`, `video_id`, `timestamp_us`, `place` (order among watches of the same time) and
            `counts`, whether it is one to predict.
        max_a_user: training examples a user at the most; the latest are taken.

    Returns:
        The watches that count, the first of each user and video, sorted by user and time, with `split`:
        "test" for a user's last, "validation" for the one before where three or more are left, "train", or
        "none" beyond `max_a_user`. A watch of a video that the user had opened before is no example.
    """
    ordered = watches.sort_values(["user_id", "timestamp_us", "place", "video_id"], kind="stable")
    first = ~ordered.duplicated(["user_id", "video_id"])
    found = ordered[first & ordered["counts"]].drop(columns="counts").reset_index(drop=True)
    of_user = found.groupby("user_id")["video_id"]
    from_last = of_user.cumcount(ascending=False)
    number = of_user.transform("size")
    kinds = [from_last == 0, (from_last == 1) & (number >= 3), from_last < max_a_user + 2]
    found["split"] = np.select(kinds, ["test", "validation", "train"], default="none")
    return found


def _watches(con: Engine, events: Path, settings: ExampleSettings, limits: Limits) -> pd.DataFrame:
    """Return all clicked impressions and earlier watches; `place` is -1 for an impression."""
    impressions = event_files.impressions(con, events)
    clicked = impressions.filter(impressions.clicked)
    joined = clicked.left_join(event_files.videos(con, events), "video_id")
    rows = joined.select(
        "user_id",
        "video_id",
        "timestamp",
        place=ibis.literal(-1, "int64"),
        counts=_counts(joined, settings).fill_null(False),
    )
    if EARLIER_WATCHES.name in event_files.manifest(events).tables:
        earlier = event_files.earlier_watches(con, events)
        rows = rows.union(
            earlier.select(
                "user_id",
                "video_id",
                "timestamp",
                "place",
                counts=ibis.literal(True),
            )
        )
    start, end = limits
    rows = between(rows, None, end)
    found = rows.mutate(counts=rows.counts & (rows.timestamp >= start) if start else rows.counts).to_pyarrow()
    times = found["timestamp"].cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    frame: pd.DataFrame = found.drop_columns("timestamp").append_column("timestamp_us", times).to_pandas()
    return frame


def _counts(rows: ir.Table, settings: ExampleSettings) -> ir.BooleanValue:
    if settings.positive == "clicked":
        return ibis.literal(True)
    needed = "long_view" if settings.positive == "long_view" else "duration_seconds"
    if needed not in rows.columns:
        raise InputError(
            f"The log has no {needed}; set examples.positive to another rule than {settings.positive}."
        )
    if settings.positive == "long_view":
        return rows.long_view
    return rows.watch_seconds >= settings.completed_share * rows.duration_seconds


# -- Writing --------------------------------------------------------------------------------------------


def _write_profiles(
    store: "FeatureStore",
    folder: Path,
    key: str,
    table: Table,
    ids: np.ndarray,
    at: datetime,
    names: tuple[str, ...] = (),
) -> None:
    """Write what is known of every user or video at a time."""
    from watchrank.feature_store import historical_features  # Feast is slow to import

    times = np.full(len(ids), int(at.timestamp()) * 1_000_000)
    found = historical_features(store, (table,), _entities(key, ids, times))
    _write(folder, {key: ids, **{name: found[name] for name in names or found}})


def _write_split(store: "FeatureStore", folder: Path, watches: pd.DataFrame, name: str) -> dict[str, Any]:
    examples = watches[watches["split"] == name].sort_values("timestamp_us", kind="stable")
    lists = _earlier_lists(watches)
    writer: ColumnWriter | None = None
    with ExitStack() as stack:
        for columns in _with_features(store, examples, lists):
            if writer is None:
                empty = {column: values[:0] for column, values in columns.items()}
                writer = stack.enter_context(ColumnWriter(folder, empty))
            writer.append(columns)
    if writer is None:
        _write(folder, {"user_id": np.empty(0, np.int64), "video_id": np.empty(0, np.int64)})
        return {"rows": 0, "checksum": ""}
    return {"rows": writer.rows, "checksum": f"{writer.checksum:08x}"}


def _with_features(store: "FeatureStore", examples: pd.DataFrame, lists: Columns) -> Iterator[Columns]:
    """Yield the examples' own columns and features, `BLOCK_EXAMPLES` at a time."""
    from watchrank.feature_store import historical_blocks  # Feast is slow to import

    if examples.empty:
        return
    entities = _entities("user_id", examples["user_id"].to_numpy(), examples["timestamp_us"].to_numpy())
    start = 0
    for columns in historical_blocks(store, _TABLES, entities, BLOCK_EXAMPLES):
        rows = examples.iloc[start : start + len(columns["watched_video_ids"])]
        start += len(rows)
        earlier = rows["place"].to_numpy() >= 0
        columns["watched_video_ids"][earlier] = _last_before(rows[earlier], lists)
        own = {
            "user_id": rows["user_id"].to_numpy(),
            "video_id": rows["video_id"].to_numpy(),
            "now": rows["timestamp_us"].to_numpy() // 1_000_000,
        }
        yield own | columns


def _entities(key: str, ids: np.ndarray, timestamp_us: np.ndarray) -> pd.DataFrame:
    times = pd.DatetimeIndex(timestamp_us.view("datetime64[us]")).tz_localize("UTC")
    return pd.DataFrame({key: ids, EVENT_TIMESTAMP: times})


def _earlier_lists(watches: pd.DataFrame) -> Columns:
    """Return the earlier watches, sorted by user and place: what those among them know of the past."""
    earlier = watches[watches["place"] >= 0].sort_values(["user_id", "place"], kind="stable")
    return {name: earlier[name].to_numpy() for name in ("user_id", "place", "video_id")}


def _last_before(rows: pd.DataFrame, lists: Columns) -> np.ndarray:
    """Return the watches [E, L] before each earlier watch, newest first: Feast knows no order among them."""
    length = USER_ACTIVITY.column("watched_video_ids").length
    assert length is not None
    order = np.rec.fromarrays([lists["user_id"], lists["place"]])
    own = np.searchsorted(order, np.rec.fromarrays([rows["user_id"], rows["place"]], dtype=order.dtype))
    start = np.searchsorted(lists["user_id"], rows["user_id"].to_numpy())
    place = own[:, None] - 1 - np.arange(length)
    known = place >= start[:, None]
    found: np.ndarray = np.where(known, lists["video_id"][place.clip(min=0)], PAD_ID)
    return found


def _write(folder: Path, columns: Columns) -> None:
    with ColumnWriter(folder, {name: values[:0] for name, values in columns.items()}) as writer:
        writer.append(columns)
