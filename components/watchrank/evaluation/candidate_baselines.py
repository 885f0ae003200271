"""Candidate generation without a model: one that does not beat these is not worth serving.

Each function learns from a dataset's watches and returns the scorer of its test rows.
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse

from watchrank.evaluation.retrieval import CandidateData, Scorer, positions, watch_counts

PRIOR_WATCHES = 1_000.0
LAST_ITEMS = 5

SIMILARITIES_KEPT = 50_000_000
"""Item-item similarities that are held, in 400 MB; past that each video keeps its strongest ones."""

SIMILARITIES_AT_ONCE = 8_000_000
"""Similarities that are worked on at once."""


def popularity(dataset: CandidateData) -> Scorer:
    """Score a video by its share of the watches."""
    share = _overall_share(dataset).astype(np.float32)
    users = dataset.split("test")["user_id"]
    return lambda rows: np.broadcast_to(share, (len(users[rows]), len(share)))


def segment_popularity(dataset: CandidateData) -> Scorer:
    """Score a video by its smoothed share of the watches among users of the same language and country.

    A segment's shares are drawn to the overall ones as if it had `PRIOR_WATCHES` more average watches. An
    unknown language or country is a value of its own.
    """
    overall = _overall_share(dataset)
    segment_of = _segments(dataset)
    segment, video = _known(dataset, segment_of(dataset.watches["user_id"]))
    of_row = segment_of(dataset.split("test")["user_id"])
    shape = (int(max(segment.max(initial=0), of_row.max(initial=0))) + 1, len(overall))
    counts = sparse.csr_array((np.ones(len(segment)), (segment, video)), shape=shape)
    total = counts.sum(axis=1)

    def score(rows: slice) -> np.ndarray:
        wanted = of_row[rows]
        smoothed = counts[wanted].toarray() + PRIOR_WATCHES * overall
        share: np.ndarray = (smoothed / (total[wanted, None] + PRIOR_WATCHES)).astype(np.float32)
        return share

    return score


def last_items_knn(dataset: CandidateData) -> Scorer:
    """Score a video by its cosine similarity to the user's last `LAST_ITEMS` videos, summed.

    The similarity of two videos is the cosine of their columns in the user-video matrix of the watches,
    where a user's repeated watches of a video count once.
    """
    similarity = item_similarity(user_video_matrix(dataset)[1])
    catalogue = dataset.videos["video_id"]
    last = dataset.split("test")["watched_video_ids"][:, :LAST_ITEMS]

    def score(rows: slice) -> np.ndarray:
        video = positions(catalogue, last[rows])
        row, column = np.nonzero(video >= 0)
        query = sparse.csr_array(
            (np.ones(len(row), np.float32), (row, video[row, column])), (len(video), similarity.shape[0])
        )
        scores: np.ndarray = (query @ similarity).toarray()
        return scores

    return score


BASELINES: dict[str, Callable[[CandidateData], Scorer]] = {
    "popularity": popularity,
    "segment_popularity": segment_popularity,
    "last_items_knn": last_items_knn,
}


def user_video_matrix(dataset: CandidateData) -> tuple[np.ndarray, sparse.csr_array]:
    """Return the users with watches [V], sorted, and how often each watched each video [V, N] float32."""
    users, user = np.unique(dataset.watches["user_id"], return_inverse=True)
    user, video = _known(dataset, user)
    shape = (len(users), len(dataset.videos["video_id"]))
    return users, sparse.csr_array((np.ones(len(user), np.float32), (user, video)), shape=shape)


def item_similarity(watched: sparse.csr_array) -> sparse.csr_array:
    """Return the cosine of the columns of `watched > 0` [V, N] as [N, N] float32.

    Every similarity is kept while `SIMILARITIES_KEPT` allow it, else the strongest of each video.
    """
    videos = watched.shape[1]
    watched = (watched > 0).astype(np.float32)
    viewers = np.maximum(watched.sum(axis=0), 1)
    unit = (watched @ sparse.diags_array(1 / np.sqrt(viewers), dtype=np.float32)).tocsr()
    by_video = unit.T.tocsr()
    kept, block = (max(limit // max(videos, 1), 1) for limit in (SIMILARITIES_KEPT, SIMILARITIES_AT_ONCE))
    blocks = [_strongest(by_video[start : start + block] @ unit, kept) for start in range(0, videos, block)]
    return sparse.vstack(blocks, format="csr")


def _strongest(similarity: sparse.csr_array, kept: int) -> sparse.csr_array:
    """Keep the `kept` largest of each row [B, N]."""
    if np.diff(similarity.indptr).max(initial=0) <= kept:
        return similarity
    dense = similarity.toarray()
    column = np.argpartition(dense, dense.shape[1] - kept, axis=1)[:, dense.shape[1] - kept :]
    row = np.repeat(np.arange(len(dense)), kept)
    pruned = sparse.csr_array((dense[row, column.ravel()], (row, column.ravel())), shape=dense.shape)
    pruned.eliminate_zeros()
    return pruned


def _overall_share(dataset: CandidateData) -> np.ndarray:
    counts = watch_counts(dataset)
    share: np.ndarray = counts / max(int(counts.sum()), 1)
    return share


def _segments(dataset: CandidateData) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from user ids [B] to their segments [B]; who is not in `users` is unknown."""
    users = dataset.users
    pairs = np.column_stack([np.append(users[name], -1) for name in ("user_language", "country")])
    segment = np.unique(pairs, axis=0, return_inverse=True)[1].ravel()
    return lambda user_ids: segment[positions(users["user_id"], user_ids)]


def _known(dataset: CandidateData, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `owner` and the catalogue position of each watch [M] whose video is in the catalogue."""
    video = positions(dataset.videos["video_id"], dataset.watches["video_id"])
    return owner[video >= 0], video[video >= 0]
