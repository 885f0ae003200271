"""The objectives of watch-time ranking: weighted logistic regressions that differ in their weights."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from watchrank.config import Objective


class Weights(NamedTuple):
    """What each impression weighs as a positive and as a negative, both [...]."""

    positive: Tensor
    negative: Tensor


def objective_weights(objective: Objective, clicked: Tensor, watch_seconds: Tensor) -> Weights:
    """Return the weights that make a weighted logistic regression the named objective.

    | objective | positive | negative | exp(z) at the optimum |
    | --- | --- | --- | --- |
    | `exact` | T | 1 for every impression | E[T] |
    | `youtube` | T | 1 for an unclicked one | E[T] / (1 - P) |
    | `logistic` | 1 for a clicked one | 1 for an unclicked one | P / (1 - P) |

    `youtube` is the paper's (Covington et al. 2016, section 4.2): its odds are near E[T] only while the
    click probability P is small.

    Args:
        objective: its name.
        clicked: 1 or 0, any shape.
        watch_seconds: T, 0 for an unclicked impression, same shape.
    """
    match objective:
        case "exact":
            return Weights(watch_seconds, clicked.new_ones(()).expand_as(clicked))
        case "youtube":
            return Weights(watch_seconds * clicked, 1 - clicked)
        case "logistic":
            return Weights(clicked, 1 - clicked)


def weighted_logistic_loss(logit: Tensor, weights: Weights) -> Tensor:
    """Return -[w+ log s(z) + w- log(1 - s(z))] of each impression, in the shape of the logit.

    Under `exact` its derivative is (e^z - T) / (1 + e^z), zero in expectation at e^z = E[T].
    """
    return weights.positive * F.softplus(-logit) + weights.negative * F.softplus(logit)
