"""The loss of text matching: the smoothed softmax over cosines.

P(d+ | q) = exp(gamma R(q, d+)) / sum over D of exp(gamma R(q, d)), and the loss is -log P (Huang et al. 2013,
section 3.1; Shen et al. 2014, section 4). D is the positive with J random negatives of each query's own (4 in
the papers), or all documents of the batch with the correction of `training.softmax`.

Shapes: B queries, each with 1 + J documents, the positive first.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from watchrank.models.inputs import Features
from watchrank.models.lookup import Vocabulary
from watchrank.models.text.two_towers import TextMatch
from watchrank.training.softmax import MASKED, batch_softmax

LARGEST_GAMMA = 100.0
"""A learned gamma stays below it: at 100 a difference of .1 in cosine is e^10 in probability."""


class MatchingLoss(nn.Module):
    """Two towers with their loss, which is what `fit` trains: against each query's own J negatives."""

    def __init__(self, model: TextMatch, *, gamma: float = 10.0, learned: bool = True) -> None:
        """Make the loss.

        Args:
            model: the towers.
            gamma: the smoothing factor, or where it starts; above 0 and below `LARGEST_GAMMA`.
            learned: whether it is trained.
        """
        super().__init__()
        assert 0 < gamma < LARGEST_GAMMA
        self.model = model
        share = gamma / LARGEST_GAMMA
        self.smoothing = nn.Parameter(torch.tensor(math.log(share / (1 - share))), requires_grad=learned)

    @property
    def gamma(self) -> Tensor:
        """The smoothing factor, between 0 and `LARGEST_GAMMA`."""
        return LARGEST_GAMMA * self.smoothing.sigmoid()

    def forward(self, x: Features, document_ids: Tensor) -> Tensor:
        """Return the loss of each query [B, 1].

        Args:
            x: the features of B queries, and of their documents [B * (1 + J)], those of one query together.
            document_ids: which documents these are [B, 1 + J].
        """
        queries, documents = self.model(x)
        return self.loss(queries, documents, document_ids).unsqueeze(1)

    def loss(self, queries: Tensor, documents: Tensor, ids: Tensor) -> Tensor:
        """Return the loss [B] of unit vectors [B, D] and [B (1 + J), D]; the positive is no negative."""
        cosines = torch.einsum("bd,bjd->bj", queries, documents.view(*ids.shape, -1))
        again = F.pad(ids[:, 1:] == ids[:, :1], (1, 0))
        scores = (self.gamma * cosines).masked_fill(again, MASKED)
        loss: Tensor = scores.logsumexp(1) - scores[:, 0]
        return loss


class InBatchMatchingLoss(MatchingLoss):
    """Against all documents of the batch, corrected for how often each is in one (logQ)."""

    log_expected: Tensor

    def __init__(
        self, model: TextMatch, keys: Tensor, expected: Tensor, *, gamma: float = 10.0, learned: bool = True
    ) -> None:
        """Make the loss.

        Args:
            model: the towers.
            keys: the sorted ids of the documents that may be in a batch [N].
            expected: how often each is in one on average [N], above 0; other documents count as the rarest.
            gamma: see `MatchingLoss`.
            learned: see `MatchingLoss`.
        """
        super().__init__(model, gamma=gamma, learned=learned)
        self.documents = Vocabulary(keys)
        logs = torch.cat([expected.min().unsqueeze(0), expected]).log().float()
        self.register_buffer("log_expected", logs, persistent=False)

    def loss(self, queries: Tensor, documents: Tensor, ids: Tensor) -> Tensor:
        """Return the loss [B] of unit vectors [B, D] and [B (1 + J), D]; the positive is no negative."""
        every = ids.flatten()
        scores = (
            self.gamma * queries @ documents.T - self.log_expected[self.documents(every)]
        )  # [B, B (1 + J)]
        return batch_softmax(scores, every, torch.arange(0, len(every), ids.shape[1], device=ids.device))
