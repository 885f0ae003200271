"""Calibration of expected watch time on a later window than the model was trained on.

A network that has learned some noise is too bold: its highest answers are too high, its lowest too low.
Two numbers put that right and leave the order as it is: exp(slope * z + offset), fitted by Poisson
regression of the watch time on z. At its optimum the sum of the answers is the sum of the watch time.
"""

import numpy as np

_STEPS = 50
_PRIOR_ROWS = 100.0
"""How many rows of evidence for slope 1 and offset 0 the fit starts from."""


def fit_calibration(logits: np.ndarray, watch_seconds: np.ndarray) -> tuple[float, float]:
    """Return slope and offset for logits [N] and the watch times [N] observed in their place.

    Newton's method on the Poisson likelihood, which is concave. A slope that would turn the order round,
    or a window in which nothing was watched, gives (1, 0): no calibration.
    """
    z, seconds = logits.astype(np.float64), watch_seconds.astype(np.float64)
    total = seconds.sum()
    if not len(z) or total <= 0:
        return 1.0, 0.0
    centre = float(np.average(z, weights=seconds))
    design = np.stack([z - centre, np.ones_like(z)], 1)
    found = np.array([1.0, centre])
    prior = _PRIOR_ROWS * total / len(z) * np.eye(2)
    start = found.copy()
    for _ in range(_STEPS):
        expected = np.exp(np.clip(design @ found, None, 30.0))
        gradient = design.T @ (seconds - expected) - prior @ (found - start)
        curvature = (design * expected[:, None]).T @ design + prior
        step = np.linalg.solve(curvature, gradient)
        found += step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    slope, level = found
    return (float(slope), float(level - slope * centre)) if slope > 0 else (1.0, 0.0)
