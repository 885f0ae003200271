"""Skew between training and serving: each feature as the offline store gives it, beside the online store."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from watchrank.errors import InputError
from watchrank.evaluation.drift_samples import is_number
from watchrank.evaluation.page import write_page
from watchrank.features.files import file_of
from watchrank.schema import EVENT_TIMESTAMP, PAD_ID, USER_TENSORS, VIDEO_TENSORS, Table, Tensor
from watchrank.storage import atomic_path, write_json

if TYPE_CHECKING:
    from feast import FeatureStore

BATCH = 5_000
"""Entities that are read at once."""

Pair = tuple[np.ndarray, np.ndarray]
"""A feature of n entities, offline and online, [n, *dims] each."""


def skew_report(
    store: "FeatureStore", users: Sequence[int], videos: Sequence[int], at: datetime | None, output: Path
) -> dict[str, Any]:
    """Compare offline and online features and write `skew.json` and `skew.html`.

    Args:
        store: opened by `feature_store.open_store`, materialised.
        users: the users to compare; `sampled_ids` draws some. `PAD_ID`, of whom nothing is known, is added.
        videos: the videos to compare, likewise.
        at: the time of the offline features, with a time zone; None for the time of the materialisation, at
            which any difference is a fault. At a later time the differences are what the online store lacks.
        output: folder for the results; replaced as a whole.

    Returns:
        What `skew.json` holds: `at`; `materialised`, the time of each feature table; `differing`, the names
        of features; and `features`, the least equal first, each with its entity `key`, `rows` compared,
        `share_equal` (NaN equals NaN; a list is equal as a whole), `largest_difference` of numbers (None for
        ids) and, where it differs, an `example`: entity, place in a list, offline and online value.

    Raises:
        InputError: nothing was materialised, or at `at` None not all tables to the same time.
    """
    from watchrank.feature_store import (  # Feast is slow to import
        USER_TABLES,
        VIDEO_TABLES,
        online_user_features,
        online_video_features,
    )

    materialised = _materialised(store)
    time = at or _one_time(materialised)
    features = [
        *_compared(store, USER_TABLES, USER_TENSORS, online_user_features, users, time),
        *_compared(store, VIDEO_TABLES, VIDEO_TENSORS[1:], online_video_features, videos, time),
    ]
    results = {
        "at": time.astimezone(UTC).isoformat(),
        "materialised": {name: until.isoformat() for name, until in materialised.items()},
        "differing": sorted(row["name"] for row in features if row["share_equal"] < 1),
        "features": sorted(features, key=lambda row: float(row["share_equal"])),
    }
    with atomic_path(output) as fresh:
        fresh.mkdir()
        write_json(fresh / "skew.json", results)
        write_page(fresh / "skew.html", "skew.html.j2", **results)
    return results


def sampled_ids(features: Path, table: Table, rows: int, seed: int = 0) -> list[int]:
    """Draw the ids of at most `rows` entities of a profile table: `schema.USER_PROFILE` or `VIDEO_PROFILE`.

    An entity counts once, however often its profile was corrected.

    Args:
        features: folder that `features.build_features` wrote.
        table: the profile table.
        rows: how many.
        seed: of the draw.
    """
    key = table.key[0]
    ids = np.unique(pq.read_table(file_of(features, table), columns=[key])[key].to_numpy())
    drawn: list[int] = np.random.default_rng(seed).permutation(ids)[:rows].tolist()
    return drawn


def _materialised(store: "FeatureStore") -> dict[str, datetime]:
    views = {view.name: view.most_recent_end_time for view in store.list_feature_views()}
    missing = sorted(name for name, until in views.items() if until is None)
    if missing:
        raise InputError(
            f"The feature tables {', '.join(missing)} are not in the online store; materialise them first."
        )
    return {name: until.astimezone(UTC) for name, until in sorted(views.items())}


def _one_time(materialised: Mapping[str, datetime]) -> datetime:
    if len(set(materialised.values())) > 1:
        raise InputError(
            f"The feature tables were materialised to different times ({materialised}); name a time."
        )
    return next(iter(materialised.values()))


def _compared(
    store: "FeatureStore",
    tables: Sequence[Table],
    tensors: Sequence[Tensor],
    online: Callable[["FeatureStore", Sequence[int]], dict[str, np.ndarray]],
    entities: Sequence[int],
    at: datetime,
) -> list[dict[str, Any]]:
    """Compare the features of one kind of entity, `BATCH` of them at once."""
    from watchrank.feature_store import historical_features

    key = tables[0].key[0]
    counts = [_Count(key, tensor) for tensor in tensors]
    for ids in _batches([*dict.fromkeys(entities), PAD_ID]):
        times = pd.DatetimeIndex([at] * len(ids)).as_unit("us")
        past = historical_features(store, tables, pd.DataFrame({key: ids, EVENT_TIMESTAMP: times}))
        present = online(store, ids)
        for count in counts:
            name = count.tensor.name
            count.add(ids, past[name], present[name].reshape(past[name].shape))
    return [count.result() for count in counts]


def _batches(entities: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(entities), BATCH):
        yield list(entities[start : start + BATCH])


class _Count:
    """Counts over batches how far one feature is the same."""

    def __init__(self, key: str, tensor: Tensor) -> None:
        self.key, self.tensor = key, tensor
        self.rows = self.equal = 0
        self.largest: float | None = None
        self.example: dict[str, Any] | None = None

    def add(self, ids: Sequence[int], offline: np.ndarray, online: np.ndarray) -> None:
        """Compare a feature of some entities, [n] or [n, L] on both sides."""
        offline, online = offline.reshape(len(ids), -1), online.reshape(len(ids), -1)
        same = (offline == online) | ((offline != offline) & (online != online))
        equal = same.all(axis=1)
        self.rows += len(ids)
        self.equal += int(equal.sum())
        if equal.all():
            return
        if is_number(self.tensor):
            gaps = np.abs(offline.astype(np.float64) - online.astype(np.float64))
            finite = gaps[np.isfinite(gaps)]
            self.largest = max(self.largest or 0.0, float(finite.max(initial=0)))
        if self.example is None:
            row = int(np.argmin(equal))
            place = int(np.argmin(same[row]))
            self.example = {
                "entity": ids[row],
                "place": place if offline.shape[1] > 1 else None,
                "offline": _plain(offline[row, place]),
                "online": _plain(online[row, place]),
            }

    def result(self) -> dict[str, Any]:
        """Return what the report tells of the feature."""
        return {
            "name": self.tensor.name,
            "key": self.key,
            "rows": self.rows,
            "share_equal": self.equal / self.rows,
            "largest_difference": self.largest if self.example else (0.0 if is_number(self.tensor) else None),
            "example": self.example,
        }


def _plain(value: np.generic) -> float | int | None:
    """Return a number that JSON has; None for NaN."""
    plain: float | int = value.item()
    return None if plain != plain else plain
