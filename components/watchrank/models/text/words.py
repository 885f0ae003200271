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
    """Each word and the words beside it as the sum of their n-grams' rows.

    An n-gram has a row for every place of the window. Padding and n-grams outside the vocabulary add nothing.
    """

    def __init__(self, keys: Tensor, width: int, *, window: int = 1) -> None:
        """Make the table.

        Args:
            keys: the sorted ids of the n-grams that have rows [V].
            width: of a row.
            window: how many words a sum reads, an odd number: the word and as many on each side.
        """
        super().__init__()
        self.vocabulary = Vocabulary(keys)
        self.window = window
        self.table = nn.Embedding(1 + window * len(keys), width, padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.1)
        with torch.no_grad():
            self.table.weight[0].zero_()

    def forward(self, ids: Tensor) -> Tensor:
        """Sum over words of the window and their n-grams: ids [B, L, G] to [B, L, D]."""
        rows = self._rows(ids)
        if torch.onnx.is_in_onnx_export():  # an EmbeddingBag becomes a loop, and an adding ScatterND races
            total: Tensor = self.table(rows).sum(2)
            return total
        known = rows > 0
        ends = F.pad(known.flatten(0, 1).sum(1).cumsum(0), (1, 0))
        rows = rows[known]
        is_read = torch.zeros(self.table.num_embeddings, dtype=torch.bool, device=rows.device)
        is_read[rows] = True
        read = self.table(is_read.nonzero().squeeze(1))  # each once: a gradient by row has no row twice
        places = is_read.cumsum(0) - 1
        sums = F.embedding_bag(places[rows], read, ends, mode="sum", include_last_offset=True)
        return sums.view(*ids.shape[:2], -1)

    def _rows(self, ids: Tensor) -> Tensor:
        """Return the rows to add up [B, L, window * G], 0 where there is none."""
        words, beside = ids.shape[1], self.window // 2
        rows = F.pad(self.vocabulary(ids), (0, 0, beside, beside))  # [B, L + 2 beside, G]
        places = [rows[:, place : place + words] for place in range(self.window)]
        step = self.vocabulary.rows - 1
        return torch.cat([(own + place * step) * (own > 0) for place, own in enumerate(places)], 2)
