"""The first layer of every text tower: a word as the sum of the rows of its n-grams.

It is the product of a matrix with the word's count vector of some 30,000 n-grams (Huang et al. 2013), without
the vector. Shapes: B texts, L words, G n-grams a word, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from watchrank.models.lookup import Vocabulary


def present(ids: Tensor) -> Tensor:
    """Return which places of n-gram ids [B, L, G] hold a word, bool [B, L]."""
    return ids[..., 0] >= 0


class WordBags(nn.Module):
    """N-gram ids to the sum of their rows; padding and n-grams outside the vocabulary add nothing."""

    def __init__(self, keys: Tensor, width: int) -> None:
        """Make the table.

        Args:
            keys: the sorted ids of the n-grams that have a row [V].
            width: of a row.
        """
        super().__init__()
        self.vocabulary = Vocabulary(keys)
        self.table = nn.Embedding(self.vocabulary.rows, width, padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.1)
        with torch.no_grad():
            self.table.weight[0].zero_()

    def forward(self, ids: Tensor) -> Tensor:
        """Sum over the last axis: ids [B, L, G] to [B, L, D]."""
        rows = self.vocabulary(ids)
        if torch.onnx.is_in_onnx_export():  # an EmbeddingBag would become a loop
            total: Tensor = self.table(rows).sum(2)
            return total
        known = rows > 0
        ends = F.pad(known.flatten(0, 1).sum(1).cumsum(0), (1, 0))
        sums = F.embedding_bag(
            rows[known],
            self.table.weight,
            ends,
            mode="sum",
            sparse=self.table.sparse,
            include_last_offset=True,
        )
        return sums.unflatten(0, ids.shape[:2])
