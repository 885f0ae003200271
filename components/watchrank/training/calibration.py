"""Calibration of expected watch time, or of a probability, on a later window than the model was trained on.

Within each tenth of the answers, the ratio of observed to expected watch time (or clicks) says how far the
model is off there. A ratio that few watches stand behind is drawn to the overall one. Between the tenths the
correction is linear in the logit, and the order of the answers stays as it is.
"""

from typing import Literal

import numpy as np
import torch
from scipy.special import expit, logit

from watchrank.models.calibration import KNOTS, Calibration

_LINKS = {"watch_time": (np.exp, np.log), "binary": (expit, logit)}
"""The answer of a logit, and the logit of an answer."""

_PRIOR_WATCHES = 50.0
"""A tenth of this many equal watches is moved half way from the overall ratio to its own."""

_ROUNDS = 20

_LARGEST = 100.0
"""A logit past this is no watch time in seconds."""

_SMALLEST = 1e-6
"""No probability is nearer to 0 or 1."""

_LEAST_RISE = 0.1
"""How much the calibrated logit rises at the least when the logit rises by 1: the order stays."""


def fit_calibration(
    calibration: Calibration,
    logits: np.ndarray,
    observed: np.ndarray,
    kind: Literal["watch_time", "binary"] = "watch_time",
) -> None:
    """Fit `calibration` to logits [N] and what was observed in their place [N]: seconds, or 1 and 0.

    A window in which nothing was watched changes nothing; nor do logits too large for exp, which no
    correction makes sense of.
    """
    answer, link = _LINKS[kind]
    z, seen = logits.astype(np.float64), observed.astype(np.float64)
    if len(z) < KNOTS or not seen.any() or not z.max() < _LARGEST or (kind == "binary" and seen.all()):
        return
    tenths = np.array_split(np.argsort(z, kind="stable"), KNOTS)
    sizes = np.array([len(rows) for rows in tenths])
    wanted = _wanted([seen[rows] for rows in tenths], [answer(z[rows]).sum() for rows in tenths]) / sizes
    if kind == "binary":
        wanted = np.clip(wanted, _SMALLEST, 1 - _SMALLEST)
    knots = link(np.array([answer(z[rows]).mean() for rows in tenths]))
    width = np.maximum(np.diff(knots), 1e-6)
    way = np.minimum(np.maximum(z[:, None] - knots[:-1], 0), width)  # [N, KNOTS - 1]
    correction = np.zeros(KNOTS)
    for _ in range(_ROUNDS):
        slope = np.maximum(np.diff(correction) / width, _LEAST_RISE - 1)
        answers = answer(z + correction[0] + way @ slope)
        correction += link(wanted) - link(np.array([answers[rows].mean() for rows in tenths]))
    shift = correction[0] + link(seen.mean()) - link(answer(z + correction[0] + way @ slope).mean())
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
