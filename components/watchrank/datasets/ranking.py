"""The ranker's examples: impressions with the features known at their time, split by day.

```
<dataset>/manifest.json                      its splits, the absent features, the surfaces' text ids
<dataset>/<split>/requests/<column>.npy      R rows, one a (user, time, surface), with the user's features
<dataset>/<split>/impressions/<column>.npy   N rows in order of time: the row of their request (`request`),
                                             labels and the video's features
```
A user's features are kept once a request, not once an impression: a request shows a whole slate.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis.expr.types as ir
import numpy as np
import pandas as pd
import pyarrow as pa

from watchrank import events as event_files
from watchrank.config import SplitSettings
from watchrank.datasets.columns import Columns, ColumnWriter, read_dataset
from watchrank.datasets.windows import SPLITS, split_days
from watchrank.engine import connect
from watchrank.schema import (
    EVENT_TIMESTAMP,
    FEATURE_ORIGIN,
    IMPRESSION_TENSORS,
    IMPRESSIONS,
    PAD_ID,
    REQUEST_TENSORS,
    USER_TENSORS,
    VIDEO_TENSORS,
    Table,
    Tensor,
    text_id,
)
from watchrank.storage import atomic_path, reading, write_json, writing

if TYPE_CHECKING:
    from feast import FeatureStore

READ_ROWS = 4_000_000
"""Impressions, still without features, that are held at once; a longer day is held as a whole."""

BLOCK_REQUESTS = 50_000
"""Requests that are held at once with their features; each takes 4 KB."""

BLOCK_IMPRESSIONS = 500_000
"""Impressions that are held at once with their video's features."""

LABELS = {"clicked": np.bool_, "watch_seconds": np.float32, "position": np.int64}
OPTIONAL_LABELS = {"liked": np.int8, "followed": np.int8, "long_view": np.int8}
"""1 or 0, and `PAD_ID` where the log does not say."""

_ORDER = ("timestamp_us", "user_id", "surface", "video_id")
_REQUEST = ("timestamp_us", "user_id", "surface")


@dataclass(frozen=True)
class Split:
    """The memory-mapped columns of one window of days."""

    requests: Columns
    impressions: Columns

    def __len__(self) -> int:
        """Return the number of impressions."""
        return len(self.impressions["request"])


@dataclass(frozen=True)
class RankingDataset:
    """A dataset on disk."""

    path: Path
    manifest: dict[str, Any]
    tables: dict[str, Columns]

    @classmethod
    def open(cls, path: Path) -> "RankingDataset":
        """Open what `build_ranking_dataset` wrote, as a whole.

        Raises:
            InputError: there is no dataset, or a column is damaged.
        """
        return cls(path, *read_dataset(path, "dataset"))

    @cached_property
    def absent_features(self) -> frozenset[str]:
        """The features that the log could not give."""
        return frozenset(self.manifest["absent_features"])

    def split(self, name: str) -> Split:
        """Return the split "train", "validation" or "test"."""
        assert name in SPLITS, name
        return Split(self.tables[f"{name}/requests"], self.tables[f"{name}/impressions"])


def build_ranking_dataset(events: Path, store: "FeatureStore", output: Path, split: SplitSettings) -> None:
    """Join the impressions of every split with their features and write them to `output`.

    Args:
        events: folder that `ingestion.ingest` wrote.
        store: from `feature_store.open_store`, on the features of those events.
        output: folder of the dataset; replaced as a whole.
        split: which days train, validate and test.

    Raises:
        InputError: the events have too few days, or lack one of the window.
    """
    from watchrank.feature_store import engine_of, features_of  # Feast is slow to import

    with ExitStack() as stack:
        stack.enter_context(reading(events))
        log = event_files.manifest(events)
        windows = split_days(event_files.days(events), split)
        rows_of = {
            date.fromisoformat(day): found.rows for day, found in log.tables[IMPRESSIONS.name].days.items()
        }
        stack.enter_context(reading(features_of(store)))
        con = connect(engine_of(store))
        stack.callback(con.disconnect)
        stack.enter_context(con.running(f"the events in {events}"))
        stack.enter_context(writing(output))
        fresh = stack.enter_context(atomic_path(output))
        impressions = event_files.impressions(con, events)
        splits = {
            name: _write_split(store, fresh / name, impressions, {day: rows_of[day] for day in days})
            for name, days in windows.items()
        }
        absent = sorted(name for name, origin in FEATURE_ORIGIN.items() if origin in log.absent)
        seen = impressions.filter(impressions.date.isin([day for days in windows.values() for day in days]))
        manifest = {"absent_features": absent, "surfaces": _surfaces(seen), "splits": splits}
        write_json(fresh / "manifest.json", manifest)


# -- Reading impressions ------------------------------------------------------------------------------


def _surfaces(impressions: ir.Table) -> dict[str, int]:
    if "surface" not in impressions.columns:
        return {}
    names = impressions.select("surface").distinct().to_pyarrow()["surface"].drop_null().to_pylist()
    return {name: text_id(name) for name in names}


def _labels(impressions: ir.Table) -> dict[str, type[np.generic]]:
    return LABELS | {name: kind for name, kind in OPTIONAL_LABELS.items() if name in impressions.columns}


def _batches(rows_of: Mapping[date, int]) -> Iterator[list[date]]:
    """Group consecutive days of at most `READ_ROWS` impressions in all."""
    batch: list[date] = []
    for day, rows in rows_of.items():
        if batch and sum(rows_of[held] for held in batch) + rows > READ_ROWS:
            yield batch
            batch = []
        batch.append(day)
    if batch:
        yield batch


def _read(impressions: ir.Table, days: Sequence[date]) -> Columns:
    """Return ids, time in microseconds, the surface's text id and labels, in the order of `_ORDER`."""
    labels = _labels(impressions)
    names = ["user_id", "video_id", "timestamp", "surface", "candidate_source", *labels]
    of_days = impressions.filter(impressions.date.isin(days))
    rows = of_days.select(name for name in names if name in impressions.columns).to_pyarrow()
    columns = {
        "user_id": rows["user_id"].to_numpy(),
        "video_id": rows["video_id"].to_numpy(),
        "timestamp_us": rows["timestamp"].cast(pa.int64()).to_numpy(),
        "surface": _text_ids(rows, "surface"),
        "candidate_source": _text_ids(rows, "candidate_source"),
        **{name: _label(rows, name, kind) for name, kind in labels.items()},
    }
    order = np.lexsort([columns[name] for name in reversed(_ORDER)])
    return {name: column[order] for name, column in columns.items()}


def _text_ids(rows: pa.Table, name: str) -> np.ndarray:
    if name not in rows.column_names:
        return np.full(len(rows), PAD_ID)
    encoded = rows[name].combine_chunks().dictionary_encode()
    ids = np.array([*map(text_id, encoded.dictionary.to_pylist()), PAD_ID])
    taken: np.ndarray = np.take(ids, encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False))
    return taken


def _label(rows: pa.Table, name: str, kind: type[np.generic]) -> np.ndarray:
    if name not in rows.column_names:
        return np.full(len(rows), PAD_ID, dtype=kind)
    values = rows[name].cast(pa.from_numpy_dtype(kind))
    return np.asarray(values.fill_null(PAD_ID).to_numpy() if values.null_count else values.to_numpy(), kind)


# -- Requests and features ----------------------------------------------------------------------------


def _requests(rows: Columns) -> tuple[Columns, np.ndarray]:
    """Return the keys of the R requests that N rows in order belong to, and each row's among the R."""
    changes = [rows[name][1:] != rows[name][:-1] for name in _REQUEST]
    is_first = np.concatenate([[True], np.logical_or.reduce(changes)])
    return {name: rows[name][is_first] for name in _REQUEST}, np.cumsum(is_first) - 1


def _write_split(
    store: "FeatureStore", folder: Path, impressions: ir.Table, rows_of: Mapping[date, int]
) -> dict[str, Any]:
    """Join and write the days of `rows_of`; return what the manifest tells of them."""
    from watchrank.feature_store import USER_TABLES, VIDEO_TABLES  # Feast is slow to import

    labels = _labels(impressions)
    with (
        ColumnWriter(folder / "requests", _request_columns()) as requests,
        ColumnWriter(folder / "impressions", _impression_columns(labels)) as examples,
    ):
        for days in _batches(rows_of):
            rows = _read(impressions, days)
            keys, request = _requests(rows)
            own = {name: rows[name] for name in ("video_id", "timestamp_us", "candidate_source", *labels)}
            own["request"] = requests.rows + request
            videos, users = _entities(rows, "video_id"), _entities(keys, "user_id")
            _append(examples, own, store, VIDEO_TABLES, videos, BLOCK_IMPRESSIONS)
            now = keys["timestamp_us"] // 1_000_000
            asked = {"user_id": keys["user_id"], "now": now, "surface": keys["surface"]}
            _append(requests, asked, store, USER_TABLES, users, BLOCK_REQUESTS)
    assert examples.rows == sum(rows_of.values()), "impressions were lost"
    return {
        "from": str(min(rows_of)) if rows_of else None,
        "until": str(max(rows_of)) if rows_of else None,
        "rows": examples.rows,
        "requests": requests.rows,
        "checksum": f"{requests.checksum:08x}{examples.checksum:08x}",
    }


def _append(
    writer: ColumnWriter,
    own: Columns,
    store: "FeatureStore",
    tables: Sequence[Table],
    entities: pd.DataFrame,
    block: int,
) -> None:
    """Write rows with the features of their entities as of their time."""
    from watchrank.feature_store import historical_blocks

    start = 0
    for features in historical_blocks(store, tables, entities, block):
        end = start + len(next(iter(features.values())))
        writer.append({name: column[start:end] for name, column in own.items()} | features)
        start = end


def _request_columns() -> Columns:
    return {"user_id": np.empty(0, np.int64), **_empty((*REQUEST_TENSORS, *USER_TENSORS))}


def _impression_columns(labels: Mapping[str, type[np.generic]]) -> Columns:
    own = {"request": np.int64, "timestamp_us": np.int64, **labels}
    return {
        **{name: np.empty(0, kind) for name, kind in own.items()},
        **_empty((*VIDEO_TENSORS, *IMPRESSION_TENSORS)),
    }


def _empty(tensors: Sequence[Tensor]) -> Columns:
    """Columns of no rows; a tensor of one value a row has one dimension."""
    shapes = {tensor.name: tensor.dims if tensor.dims[0] > 1 else () for tensor in tensors}
    return {tensor.name: np.empty((0, *shapes[tensor.name]), tensor.dtype) for tensor in tensors}


def _entities(columns: Columns, key: str) -> pd.DataFrame:
    times = pd.DatetimeIndex(columns["timestamp_us"].view("datetime64[us]")).tz_localize("UTC")
    return pd.DataFrame({key: columns[key], EVENT_TIMESTAMP: times})
