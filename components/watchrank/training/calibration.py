"""Calibration of expected watch time on a later window than the model was trained on.

Within each tenth of the answers, the ratio of observed to expected watch time says how far the model is
off there. A ratio that few watches stand behind is drawn to the overall one. Between the tenths the
correction is linear in the logit, and the order of the answers stays as it is.
"""

import numpy as np
import torch

from watchrank.models.calibration import KNOTS, Calibration

_PRIOR_WATCHES = 50.0
"""A tenth of this many equal watches is moved half way from the overall ratio to its own."""

_LEAST_RISE = 0.1
"""How much the calibrated logit rises at the least when the logit rises by 1: the order stays."""


def fit_calibration(calibration: Calibration, logits: np.ndarray, watch_seconds: np.ndarray) -> None:
    """Fit `calibration` to logits [N] and the watch times [N] observed in their place, in seconds.

    A window in which nothing was watched changes nothing.
    """
    z, seconds = logits.astype(np.float64), watch_seconds.astype(np.float64)
    if len(z) < KNOTS or not seconds.any():
        return
    tenths = np.array_split(np.argsort(z, kind="stable"), KNOTS)
    expected = np.exp(z)
    overall = np.log(seconds.sum() / expected.sum())
    evidence = np.array([_equal_watches(seconds[rows]) for rows in tenths])
    observed = np.array([seconds[rows].sum() for rows in tenths])
    predicted = np.array([expected[rows].sum() for rows in tenths])
    own = np.log(np.maximum(observed, 1e-9) / predicted)
    trust = evidence / (evidence + _PRIOR_WATCHES)
    correction = overall + trust * (own - overall)
    knots = np.array([np.log(expected[rows].mean()) for rows in tenths])
    width = np.maximum(np.diff(knots), 1e-6)
    slope = np.maximum(np.diff(correction) / width, _LEAST_RISE - 1)
    shift = _level(z, seconds, knots[:-1], width, slope)
    for name, value in {"shift": shift, "lower": knots[:-1], "width": width, "slope": slope}.items():
        getattr(calibration, name).copy_(torch.as_tensor(value, dtype=torch.float32))


def _equal_watches(seconds: np.ndarray) -> float:
    """Return how many watches of equal length would tell as much about the sum."""
    squares = float(np.square(seconds).sum())
    return float(seconds.sum()) ** 2 / squares if squares else 0.0


def _level(
    z: np.ndarray, seconds: np.ndarray, lower: np.ndarray, width: np.ndarray, slope: np.ndarray
) -> float:
    """Return the shift at which the sum of the answers is the sum of the watch time."""
    way = np.minimum(np.maximum(z[:, None] - lower, 0), width)
    return float(np.log(seconds.sum() / np.exp(z + way @ slope).sum()))
