"""Metrics with what chance does to them: the bootstrap over users.

A user's impressions depend on each other, so users are drawn, with replacement, each with all of their
impressions (Field, Welsh: Bootstrapping clustered data, JRSS B 2007). What is drawn is how often each user
counts [R, U]. Every metric here is exact under such counts: it needs no copy of the impressions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from watchrank.evaluation import metrics

COUNTS_AT_ONCE = 4_000_000
"""Counts of users that are held at once, in 32 MB; at least one resample's."""

PLACES_AT_ONCE = 500_000
"""Places of the ranking, times resamples, that are weighed at once, in 4 MB an array."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""How often each user counts, in R resamples [R, U] float64, to a metric of each resample [R]."""


def bootstrap(
    statistics: Sequence[Statistic], users: int, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the metrics [S] of the users as they are, and of `resamples` resamples of them [R, S].

    All metrics see the same resamples, so that differences of the columns are paired.

    Args:
        statistics: the metrics, S of them.
        users: U, how many users there are.
        resamples: R.
        seed: of the drawing.
    """
    drawn = [_columns(statistics, counts) for counts in _draws(users, resamples, seed)]
    return _columns(statistics, np.ones((1, users)))[0], np.concatenate(drawn)


@dataclass(frozen=True, eq=False)
class RatioOfSums:
    """A metric that is made of a sum over a sum, from what each user adds to the two [U, 2]."""

    sums: np.ndarray
    then: Callable[[np.ndarray], np.ndarray] = field(default=np.asarray)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Return the metric [R]; NaN where the lower sum is 0."""
        upper, lower = (counts @ self.sums).T
        return self.then(np.divide(upper, lower, out=np.full(len(upper), np.nan), where=lower != 0))


class AreaUnderCurve:
    """The area under the ROC curve of N impressions: sorted once, then weighed by the counts."""

    def __init__(self, user: np.ndarray, users: int, scores: np.ndarray, positive: np.ndarray) -> None:
        """Sort the impressions: of users `user` [N], with `scores` [N], `positive` [N] or not."""
        place = _places(scores, positive > 0)
        self.positive, self.negative = (
            sparse.csr_array((np.ones(len(rows)), (place[rows], user[rows])), shape=(place.max() + 1, users))
            for rows in (np.flatnonzero(positive), np.flatnonzero(positive == 0))
        )

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Return the area [R]; NaN where there is one class only."""
        of_users = np.ascontiguousarray(counts.T)
        positives, below, right = np.zeros((3, len(counts)))
        size = max(PLACES_AT_ONCE // len(counts), 1)
        for start in range(0, self.positive.shape[0], size):
            positive, negative = (
                side[start : start + size] @ of_users for side in (self.positive, self.negative)
            )  # [places, R]
            not_above = np.cumsum(negative, axis=0) + below
            right += np.einsum("pr,pr->r", positive, not_above - negative / 2)
            positives, below = positives + positive.sum(axis=0), not_above[-1]
        pairs = positives * below
        area: np.ndarray = np.divide(right, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)
        return area


def statistic(
    metric: str, user: np.ndarray, users: int, predicted: np.ndarray, label: np.ndarray
) -> Statistic:
    """Return a metric of N impressions that takes counts of users.

    Args:
        metric: per_user_loss, log_loss, auc, rmse, sum_ratio, or calibration_error, |ln sum_ratio|.
        user: of each impression, 0 to `users` - 1 [N].
        users: U.
        predicted: answers [N].
        label: what was observed [N].
    """

    def ratio(
        upper: np.ndarray, lower: np.ndarray, then: Callable[[np.ndarray], np.ndarray] = np.asarray
    ) -> RatioOfSums:
        sums = [np.bincount(user, values, minlength=users) for values in (upper, lower)]
        return RatioOfSums(np.stack(sums, axis=1), then)

    match metric:
        case "per_user_loss":
            pairs = metrics.per_user_pairs(user, users, predicted, label)
            return RatioOfSums(np.stack(pairs, axis=1))
        case "log_loss":
            return ratio(metrics.log_losses(predicted, label), np.ones(len(label)))
        case "auc":
            return AreaUnderCurve(user, users, predicted, label)
        case "rmse":
            return ratio((predicted - label) ** 2, np.ones(len(label)), np.sqrt)
        case "sum_ratio":
            return ratio(predicted, label)
        case "calibration_error":
            return ratio(predicted, label, lambda found: np.abs(np.log(np.maximum(found, 1e-12))))
    raise AssertionError(f"no such metric: {metric}")


def interval(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the middle `confidence` of what was drawn [R], NaN left out; NaN when all of it is."""
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _places(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the place of each impression [N] from below; ties share one, as do neighbours of one class."""
    ranked, rank = np.unique(scores, return_inverse=True)
    kind = np.zeros(len(ranked), dtype=np.int8)
    kind[rank[positive]] = 1
    kind[rank[~positive]] += 2
    alike = (kind[1:] == kind[:-1]) & (kind[1:] < 3)
    place: np.ndarray = np.concatenate([[0], np.cumsum(~alike)])[rank]
    return place


def _columns(statistics: Sequence[Statistic], counts: np.ndarray) -> np.ndarray:
    return np.column_stack([np.empty((len(counts), 0)), *(found(counts) for found in statistics)])


def _draws(users: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the counts of some resamples at a time [at most R, U]."""
    rng, size = np.random.default_rng(seed), max(COUNTS_AT_ONCE // max(users, 1), 1)
    for start in range(0, resamples, size):
        drawn = (rng.integers(users, size=users) for _ in range(min(size, resamples - start)))
        yield np.array([np.bincount(who, minlength=users) for who in drawn], dtype=np.float64)
