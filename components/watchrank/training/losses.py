"""The losses of ranking: of watch time, as weighted logistic regressions, and of other tasks."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from watchrank.config import Objective, TaskSettings


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


def task_loss(
    task: TaskSettings, objective: Objective, logit: Tensor, labels: Mapping[str, Tensor], scale: Tensor
) -> Tensor:
    """Return a task's loss of each impression, in the shape of the logit; 0 where its label is missing.

    Args:
        task: what is predicted.
        objective: of the watch time.
        logit: the task's, or the prediction of a regression.
        labels: by column, in the shape of the logit; below 0 where missing.
        scale: standard deviation of a regression's label.
    """
    label = labels[task.label]
    match task.kind:
        case "watch_time":
            loss = weighted_logistic_loss(logit, objective_weights(objective, labels["clicked"], label))
        case "binary":
            loss = F.softplus(logit) - label * logit
        case "regression":
            loss = ((logit - label) / scale).square() / 2
    return torch.where(label >= 0, loss, 0.0)
