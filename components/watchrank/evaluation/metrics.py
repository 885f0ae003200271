"""Metrics of watch-time ranking; every function takes arrays of N impressions."""

import numpy as np
from scipy import stats


def per_user_loss(user_ids: np.ndarray, scores: np.ndarray, watch_seconds: np.ndarray) -> float:
    """Weighted, per-user loss: mispredicted / total watch time over pairs of a user's impressions.

    A pair is a watched and an unwatched impression of one user; it is mispredicted if the unwatched one
    scores higher (a tie counts half), and weighs the watched one's seconds. Covington et al. 2016,
    section 4.3. NaN when no user has such a pair.
    """
    unique, user = np.unique(user_ids, return_inverse=True)
    lost, total = (part.sum() for part in per_user_pairs(user, len(unique), scores, watch_seconds))
    return float(lost / total) if total else float("nan")


def per_user_pairs(
    user: np.ndarray, users: int, scores: np.ndarray, watch_seconds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mispredicted and the total watch time over the pairs of each user [U], as above.

    Args:
        user: of each impression, 0 to `users` - 1 [N].
        users: U.
        scores: of the impressions [N].
        watch_seconds: of the impressions [N].
    """
    _, rank = np.unique(scores, return_inverse=True)
    ranks = int(rank.max(initial=0)) + 1
    key = user.astype(np.int64) * ranks + rank
    watched = watch_seconds > 0
    negatives = np.sort(key[~watched])
    start = np.searchsorted(negatives, np.arange(users + 1) * ranks)
    positives, owner, seconds = key[watched], user[watched], watch_seconds[watched].astype(np.float64)
    unwatched = start[owner + 1] - start[owner]
    higher = start[owner + 1] - np.searchsorted(negatives, positives, side="right")
    not_lower = start[owner + 1] - np.searchsorted(negatives, positives, side="left")
    lost = np.bincount(owner, seconds * (higher + not_lower) / 2, minlength=users)
    return lost, np.bincount(owner, seconds * unwatched, minlength=users)


def xauc(scores: np.ndarray, watch_seconds: np.ndarray) -> float:
    """Share of pairs of impressions that the scores order as their watch times do; a tied score is half.

    Zhan et al. 2022 (D2Q). From Kendall's tau-b, so in N log N. NaN when all watch times are equal.
    """
    tau = stats.kendalltau(scores, watch_seconds).statistic
    pairs, score_ties, time_ties = (
        _pairs(np.array([len(scores)])),
        _pairs(np.unique(scores, return_counts=True)[1]),
        _pairs(np.unique(watch_seconds, return_counts=True)[1]),
    )
    if pairs == time_ties:
        return float("nan")
    if pairs == score_ties:
        return 0.5
    difference = tau * np.sqrt(pairs - score_ties) * np.sqrt(pairs - time_ties)
    return float(0.5 + 0.5 * difference / (pairs - time_ties))


def _pairs(counts: np.ndarray) -> float:
    sizes = counts.astype(np.float64)
    return float(np.sum(sizes * (sizes - 1) / 2))


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of `positive` (bool) by `scores`; NaN when there is one class only."""
    positive = positive.astype(bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    rank_sum = float(stats.rankdata(scores)[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def roc_curve(scores: np.ndarray, positive: np.ndarray, points: int = 100) -> np.ndarray:
    """Return the ROC curve of `positive` (bool) by `scores` [points + 1, 3], from the highest threshold on.

    A row is the false and the true positive rate of answering "positive" from a score on, and that score;
    the first is (0, 0) above all scores. No rows when there is one class only.
    """
    positive = positive.astype(bool)
    if positive.all() or not positive.any():
        return np.empty((0, 3))
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(positive[order])
    last = np.unique([*np.flatnonzero(np.diff(ordered)), len(ordered) - 1])
    last = last[np.unique(np.linspace(0, len(last) - 1, points).astype(np.int64))]
    found, misses = hits[last], last + 1 - hits[last]
    rates = np.column_stack([misses / misses[-1], found / found[-1], ordered[last]])
    return np.vstack([[0.0, 0.0, np.nextafter(ordered[0], np.inf)], rates])


def log_loss(predicted: np.ndarray, positive: np.ndarray) -> float:
    """Mean negative log-likelihood of `positive` (1 or 0) under the predicted probabilities; NaN of none."""
    if not len(predicted):
        return float("nan")
    return float(np.mean(log_losses(predicted, positive), dtype=np.float64))


def log_losses(predicted: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Negative log-likelihood of each `positive` (1 or 0) under the predicted probabilities [N]."""
    p = np.clip(predicted, 1e-12, 1 - 1e-12)
    losses: np.ndarray = -(positive * np.log(p) + (1 - positive) * np.log1p(-p))
    return losses


def mae(predicted: np.ndarray, watch_seconds: np.ndarray) -> float:
    """Mean absolute error in seconds."""
    return float(np.mean(np.abs(predicted - watch_seconds), dtype=np.float64))


def rmse(predicted: np.ndarray, watch_seconds: np.ndarray) -> float:
    """Root of the mean squared error in seconds."""
    return float(np.sqrt(np.mean((predicted - watch_seconds) ** 2, dtype=np.float64)))


def sum_ratio(predicted: np.ndarray, watch_seconds: np.ndarray) -> float:
    """Calibration: sum of predictions / sum of watch time; 1 is right. NaN when nothing was watched."""
    total = float(np.sum(watch_seconds, dtype=np.float64))
    return float(np.sum(predicted, dtype=np.float64)) / total if total else float("nan")


def deciles(predicted: np.ndarray) -> np.ndarray:
    """Return the decile 0..9 of each prediction: ten groups of equal size, in order."""
    order = np.argsort(predicted, kind="stable")
    decile = np.empty(len(predicted), dtype=np.int64)
    decile[order] = np.arange(len(predicted)) * 10 // max(len(predicted), 1)
    return decile
