"""Losses of the watch-time task."""

from torch import Tensor
from torch.nn import functional as F


def exact_watch_time_loss(logit: Tensor, watch_seconds: Tensor) -> Tensor:
    """Weighted logistic regression whose optimum is exp(logit) = E[T | x] for any click rate.

    Each impression is a negative of weight 1, and a clicked one is a positive of weight T besides:
    -[T log s(z) + log(1 - s(z))]. Its derivative is (e^z - T) / (1 + e^z), zero in expectation at
    e^z = E[T]. The paper's objective (no negative for a clicked impression) gives E[T] / (1 - P).

    Args:
        logit: z, any shape.
        watch_seconds: T in seconds, 0 for an unclicked impression, same shape.

    Returns:
        The loss of each impression, same shape.
    """
    return watch_seconds * F.softplus(-logit) + F.softplus(logit)
