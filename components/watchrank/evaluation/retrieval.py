"""Metrics of candidate generation: the whole catalogue is ranked for each user; nothing is sampled.

Each test row has one target, the watch that was held out. The videos that its user has seen (in
`watches`, or among the row's `watched_video_ids`) are no candidates. A target that was seen before stays
a target and so stays a candidate: it alone is dropped from the seen videos. A target outside the
catalogue cannot be found: its rank is infinite.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

RECALL_AT = (10, 50, 100, 200)
NDCG_AT = (10, 100)
TOP = 100
"""Recommendations a user that coverage and novelty look at."""

SCORES_AT_ONCE = 8_000_000
"""Scores that are held at once, which bounds memory to about 200 MB; at least one user's."""

Columns = Mapping[str, np.ndarray]
Scorer = Callable[[slice], np.ndarray]
"""Rows of the test split -> finite scores [rows, N] float32 of the catalogue, in its order."""


class CandidateData(Protocol):
    """What evaluation and the baselines read of a candidate dataset."""

    @property
    def videos(self) -> Columns:
        """The catalogue: `video_id` [N], sorted, and other columns [N]."""

    @property
    def watches(self) -> Columns:
        """The watches to learn from: `user_id`, `video_id`, `timestamp_us` [M], by user and time."""

    @property
    def users(self) -> Columns:
        """`user_id` [U], sorted, `user_language` and `country` [U], -1 where unknown."""

    def split(self, name: str) -> Columns:
        """A row a user: `user_id`, `video_id`, the target, [T], `watched_video_ids` [T, 50], newest first."""


class Retrieval(NamedTuple):
    """The metrics by name, and the target's rank in each test row [T] for statistics."""

    metrics: dict[str, float]
    ranks: np.ndarray


def evaluate_retrieval(dataset: CandidateData, scorer: Scorer) -> Retrieval:
    """Rank the catalogue for every test row by `scorer`.

    Returns:
        `recall@K`, `ndcg@K`, `map` (the target's mean reciprocal rank over the full ranking), `coverage@100`
        (share of the catalogue in any user's first 100) and `novelty@100` (mean bits of surprise, -log2 of a
        recommended video's share of the watches; a video without a watch counts as if it had one); and the
        ranks [T]. A tie gives the mean of its ranks, so that equal scores bring no luck.

    Raises:
        ValueError: there are no rows or no videos, or the scores have a wrong shape or are not finite.
    """
    test, watches, catalogue = dataset.split("test"), dataset.watches, dataset.videos["video_id"]
    if not len(test["user_id"]) or not len(catalogue):
        raise ValueError("The test split has no rows, or the catalogue no videos: check the dataset.")
    target = positions(catalogue, test["video_id"])
    ranks, recommended = np.empty(len(target)), np.zeros(len(catalogue), dtype=np.int64)
    for rows in _chunks(len(target), len(catalogue)):
        scores = _scores(scorer, rows, (rows.stop - rows.start, len(catalogue)))
        row, seen = _seen(watches, test["user_id"][rows], test["watched_video_ids"][rows])
        _exclude(scores, row, positions(catalogue, seen), target[rows])
        ranks[rows] = mean_ranks(scores, target[rows])
        recommended += np.bincount(_top(scores), minlength=len(catalogue))
    return Retrieval(rank_metrics(ranks) | list_metrics(recommended, watch_counts(dataset)), ranks)


def positions(sorted_ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where each of `wanted` stands in `sorted_ids`, or -1, in the shape of `wanted`."""
    if not len(sorted_ids):
        return np.full(np.shape(wanted), -1)
    place = np.searchsorted(sorted_ids, wanted).clip(max=len(sorted_ids) - 1)
    found: np.ndarray = np.where(sorted_ids[place] == wanted, place, -1)
    return found


def watch_counts(dataset: CandidateData) -> np.ndarray:
    """Return the number of watches of each video of the catalogue [N]."""
    place = positions(dataset.videos["video_id"], dataset.watches["video_id"])
    return np.bincount(place[place >= 0], minlength=len(dataset.videos["video_id"]))


def mean_ranks(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the rank [B], from 1, of each row's target [B] among its scores [B, N]; infinite where it is -1.

    A score of -inf is no candidate. Equal scores share the mean of their ranks.
    """
    own = np.take_along_axis(scores, target.clip(min=0)[:, None], axis=1)
    higher, equal = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
    ranks: np.ndarray = np.where(target >= 0, 1 + higher + (equal - 1) / 2, np.inf)
    return ranks


def rank_metrics(ranks: np.ndarray) -> dict[str, float]:
    """Return recall, MAP and NDCG from the rank of each row's one target [T]."""
    recall = {f"recall@{k}": float(np.mean(ranks <= k)) for k in RECALL_AT}
    gain = 1 / np.log2(1 + ranks)
    ndcg = {f"ndcg@{k}": float(np.mean(np.where(ranks <= k, gain, 0.0))) for k in NDCG_AT}
    return recall | {"map": float(np.mean(1 / ranks))} | ndcg


def list_metrics(recommended: np.ndarray, watches: np.ndarray) -> dict[str, float]:
    """Return coverage and novelty from how often each video was recommended [N] and watched [N]."""
    share = np.maximum(watches, 1) / max(int(watches.sum()), 1)
    surprise = float(recommended @ -np.log2(share)) / max(int(recommended.sum()), 1)
    return {f"coverage@{TOP}": float(np.mean(recommended > 0)), f"novelty@{TOP}": surprise}


# -- One chunk of rows ----------------------------------------------------------------------------------


def _chunks(rows: int, videos: int) -> Iterator[slice]:
    size = max(SCORES_AT_ONCE // max(videos, 1), 1)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _scores(scorer: Scorer, rows: slice, shape: tuple[int, int]) -> np.ndarray:
    """Return a copy of the scores [B, N] that may be written to."""
    scores = np.array(scorer(rows), dtype=np.float32)
    if scores.shape != shape:
        raise ValueError(f"The scorer answered {scores.shape} for test rows {rows}: {shape} is expected.")
    if not np.isfinite(scores).all():
        raise ValueError(f"The scorer's answer for test rows {rows} has NaN or infinite scores.")
    return scores


def _seen(watches: Columns, users: np.ndarray, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of a row and a video that it has seen, from `users` [B] and their `history` [B, H]."""
    row, watch = _watches_of(watches["user_id"], users)
    rows = np.concatenate([row, np.repeat(np.arange(len(history)), history.shape[1])])
    return rows, np.concatenate([watches["video_id"][watch], history.ravel()])


def _exclude(scores: np.ndarray, row: np.ndarray, video: np.ndarray, target: np.ndarray) -> None:
    """Set the scores [B, N] of the pairs of `row` and `video` to -inf, but never those of the targets [B]."""
    excluded = (video >= 0) & (video != target[row])
    scores[row[excluded], video[excluded]] = -np.inf


def _watches_of(watch_users: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of a row of `users` [B] and an index into `watch_users` [M], sorted, of that user."""
    start, end = (np.searchsorted(watch_users, users, side=side) for side in ("left", "right"))
    row = np.repeat(np.arange(len(users)), end - start)
    first = np.cumsum(end - start) - (end - start)
    return row, np.arange(len(row)) - first[row] + start[row]


def _top(scores: np.ndarray) -> np.ndarray:
    """Return the catalogue positions of the first `TOP` candidates of all rows [at most B * TOP]."""
    k = min(TOP, scores.shape[1])
    best = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k :]
    top: np.ndarray = best[np.take_along_axis(scores, best, axis=1) > -np.inf]
    return top
