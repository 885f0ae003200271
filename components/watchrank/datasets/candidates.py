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
from watchrank.config import ExampleSettings, SplitSettings
from watchrank.datasets.columns import Columns, ColumnWriter, read_dataset
from watchrank.datasets.windows import Limits, between, uploaded_before, window
from watchrank.engine import Engine, connect
from watchrank.errors import InputError
from watchrank.schema import (
    EARLIER_WATCHES,
    EVENT_TIMESTAMP,
    FEATURE_ORIGIN,
    USER_ACTIVITY,
    USER_PROFILE,
    VIDEO_PROFILE,
    Table,
)
from watchrank.storage import atomic_path, reading, write_json, writing

if TYPE_CHECKING:
    from feast import FeatureStore

READ_EXAMPLES = 2_000_000
"""Examples, still without features, that are held at once."""

BLOCK_EXAMPLES = 50_000
"""Examples that are held at once with their features."""

SPLITS = ("train", "validation", "test")

_ACTIVITY = replace(
    USER_ACTIVITY,
    columns=tuple(USER_ACTIVITY.column(name) for name in ("watched_video_ids", "search_token_ids")),
)
_TABLES: tuple[Table, ...] = (USER_PROFILE, _ACTIVITY)
_1970 = ibis.literal(datetime.fromtimestamp(0, UTC), "timestamp('UTC')")
_WATCHED = USER_ACTIVITY.column("watched_video_ids")
_DTYPES: dict[str, type[np.generic]] = {"int64": np.int64, "float32": np.float32, "list<int64>": np.int64}
_ORDER = ("timestamp_us", "place", "video_id")
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
    from watchrank.feature_store import engine_of, features_of  # Feast is slow to import

    with ExitStack() as stack:
        stack.enter_context(reading(events))
        limits = window(event_files.days(events), split)
        now = limits[1] or datetime.now(UTC)
        stack.enter_context(reading(features_of(store)))
        con = connect(engine_of(store))
        stack.callback(con.disconnect)
        stack.enter_context(con.running(f"the events in {events}"))
        stack.enter_context(writing(output))
        fresh = stack.enter_context(atomic_path(output))
        fresh.mkdir()
        watches = choose_examples(_watches(con, events, settings, limits), settings.max_a_user)
        if event_files.has(events, EARLIER_WATCHES):
            watches = with_lists_before(watches)
        watches = con.staged(watches, fresh.with_name("watches"))
        learned = watches.filter(watches.split.isin(["train", "none"])).drop("split")
        if not watches.count().to_pyarrow().as_py():
            raise InputError(
                f"The events in {events} have no watch that is {settings.positive}; "
                "set examples.positive or examples.completed_share."
            )
        catalogue = uploaded_before(event_files.videos(con, events), limits[1])
        videos = catalogue.select("video_id").to_pyarrow()["video_id"].to_numpy()
        users = event_files.users(con, events).select("user_id").to_pyarrow()["user_id"].to_numpy()
        _write_profiles(store, fresh / "videos", "video_id", VIDEO_PROFILE, np.sort(videos), now)
        _write_profiles(store, fresh / "users", "user_id", USER_PROFILE, np.sort(users), now, _SEGMENT)
        _write_watches(con, fresh / "watches", learned)
        splits = {
            name: _write_split(con, store, fresh / name, watches.filter(watches.split == name))
            for name in SPLITS
        }
        last = watches.filter(watches.split == "train").timestamp_us.max().to_pyarrow().as_py()
        manifest = {
            "absent_features": sorted(
                name for name, origin in FEATURE_ORIGIN.items() if origin in event_files.absent(events)
            ),
            "end_seconds": (last or 0) // 1_000_000,
            "settings": settings.model_dump(),
            "window": [str(limit) if limit else None for limit in limits],
            "splits": splits,
        }
        write_json(fresh / "manifest.json", manifest)


# -- Choosing examples ----------------------------------------------------------------------------------


def choose_examples(watches: ir.Table, max_a_user: int) -> ir.Table:
    """Decide which watches are examples, and of which split.

    Args:
        watches: `user_id`, `video_id`, `timestamp_us`, `place` (order among watches of the same time) and
            `counts`, whether it is one to predict.
        max_a_user: training examples a user at the most; the latest are taken.

    Returns:
        The watches that count, the first of each user and video, with `split`: "test" for a user's last,
        "validation" for the one before where three or more are left, "train", or "none" beyond `max_a_user`.
        A watch of a video that the user had opened before is no example.
    """
    of_video = ibis.window(
        group_by=["user_id", "video_id"], order_by=["timestamp_us", "place", ibis.desc("counts")]
    )
    first = watches.mutate(number=ibis.row_number().over(of_video)).filter(ibis._.number == 0, ibis._.counts)
    found = first.drop("number", "counts")
    latest_first = ibis.window(group_by="user_id", order_by=[ibis.desc(name) for name in _ORDER])
    of_user = ibis.window(group_by="user_id")
    counted = found.mutate(from_last=ibis.row_number().over(latest_first), number=found.count().over(of_user))
    split = ibis.cases(
        (counted.from_last == 0, "test"),
        ((counted.from_last == 1) & (counted.number >= 3), "validation"),
        (counted.from_last < max_a_user + 2, "train"),
        else_="none",
    )
    return counted.mutate(split=split).drop("from_last", "number")


def with_lists_before(watches: ir.Table) -> ir.Table:
    """List for each earlier watch those `before` it, newest first: Feast knows no order among them."""
    is_earlier = watches.place >= 0
    before = ibis.window(group_by="user_id", order_by=ibis.desc("place"), following=(1, _WATCHED.length))
    earlier = watches.filter(is_earlier).mutate(before=lambda rows: rows.video_id.collect().over(before))
    return earlier.union(watches.filter(~is_earlier).mutate(before=ibis.null("array<int64>")))


def _watches(con: Engine, events: Path, settings: ExampleSettings, limits: Limits) -> ir.Table:
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
    if event_files.has(events, EARLIER_WATCHES):
        earlier = event_files.earlier_watches(con, events)
        rows = rows.union(
            earlier.select("user_id", "video_id", "timestamp", "place", counts=ibis.literal(True))
        )
    start, end = limits
    rows = between(rows, None, end)
    since_1970 = rows.timestamp.delta(_1970, unit="microsecond")
    counts = rows.counts & (rows.timestamp >= start) if start else rows.counts
    return rows.select("user_id", "video_id", "place", timestamp_us=since_1970, counts=counts)


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


def _write_watches(con: Engine, folder: Path, watches: ir.Table) -> None:
    names = ("user_id", "video_id", "timestamp_us")
    with ColumnWriter(folder, {name: np.empty(0, np.int64) for name in names}) as writer:
        for batch in con.batches(watches.order_by("user_id", *_ORDER).select(*names), READ_EXAMPLES):
            writer.append({name: batch[name].to_numpy() for name in names})


def _write_split(con: Engine, store: "FeatureStore", folder: Path, examples: ir.Table) -> dict[str, Any]:
    """Write the examples of a split in order of time, with their users' features."""
    in_order = examples.order_by("timestamp_us", "user_id", "place", "video_id")
    with ColumnWriter(folder, _columns()) as writer:
        for batch in con.batches(in_order, READ_EXAMPLES):
            for columns in _with_features(store, batch):
                writer.append(columns)
    return {"rows": writer.rows, "checksum": f"{writer.checksum:08x}" if writer.rows else ""}


def _columns() -> Columns:
    ids = {name: np.empty(0, np.int64) for name in ("user_id", "video_id", "now")}
    features = [column for table in _TABLES for column in table.columns]
    return ids | {
        column.name: np.empty((0, column.length) if column.length else 0, _DTYPES[column.dtype])
        for column in features
    }


def _with_features(store: "FeatureStore", examples: pa.RecordBatch) -> Iterator[Columns]:
    """Yield the examples' own columns and features, `BLOCK_EXAMPLES` at a time."""
    from watchrank.feature_store import historical_blocks, pad_lists

    own = {name: examples[name].to_numpy() for name in ("user_id", "video_id", "timestamp_us", "place")}
    entities = _entities("user_id", own["user_id"], own["timestamp_us"])
    start = 0
    for columns in historical_blocks(store, _TABLES, entities, BLOCK_EXAMPLES):
        rows = slice(start, start + len(columns["watched_video_ids"]))
        start = rows.stop
        earlier = own["place"][rows] >= 0
        if earlier.any():
            before = pad_lists(examples["before"][rows], columns["watched_video_ids"].shape[1])
            columns["watched_video_ids"][earlier] = before[earlier]
        yield {
            "user_id": own["user_id"][rows],
            "video_id": own["video_id"][rows],
            "now": own["timestamp_us"][rows] // 1_000_000,
            **columns,
        }


def _entities(key: str, ids: np.ndarray, timestamp_us: np.ndarray) -> pd.DataFrame:
    times = pd.DatetimeIndex(timestamp_us.view("datetime64[us]")).tz_localize("UTC")
    return pd.DataFrame({key: ids, EVENT_TIMESTAMP: times})


def _write(folder: Path, columns: Columns) -> None:
    with ColumnWriter(folder, {name: values[:0] for name, values in columns.items()}) as writer:
        writer.append(columns)
