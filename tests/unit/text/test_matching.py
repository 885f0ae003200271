import pytest
import torch
from torch.nn import functional as F

from watchrank.models.text.bag_of_words import BagOfWords
from watchrank.models.text.two_towers import QUERY, TITLE, DocumentTower, QueryTower, TextMatch
from watchrank.training.matching import LARGEST_GAMMA, InBatchMatchingLoss, MatchingLoss

GAMMA = 5.0


def model() -> TextMatch:
    torch.manual_seed(0)
    text = BagOfWords(torch.arange(50), hidden=8, dim=4)
    return TextMatch(QueryTower(text), DocumentTower(text))


def unit_vectors(count, seed=1):
    return F.normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)))


def test_the_loss_is_the_smoothed_softmax_over_a_query_s_own_documents():
    loss = MatchingLoss(model(), gamma=GAMMA)
    queries, documents = unit_vectors(2), unit_vectors(6, seed=2)
    found = loss.loss(queries, documents, torch.arange(6).view(2, 3))
    exponentials = torch.exp(GAMMA * (queries[1] @ documents[3:].T))
    assert found[1].item() == pytest.approx(-torch.log(exponentials[0] / exponentials.sum()).item(), rel=1e-5)


def test_a_negative_that_is_the_positive_takes_no_part():
    loss = MatchingLoss(model(), gamma=GAMMA)
    queries, documents = unit_vectors(1), unit_vectors(3, seed=2)
    found = loss.loss(queries, documents, torch.tensor([[7, 7, 8]]))
    expected = loss.loss(queries, documents[[0, 2]], torch.tensor([[7, 8]]))
    torch.testing.assert_close(found, expected)


def test_in_batch_negatives_are_corrected_for_their_frequency_and_the_same_document_is_masked():
    expected = torch.tensor([2.0, 0.5, 0.1, 3.0])
    loss = InBatchMatchingLoss(model(), torch.tensor([10, 20, 30, 40]), expected, gamma=GAMMA)
    queries, documents = unit_vectors(3), unit_vectors(6, seed=2)
    ids = torch.tensor([[10, 20], [30, 99], [10, 40]])  # 99 is unknown: as rare as the rarest
    scores = GAMMA * queries @ documents.T - torch.tensor([2.0, 0.5, 0.1, 0.1, 2.0, 3.0]).log()
    found = loss.loss(queries, documents, ids)
    others = scores[0, [0, 1, 2, 3, 5]]
    assert found[0].item() == pytest.approx((others.logsumexp(0) - scores[0, 0]).item(), rel=1e-5)
    assert found[1].item() == pytest.approx((scores[1].logsumexp(0) - scores[1, 2]).item(), rel=1e-5)


@pytest.mark.parametrize("learned", [True, False])
def test_gamma_starts_as_set_and_is_trained_if_wanted(learned):
    loss = MatchingLoss(model(), gamma=GAMMA, learned=learned)
    assert loss.gamma.item() == pytest.approx(GAMMA, rel=1e-5)
    x = {QUERY: torch.tensor([[[1]], [[2]]]), TITLE: torch.arange(4).view(4, 1, 1)}
    losses = loss(x, torch.arange(4).view(2, 2))
    assert losses.shape == (2, 1)
    losses.sum().backward()
    assert (loss.smoothing.grad is not None and loss.smoothing.grad.item() != 0) is learned


def test_gamma_stays_within_its_bounds():
    loss = MatchingLoss(model())
    with torch.no_grad():
        for value in (-1e3, 1e3):
            loss.smoothing.fill_(value)
            assert 0 <= loss.gamma.item() <= LARGEST_GAMMA


def test_towers_learn_which_texts_belong_together():
    """Query n-gram k belongs to document n-gram k + 20: no overlap, so that nothing but training finds it."""
    loss = InBatchMatchingLoss(model(), torch.arange(10), torch.ones(10))
    x = {QUERY: torch.arange(10).view(10, 1, 1), TITLE: 20 + torch.arange(10).view(10, 1, 1)}
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss(x, torch.arange(10).view(10, 1)).mean().backward()
        optimizer.step()
    queries, documents = loss.model(x)
    assert (queries @ documents.T).argmax(1).tolist() == [*range(10)]
