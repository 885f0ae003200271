"""Ids to rows of an embedding table, inside the graph.

The keys are sorted, so a row is found by binary search; in the exported graph the same lookup is one
hash table (ONNX `ai.onnx.ml.LabelEncoder`, see `export.onnx`).
"""

import numpy as np
import torch
from torch import Tensor, nn


def lookup(ids: Tensor, keys: Tensor) -> Tensor:
    """Return 1 + the position of each id in the sorted `keys` [N], 0 where it is not among them."""
    if torch.onnx.is_in_onnx_export():
        rows: Tensor = torch.onnx.ops.symbolic(
            "watchrank::Lookup", (ids, keys), dtype=torch.int64, shape=ids.shape, version=1
        )
        return rows
    if not len(keys):
        return torch.zeros_like(ids)
    position = torch.searchsorted(keys, ids).clamp_(max=len(keys) - 1)
    return torch.where(keys[position] == ids, position + 1, 0)


def top_ids(ids: np.ndarray, weights: np.ndarray, limit: int) -> Tensor:
    """Return the ids of the highest total weight, at most `limit`, sorted: the keys of a vocabulary.

    Args:
        ids: int64 ids [N]; negative ones are padding.
        weights: what each occurrence weighs [N]; an id of no weight is left out.
        limit: how many ids at the most.
    """
    known = (ids >= 0) & (weights > 0)
    unique, inverse = np.unique(ids[known], return_inverse=True)
    totals = np.bincount(inverse, weights=weights[known], minlength=len(unique))
    top = np.argsort(-totals, kind="stable")[:limit]
    return torch.from_numpy(np.sort(unique[top]))


class Vocabulary(nn.Module):
    """The ids that have an embedding: row 1 + i for the i-th key, row 0 for every other id."""

    keys: Tensor

    def __init__(self, keys: Tensor) -> None:
        """Make the vocabulary of the sorted int64 `keys` [N]."""
        super().__init__()
        self.register_buffer("keys", keys)

    @property
    def rows(self) -> int:
        """Rows that an embedding table of this vocabulary needs."""
        return len(self.keys) + 1

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids to rows, same shape, int64."""
        return lookup(ids, self.keys)


FEW_IDS = 256
"""Ids so few are told apart from the start; of many, each starts near the unknown one and has to earn
what sets it apart, as most are seen too rarely to be trusted early."""


class IdEmbedding(nn.Module):
    """One embedding table for all ids of a domain; an id outside the vocabulary is the zero vector."""

    def __init__(self, vocabulary: Vocabulary, dim: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.table = nn.Embedding(vocabulary.rows, dim, padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.3 if vocabulary.rows <= FEW_IDS else 0.01)
        with torch.no_grad():
            self.table.weight[0].zero_()

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids [...] as vectors [..., dim]."""
        vectors: Tensor = self.table(self.vocabulary(ids))
        return vectors

    def mean(self, ids: Tensor) -> Tensor:
        """Average over the last axis, padding left out: ids [..., L] to [..., dim]; zero when empty."""
        count = (ids >= 0).sum(-1, keepdim=True).clamp(min=1)
        mean: Tensor = self(ids).sum(-2) / count
        return mean
