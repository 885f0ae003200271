"""Baselines that stand beside every ranker: a model that does not beat them is not worth serving."""

import numpy as np

from watchrank.datasets.ranking import Split

PRIOR_IMPRESSIONS = 20.0


def global_mean(train: Split, test: Split) -> np.ndarray:
    """Predict the mean watch time of the training window [N], in seconds."""
    mean = np.mean(train.impressions["watch_seconds"], dtype=np.float64)
    return np.full(len(test), mean)


def video_mean(train: Split, test: Split) -> np.ndarray:
    """Predict each video's smoothed mean watch time in the training window [N], in seconds.

    A video's mean is drawn to the global one as if it had `PRIOR_IMPRESSIONS` more average impressions;
    a video that was never shown has the global mean.
    """
    seconds = np.asarray(train.impressions["watch_seconds"], dtype=np.float64)
    overall = seconds.mean()
    ids, inverse = np.unique(train.impressions["video_id"], return_inverse=True)
    total, shown = np.bincount(inverse, seconds), np.bincount(inverse)
    means = (total + PRIOR_IMPRESSIONS * overall) / (shown + PRIOR_IMPRESSIONS)
    place = np.searchsorted(ids, test.impressions["video_id"]).clip(max=len(ids) - 1)
    predicted: np.ndarray = np.where(ids[place] == test.impressions["video_id"], means[place], overall)
    return predicted
