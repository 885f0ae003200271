"""The table of logged requests: what the ranker was given for a request and what it answered.

A row has `user_id`, `timestamp` (UTC, microseconds), `release`, the request and user features under their
names of `schema` (lists padded, as they were sent), and the answer: `video_ids` in their order,
`expected_watch_seconds` and `candidate_scores` of the same length.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from watchrank.datasets.columns import Columns
from watchrank.errors import InputError
from watchrank.schema import REQUEST_TENSORS, USER_TENSORS, Tensor

if TYPE_CHECKING:
    from watchrank.serving.question import Recommendation

FEATURES = (*REQUEST_TENSORS, *USER_TENSORS)

_KINDS = {"int64": pa.int64(), "float32": pa.float32()}
_IDS, _SCORES = pa.list_(pa.int64()), pa.list_(pa.float32())


def _is_list(tensor: Tensor) -> bool:
    return tensor.dims[0] > 1


def _kind(tensor: Tensor) -> pa.DataType:
    return pa.list_(_KINDS[tensor.dtype]) if _is_list(tensor) else _KINDS[tensor.dtype]


SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("release", pa.int64()),
        *((tensor.name, _kind(tensor)) for tensor in FEATURES),
        ("video_ids", _IDS),
        ("expected_watch_seconds", _SCORES),
        ("candidate_scores", _SCORES),
    ]
)


def check_request(request: Mapping[str, np.ndarray], rows: int) -> None:
    """Check that n requests, `rows`, have every request and user feature.

    Raises:
        InputError: a feature is missing or has another shape than [n, *dims].
    """
    for tensor in FEATURES:
        shape = request[tensor.name].shape if tensor.name in request else None
        if shape != (rows, *tensor.dims):
            raise InputError(
                f"The request log got {tensor.name!r} of shape {shape}; give {(rows, *tensor.dims)}."
            )


def request_rows(
    request: Mapping[str, np.ndarray], answers: Sequence["Recommendation"], timestamp: datetime
) -> pa.Table:
    """Return n requests as rows of `SCHEMA`.

    Args:
        request: request and user features, each [n, *dims]; others are left out.
        answers: the n answers.
        timestamp: time of the requests, with a time zone.
    """
    columns = {
        "user_id": [answer.user_id for answer in answers],
        "timestamp": [timestamp] * len(answers),
        "release": [answer.release for answer in answers],
        **{tensor.name: _feature(tensor, request[tensor.name]) for tensor in FEATURES},
        "video_ids": [answer.video_ids for answer in answers],
        "expected_watch_seconds": [answer.expected_watch_seconds for answer in answers],
        "candidate_scores": [answer.candidate_scores for answer in answers],
    }
    return pa.table(columns, SCHEMA)


def logged_features(rows: pa.Table) -> Columns:
    """Return the columns that `requests` of a `RankingDataset` has: [R] each, or [R, L] for a list."""
    from watchrank.feature_store import pad_lists  # Feast is slow to import

    columns: Columns = {"user_id": rows["user_id"].to_numpy()}
    for tensor in FEATURES:
        values = rows[tensor.name]
        columns[tensor.name] = pad_lists(values, tensor.dims[0]) if _is_list(tensor) else values.to_numpy()
    return columns


def _feature(tensor: Tensor, values: np.ndarray) -> pa.Array:
    flat = pa.array(values.ravel(), _KINDS[tensor.dtype])
    if not _is_list(tensor):
        return flat
    offsets = pa.array(np.arange(len(values) + 1) * tensor.dims[0], pa.int32())
    return pa.ListArray.from_arrays(offsets, flat)
