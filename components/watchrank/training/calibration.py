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

_ROUNDS = 20

_LARGEST = 100.0
"""A logit past this is no watch time in seconds."""

_LEAST_RISE = 0.1
"""How much the calibrated logit rises at the least when the logit rises by 1: the order stays."""


def fit_calibration(calibration: Calibration, logits: np.ndarray, watch_seconds: np.ndarray) -> None:
    """Fit `calibration` to logits [N] and the watch times [N] observed in their place, in seconds.

    A window in which nothing was watched changes nothing; nor do logits too large for exp, which no
    correction makes sense of.
    """
    z, seconds = logits.astype(np.float64), watch_seconds.astype(np.float64)
    if len(z) < KNOTS or not seconds.any() or not z.max() < _LARGEST:
        return
    tenths = np.array_split(np.argsort(z, kind="stable"), KNOTS)
    wanted = _wanted([seconds[rows] for rows in tenths], [np.exp(z[rows]).sum() for rows in tenths])
    knots = np.array([np.log(np.exp(z[rows]).mean()) for rows in tenths])
    width = np.maximum(np.diff(knots), 1e-6)
    way = np.minimum(np.maximum(z[:, None] - knots[:-1], 0), width)  # [N, KNOTS - 1]
    correction = np.zeros(KNOTS)
    for _ in range(_ROUNDS):
        slope = np.maximum(np.diff(correction) / width, _LEAST_RISE - 1)
        answers = np.exp(z + correction[0] + way @ slope)
        correction += np.log(wanted / [answers[rows].sum() for rows in tenths])
    shift = correction[0] + np.log(seconds.sum() / np.exp(z + correction[0] + way @ slope).sum())
    for name, value in {"shift": shift, "lower": knots[:-1], "width": width, "slope": slope}.items():
        getattr(calibration, name).copy_(torch.as_tensor(value, dtype=torch.float32))


def _wanted(seconds: list[np.ndarray], predicted: list[float]) -> np.ndarray:
    """Return the sum that each tenth should answer: what was observed, as far as it can be trusted."""
    observed = np.array([tenth.sum() for tenth in seconds])
    by_overall_ratio = np.array(predicted) * observed.sum() / sum(predicted)
    watches = np.array([_equal_watches(tenth) for tenth in seconds])
    trust = watches / (watches + _PRIOR_WATCHES)
    wanted = trust * observed + (1 - trust) * by_overall_ratio
    scaled: np.ndarray = wanted * observed.sum() / wanted.sum()
    return scaled


def _equal_watches(seconds: np.ndarray) -> float:
    """Return how many watches of equal length would tell as much about the sum."""
    squares = float(np.square(seconds).sum())
    return float(seconds.sum()) ** 2 / squares if squares else 0.0
