"""Baselines that stand beside every ranker: a model that does not beat them is not worth serving."""

import numpy as np

from watchrank.datasets.ranking import Split

PRIOR_IMPRESSIONS = 20.0


def global_mean(train: Split, test: Split, label: str = "watch_seconds") -> np.ndarray:
    """Predict the mean label of the training window [N]: of watch time, seconds; of a click, its rate.

    As everywhere, a label below 0 is unknown; NaN when all are.
    """
    return np.full(len(test), _mean(_known(train, label)[0]))


def video_mean(train: Split, test: Split, label: str = "watch_seconds") -> np.ndarray:
    """Predict each video's smoothed mean label in the training window [N].

    A video's mean is drawn to the global one as if it had `PRIOR_IMPRESSIONS` more average impressions;
    a video that was never shown has the global mean.
    """
    values, videos = _known(train, label)
    overall = _mean(values)
    if not len(values):
        return np.full(len(test), overall)
    ids, inverse = np.unique(videos, return_inverse=True)
    total, shown = np.bincount(inverse, values), np.bincount(inverse)
    means = (total + PRIOR_IMPRESSIONS * overall) / (shown + PRIOR_IMPRESSIONS)
    place = np.searchsorted(ids, test.impressions["video_id"]).clip(max=len(ids) - 1)
    predicted: np.ndarray = np.where(ids[place] == test.impressions["video_id"], means[place], overall)
    return predicted


def _known(train: Split, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the known labels and the videos that have them."""
    values = np.asarray(train.impressions[label], dtype=np.float64)
    return values[values >= 0], np.asarray(train.impressions["video_id"])[values >= 0]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
