import numpy as np
import pytest
import torch
from torch.nn import functional as F

from watchrank.models.lookup import top_ids
from watchrank.models.text.bag_of_words import BagOfWords
from watchrank.models.text.cnn import Cnn
from watchrank.models.text.lstm import Lstm
from watchrank.models.text.side_fields import SideFields
from watchrank.models.text.tokens import ngram_ids
from watchrank.models.text.two_towers import QUERY, TITLE, DocumentTower, QueryTower, TextMatch
from watchrank.models.text.words import WordBags

TOWERS = [BagOfWords, Cnn, Lstm]
TEXTS = ["good morning to the world", "怎么 fix 自行车 tyre", "short", "", "zebra quagga"]


def ids_of(*texts):
    return torch.from_numpy(ngram_ids(texts, max_words=12, max_ngrams=6))


def keys():
    ids = ids_of(*TEXTS[:3])
    return top_ids(ids.flatten().numpy(), np.ones(ids.numel()), 1_000)


def tower(kind):
    torch.manual_seed(0)
    made = kind(keys())
    if kind is Lstm:
        torch.nn.init.normal_(made.lstm.peepholes)
    return made.eval()


def counts(ids, vocabulary):
    """Return the dense count vector of each word [B, L, V], the way the papers write the input."""
    return F.one_hot(vocabulary(ids), vocabulary.rows)[..., 1:].sum(2).float()


@pytest.mark.parametrize("kind", TOWERS)
def test_padding_and_neighbours_never_change_a_vector(kind):
    model = tower(kind)
    together = model(ids_of(*TEXTS))
    for place, text in enumerate(TEXTS):
        alone = ids_of(text)
        torch.testing.assert_close(model(alone)[0], together[place], rtol=1e-5, atol=1e-6)
        padded = F.pad(alone, (0, 3, 0, 5), value=-1)
        torch.testing.assert_close(model(padded)[0], together[place], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", TOWERS)
def test_a_text_without_words_has_a_vector_and_a_gradient_that_are_numbers(kind):
    model = tower(kind)
    ids = ids_of("", None)
    vectors = QueryTower(model)({QUERY: ids})
    assert vectors.shape == (2, 128)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    vectors[:, 0].sum().backward()
    assert all(p.grad.abs().max() < 100 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("kind", "reads_order"), [(BagOfWords, False), (Cnn, True), (Lstm, True)])
def test_the_order_of_words_counts_but_for_the_bag(kind, reads_order):
    model = tower(kind)
    one, other = model(ids_of("good morning world", "world morning good"))
    assert torch.allclose(one, other, atol=1e-6) is not reads_order


@pytest.mark.parametrize("kind", TOWERS)
def test_every_weight_is_trained(kind):
    model = tower(kind)
    model(ids_of(*TEXTS)).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert model.bags.table.weight.grad[0].abs().max() == 0


def test_bags_are_the_product_with_count_vectors():
    bags = WordBags(keys(), 7)
    ids = ids_of("good good morning quagga")
    expected = counts(ids, bags.vocabulary) @ bags.table.weight[1:]
    torch.testing.assert_close(bags(ids), expected)
    assert bags(ids)[0, 3].abs().max() == 0, "no n-gram of it is known"


def test_the_cnn_is_a_convolution_over_count_vectors():
    """The paper's way: torch's Conv1d with a window of 3 on the dense vectors, then the rest of the tower."""
    model = tower(Cnn)
    ids = ids_of(*TEXTS[:2])
    dense = counts(ids, model.bags.vocabulary)  # [B, L, V]
    weight = model.bags.table.weight[1:].unflatten(0, (3, -1)).permute(2, 1, 0)  # [maps, V, 3]
    maps = torch.tanh(F.conv1d(dense.transpose(1, 2), weight, model.bias, padding=1))
    lengths = (ids[..., 0] >= 0).sum(1)
    largest = torch.stack([row[:, :length].amax(1) for row, length in zip(maps, lengths, strict=True)])
    torch.testing.assert_close(model(ids), model.output(largest))


def test_the_bag_of_words_is_a_network_on_the_count_vector_of_the_text():
    model = tower(BagOfWords)
    ids = ids_of("good morning good")
    first = torch.tanh(counts(ids, model.bags.vocabulary).sum(1) @ model.bags.table.weight[1:] + model.bias)
    _, second, _, third, _ = model.layers
    torch.testing.assert_close(model(ids), torch.tanh(third(torch.tanh(second(first)))))


def test_sparse_gradients_are_those_of_the_rows_that_were_read():
    dense, sparse = tower(Cnn), tower(Cnn)
    sparse.bags.table.sparse = True
    for model in (dense, sparse):
        model(ids_of(*TEXTS, *TEXTS)).square().sum().backward()
    gradient = sparse.bags.table.weight.grad
    rows = gradient._indices().flatten()
    assert len(rows) == len(rows.unique()), "each row once: 1.5 GB otherwise in a step of 4,096 texts"
    torch.testing.assert_close(gradient.to_dense(), dense.bags.table.weight.grad)


def test_side_fields_are_added_to_the_text_and_unknown_ids_are_the_zero_vector():
    torch.manual_seed(0)
    text = tower(BagOfWords)
    fields = SideFields({"channel_id": torch.tensor([3, 9]), "category": torch.tensor([1])})
    x = {
        TITLE: ids_of("good", "good", "good"),
        "channel_id": torch.tensor([[3], [4], [-1]]),
        "category": torch.tensor([[1], [2], [-1]]),
    }
    vectors = DocumentTower(text, fields)(x)
    torch.testing.assert_close(vectors, F.normalize(text(x[TITLE]) + fields(x)))
    known = torch.cat([fields.embeddings[name].table.weight[1] for name in ("channel_id", "category")])
    torch.testing.assert_close(fields(x)[0], fields.layers(known))
    torch.testing.assert_close(fields(x)[1:], fields.layers(torch.zeros(2, 64)))


def test_towers_of_one_text_module_share_its_weights():
    text = tower(Cnn)
    model = TextMatch(QueryTower(text), DocumentTower(text))
    assert len([*model.parameters()]) == len([*text.parameters()])
    queries, documents = model({QUERY: ids_of("good"), TITLE: ids_of("good", "short")})
    torch.testing.assert_close((queries @ documents.T)[0, 0].item(), 1.0)
