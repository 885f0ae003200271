import pytest
import torch
from torch import nn

from watchrank.config import CandidateSettings, CandidateTrainingSettings
from watchrank.models.candidate_generation import CandidateModel, UserTower, feature_names
from watchrank.training.softmax import (
    InBatchSoftmaxLoss,
    SampledSoftmaxLoss,
    SoftmaxLoss,
    TwoLevelSoftmaxLoss,
    background,
)

VIDEOS = 40
ABSENT = frozenset(feature_names(frozenset())) - {"watched_video_ids"}


def model(*, tied=False, depth=0) -> CandidateModel:
    torch.manual_seed(0)
    settings = CandidateSettings(dim=16, tied=tied, depth=depth, dropout=0)
    keys = {"video": torch.arange(VIDEOS) * 3}
    return CandidateModel(UserTower(settings, ABSENT, keys, 1.0), settings)


def rows(count=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, VIDEOS + 1, (count,), generator=generator)


def test_the_full_softmax_is_the_cross_entropy_over_all_videos():
    loss = SoftmaxLoss(model())
    users, watched = torch.randn(8, 16), rows()
    scores = users @ loss.model.weights.weight.T
    expected = scores[:, 1:].logsumexp(1) - scores[torch.arange(8), watched]
    torch.testing.assert_close(loss.loss(users, watched), expected)


def test_a_watch_of_a_video_without_a_class_weighs_nothing():
    loss = SoftmaxLoss(model())
    x = {"watched_video_ids": torch.full((2, 50), -1)}
    answer = loss(x, torch.tensor([[9], [10]]))
    assert answer[0] > 0
    assert answer[1] == 0


def test_in_batch_negatives_are_corrected_for_their_frequency_and_the_same_video_is_masked():
    counts = torch.arange(1, VIDEOS + 1)
    loss = InBatchSoftmaxLoss(model(), counts, CandidateTrainingSettings(batch_size=3))
    users, watched = torch.randn(3, 16), torch.tensor([4, 9, 4])
    expected = 3 * counts.double() / counts.sum()
    scores = users @ loss.model.weights(watched).T - expected.log()[watched - 1].float()
    first = torch.logsumexp(scores[0, [0, 1]], 0) - scores[0, 0]
    torch.testing.assert_close(loss.loss(users, watched)[0], first)


def test_a_drawn_video_that_was_watched_is_no_negative():
    """Of two videos, one drawn nearly always: its own loss has no term but itself."""
    counts = torch.ones(VIDEOS)
    counts[6] = 1e12
    loss = SampledSoftmaxLoss(model(), counts, CandidateTrainingSettings(negatives=64))
    answer = loss.loss(torch.randn(1, 16), torch.tensor([7]))
    assert answer.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["unigram", "log_uniform", "uniform"])
def test_backgrounds_are_distributions_in_the_order_of_the_counts(kind):
    probability = background(kind, torch.tensor([5, 50, 1]))
    assert probability.sum().item() == pytest.approx(1)
    assert len(set(probability.tolist())) == (1 if kind == "uniform" else 3)
    if kind != "uniform":
        assert probability.argsort().tolist() == [2, 0, 1]


def learned(loss: SoftmaxLoss, logs: torch.Tensor, steps=1_500) -> torch.Tensor:
    """Train on watches drawn by softmax(logs) [N]; return the scores of one fixed user [N]."""
    torch.manual_seed(3)
    user = nn.Parameter(torch.randn(1, 16))
    optimizer = torch.optim.Adam([user, *loss.parameters()], lr=0.02)
    for _ in range(steps):
        watched = torch.multinomial(logs.softmax(0), 128, replacement=True) + 1
        optimizer.zero_grad()
        loss.loss(user.expand(128, -1), watched).mean().backward()
        optimizer.step()
    return loss.scores(user)[0].detach()


def test_the_corrected_sampled_softmax_ranks_as_the_full_one_and_the_uncorrected_does_not():
    """A popular background, with negatives far fewer than the draws that would make them all appear."""
    torch.manual_seed(5)
    logs = torch.linspace(3, 0, VIDEOS)
    counts = (logs.exp() * 1_000).long()
    full = learned(SoftmaxLoss(model()), logs)
    answers = {}
    for correction in (True, False):
        settings = CandidateTrainingSettings(negatives=16, correction=correction)
        answers[correction] = learned(SampledSoftmaxLoss(model(), counts, settings), logs)

    def agreement(scores):
        return torch.corrcoef(torch.stack([full.argsort().argsort(), scores.argsort().argsort()]).double())[
            0, 1
        ]

    assert agreement(full) == 1
    assert torch.corrcoef(torch.stack([full, logs]))[0, 1] > 0.95
    assert agreement(answers[True]) > 0.9
    assert agreement(answers[False]) < 0.5


def test_the_two_level_softmax_is_a_distribution_over_the_same_videos():
    loss = TwoLevelSoftmaxLoss(model(), torch.arange(VIDEOS, 0, -1))
    users, watched = torch.randn(8, 16), rows()
    scores = loss.scores(users)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(8))
    torch.testing.assert_close(loss.loss(users, watched), -scores[torch.arange(8), watched - 1])


@pytest.mark.parametrize(("tied", "tables"), [(True, 1), (False, 2)])
def test_tied_weights_are_one_table(tied, tables):
    found = model(tied=tied)
    assert sum(isinstance(module, nn.Embedding) for module in found.modules()) == tables
    assert (found.weights is found.tower.embedding("video").table) is tied


@pytest.mark.parametrize(("depth", "widths"), [(0, [16]), (1, [16]), (2, [32, 16]), (4, [128, 64, 32, 16])])
def test_each_layer_is_twice_as_wide_as_the_next(depth, widths):
    layers = [layer for layer in model(depth=depth).tower.layers if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in layers] == widths
