"""The losses of extreme multiclass classification over N videos: -log P(watched video | user).

A sampled softmax scores the watched video against S negatives that the whole batch shares. Drawn from a
background distribution q, a video is among them S q_i times on average; subtracting log(S q_i) from its
logit makes the expected sum of exponentials that of the full softmax (Jean et al. 2015; Bengio and Senecal
2008). Without it frequent videos are pushed down for being drawn often.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from watchrank.config import CandidateTrainingSettings
from watchrank.models.candidate_generation import CandidateModel
from watchrank.models.inputs import Features

MASKED = -1e30


def background(kind: str, counts: Tensor) -> Tensor:
    """Return the probability of each video to be drawn [N].

    Args:
        kind: "unigram" (by its watches), "log_uniform" (Zipf's law over the ranks by watches) or "uniform".
        counts: watches of each video [N].
    """
    weights = counts.double()
    if kind == "uniform":
        weights = torch.ones_like(weights)
    if kind == "log_uniform":
        rank = torch.empty_like(weights)
        rank[torch.argsort(weights, descending=True, stable=True)] = torch.arange(
            len(weights), dtype=weights.dtype
        )
        weights = torch.log1p(1 / (rank + 1))
    return weights / weights.sum()


def batch_softmax(scores: Tensor, items: Tensor, own: Tensor) -> Tensor:
    """Return the loss [B] of each row's own column among N; another column of the same item is no negative.

    Args:
        scores: of each row and column [B, N].
        items: the id of each column's item [N].
        own: each row's column [B].
    """
    same = items[own].unsqueeze(1) == items
    same.scatter_(1, own.unsqueeze(1), False)
    return F.cross_entropy(scores.masked_fill(same, MASKED), own, reduction="none")


class SoftmaxLoss(nn.Module):
    """A candidate model with its loss: what `fit` trains. Its subclasses differ in the softmax."""

    def __init__(self, model: CandidateModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Features, video_ids: Tensor) -> Tensor:
        """Return the loss of each example [B, 1], 0 where the watched video [B, 1] has no class."""
        rows = self.model.vocabulary(video_ids)[:, 0]
        loss = self.loss(self.model(x), rows.clamp(min=1))
        return torch.where(rows > 0, loss, 0.0).unsqueeze(1)

    def loss(self, users: Tensor, rows: Tensor) -> Tensor:
        """Return the loss [B] of users' vectors [B, D] and the rows of what they watched [B]."""
        return F.cross_entropy(self.scores(users), rows - 1, reduction="none")

    def scores(self, users: Tensor) -> Tensor:
        """Return the score of every video [B, N]."""
        return users @ self.model.vectors.T


class SampledSoftmaxLoss(SoftmaxLoss):
    """Against shared negatives from a background distribution."""

    cumulative: Tensor
    log_expected: Tensor

    def __init__(self, model: CandidateModel, counts: Tensor, settings: CandidateTrainingSettings) -> None:
        super().__init__(model)
        self.negatives = settings.negatives
        probability = background(settings.background, counts)
        expected = self.negatives * probability if settings.correction else torch.ones_like(probability)
        self.register_buffer("cumulative", probability.cumsum(0), persistent=False)
        self.register_buffer("log_expected", expected.log().float(), persistent=False)

    def loss(self, users: Tensor, rows: Tensor) -> Tensor:
        """Return the loss [B]; a negative that is the watched video itself takes no part."""
        drawn = torch.rand(self.negatives, dtype=torch.float64, device=users.device)
        last = len(self.cumulative) - 1
        negatives = torch.searchsorted(self.cumulative, drawn, right=True).clamp(max=last) + 1
        own = (users * self.model.weights(rows)).sum(1) - self.log_expected[rows - 1]
        others = users @ self.model.weights(negatives).T - self.log_expected[negatives - 1]
        others = others.masked_fill(negatives == rows.unsqueeze(1), MASKED)
        loss: Tensor = torch.cat([own.unsqueeze(1), others], 1).logsumexp(1) - own
        return loss


class InBatchSoftmaxLoss(SoftmaxLoss):
    """Against what the other users of the batch watched: negatives drawn by watches."""

    log_expected: Tensor

    def __init__(self, model: CandidateModel, counts: Tensor, settings: CandidateTrainingSettings) -> None:
        super().__init__(model)
        probability = background("unigram", counts)
        expected = settings.batch_size * probability if settings.correction else torch.ones_like(probability)
        self.register_buffer("log_expected", expected.log().float(), persistent=False)

    def loss(self, users: Tensor, rows: Tensor) -> Tensor:
        """Return the loss [B]; another example of the same video is no negative."""
        scores = users @ self.model.weights(rows).T - self.log_expected[rows - 1]  # [B, B]
        return batch_softmax(scores, rows, torch.arange(len(rows), device=rows.device))


class TwoLevelSoftmaxLoss(SoftmaxLoss):
    """torch's adaptive softmax (Grave et al. 2017): a head of frequent videos, the others in clusters.

    An ablation only: its scores are no inner products, so that no index can serve them.
    """

    place: Tensor

    def __init__(self, model: CandidateModel, counts: Tensor) -> None:
        super().__init__(model)
        classes = len(counts)
        cutoffs = sorted({max(classes // 20, 1), max(classes // 4, 2)})
        self.head = nn.AdaptiveLogSoftmaxWithLoss(
            model.weights.embedding_dim, classes, [cut for cut in cutoffs if cut < classes - 1] or [1]
        )
        place = torch.empty(classes, dtype=torch.int64)
        place[torch.argsort(counts, descending=True, stable=True)] = torch.arange(classes)
        self.register_buffer("place", place, persistent=False)

    def loss(self, users: Tensor, rows: Tensor) -> Tensor:
        """Return the loss [B]."""
        found: Tensor = -self.head(users, self.place[rows - 1]).output
        return found

    def scores(self, users: Tensor) -> Tensor:
        """Return the log probability of every video [B, N]."""
        return self.head.log_prob(users)[:, self.place]
