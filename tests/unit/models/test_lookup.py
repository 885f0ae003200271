import numpy as np
import torch

from watchrank.models.lookup import IdEmbedding, Vocabulary, lookup, top_ids


def test_lookup_gives_one_plus_the_position_and_zero_for_others():
    keys = torch.tensor([3, 7, 2**61])
    ids = torch.tensor([[7, 3], [2**61, 8], [-1, 2**62]])
    assert lookup(ids, keys).tolist() == [[2, 1], [3, 0], [0, 0]]
    assert lookup(ids, torch.tensor([], dtype=torch.int64)).tolist() == [[0, 0]] * 3


def test_top_ids_keeps_the_heaviest_and_leaves_out_padding_and_weightless():
    ids = np.array([5, 9, 9, 2, 7, -1, -1])
    weights = np.array([3, 1, 1, 1, 0, 9, 9])
    assert top_ids(ids, weights, 2).tolist() == [5, 9]
    assert top_ids(ids, weights, 10).tolist() == [2, 5, 9]


def test_unknown_ids_are_the_zero_vector_and_never_trained():
    embedding = IdEmbedding(Vocabulary(torch.tensor([10, 20])), 4)
    vectors = embedding(torch.tensor([10, 99, -1]))
    assert vectors[1:].abs().max() == 0
    vectors.sum().backward()
    assert embedding.table.weight.grad[0].abs().max() == 0
    assert embedding.table.weight.grad[1].abs().max() > 0


def test_mean_leaves_padding_out_but_counts_unknown_ids():
    embedding = IdEmbedding(Vocabulary(torch.tensor([10, 20])), 4)
    rows = embedding.table.weight.detach()
    mean = embedding.mean(torch.tensor([[10, 20, -1, -1], [10, 99, -1, -1], [-1, -1, -1, -1]])).detach()
    torch.testing.assert_close(mean, torch.stack([(rows[1] + rows[2]) / 2, rows[1] / 2, torch.zeros(4)]))
