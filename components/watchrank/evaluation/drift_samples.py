"""Samples of the ranker's features, from a dataset or from what was served, each feature as one value a row.

A list stands for its length, a time for the seconds from it to the request.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from watchrank.datasets.columns import Columns
from watchrank.datasets.ranking import Split
from watchrank.schema import (
    PAD_ID,
    REQUEST_TENSORS,
    USER_STATISTICS,
    USER_TENSORS,
    VIDEO_STATISTICS,
    VIDEO_TENSORS,
    Tensor,
)
from watchrank.serving.request_log import read_log
from watchrank.serving.request_table import logged_features

Sample = dict[str, np.ndarray]
"""Feature to its values [N]: float64 with NaN where missing for a number, int64 with `PAD_ID` for an id."""

TIMES = ("signup_time", "upload_time")
LEFT_OUT = ("now",)
"""The time of the request differs between any two windows."""

COUNTS = frozenset(column.name for table in (USER_STATISTICS, VIDEO_STATISTICS) for column in table.columns)
READ_ROWS = 10_000
"""Rows of a list that are held at once."""


def split_sample(split: Split, rows: int, seed: int) -> Sample:
    """Draw at most `rows` requests and as many impressions of a split; an older dataset may lack features.

    Returns:
        Request and user features of the requests; video features, `clicked` and `watch_seconds` of the
        impressions.
    """
    random = np.random.default_rng(seed)
    requests = _drawn(random, len(split.requests["now"]), rows)
    impressions = _drawn(random, len(split), rows)
    now = split.requests["now"]
    at = now[split.impressions["request"][impressions]]
    return {
        **_values((*REQUEST_TENSORS, *USER_TENSORS), split.requests, requests, now[requests]),
        **_values(VIDEO_TENSORS, split.impressions, impressions, at),
        "clicked": split.impressions["clicked"][impressions].astype(np.int64),
        "watch_seconds": split.impressions["watch_seconds"][impressions].astype(np.float64),
    }


def log_sample(log: Path, rows: int, seed: int) -> Sample:
    """Draw at most `rows` requests of a request log: their request and user features.

    Raises:
        InputError: there is no log.
    """
    tensors = (*REQUEST_TENSORS, *USER_TENSORS)
    dataset = read_log(log)
    drawn = _drawn(np.random.default_rng(seed), dataset.count_rows(), rows)
    parts, start = [], 0
    columns = ["user_id", *(tensor.name for tensor in tensors)]
    for batch in dataset.to_batches(columns=columns, batch_size=READ_ROWS):
        here = drawn[(drawn >= start) & (drawn < start + len(batch))] - start
        start += len(batch)
        features = logged_features(pa.Table.from_batches([batch.take(pa.array(here))]))
        parts.append(_values(tensors, features, np.arange(len(here)), features["now"]))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def is_number(tensor: Tensor) -> bool:
    """Tell whether a feature's values are amounts; the others are ids."""
    return tensor.dtype == "float32" or tensor.name in {*COUNTS, *TIMES, "now", "watched_times"}


def _drawn(random: np.random.Generator, total: int, rows: int) -> np.ndarray:
    """Return the places of a sample of `total` rows, in order: one from each of `rows` equal stretches."""
    if total <= rows:
        return np.arange(total)
    return np.unique(((np.arange(rows) + random.random(rows)) * (total / rows)).astype(np.int64))


def _values(tensors: Sequence[Tensor], columns: Columns, rows: np.ndarray, now: np.ndarray) -> Sample:
    return {
        tensor.name: _value(tensor, columns[tensor.name], rows, now)
        for tensor in tensors
        if tensor.name not in LEFT_OUT and tensor.name in columns
    }


def _value(tensor: Tensor, column: np.ndarray, rows: np.ndarray, now: np.ndarray) -> np.ndarray:
    if column.ndim == 2:
        return _lengths(column, rows)
    values = column[rows]
    if tensor.name in TIMES:
        return np.asarray(np.where(values >= 0, now - values, np.nan))
    return np.asarray(values, np.float64 if is_number(tensor) else np.int64)


def _lengths(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Count the ids of each list, or what is not 0 of a list of numbers."""
    padding = 0 if column.dtype.kind == "f" else PAD_ID
    parts = np.array_split(rows, max(-(-len(rows) // READ_ROWS), 1))
    lengths = [np.count_nonzero(column[part] != padding, axis=1) for part in parts]
    return np.concatenate(lengths, dtype=np.float64)
