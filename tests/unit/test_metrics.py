import itertools

import numpy as np
import pytest

from watchrank.evaluation import metrics


def test_per_user_loss_by_hand():
    # user 1: watched 30 s (score 2) and 10 s (score 5) against unwatched with scores 3 and 1.
    users = np.array([1, 1, 1, 1, 2, 2])
    scores = np.array([2.0, 5.0, 3.0, 1.0, 0.5, 0.9])
    seconds = np.array([30.0, 10.0, 0.0, 0.0, 40.0, 7.0])
    # User 2 has no unwatched impression: no pair. Pairs of user 1 weigh 30 * 2 + 10 * 2 seconds; only
    # the one of 30 s with score 3 is in the wrong order.
    assert metrics.per_user_loss(users, scores, seconds) == pytest.approx(30 / 80)


def test_per_user_loss_counts_a_tie_as_half():
    assert metrics.per_user_loss(np.array([1, 1]), np.array([1.0, 1.0]), np.array([5.0, 0.0])) == 0.5


def test_per_user_loss_without_pairs_is_nan():
    assert np.isnan(metrics.per_user_loss(np.array([1, 2]), np.array([1.0, 2.0]), np.array([5.0, 0.0])))


def brute_per_user_loss(users, scores, seconds):
    lost = total = 0.0
    for i, j in itertools.product(range(len(users)), repeat=2):
        if users[i] == users[j] and seconds[i] > 0 and seconds[j] == 0:
            total += seconds[i]
            lost += seconds[i] * (1.0 if scores[j] > scores[i] else 0.5 if scores[j] == scores[i] else 0.0)
    return lost / total


def brute_xauc(scores, seconds):
    right = pairs = 0.0
    for i, j in itertools.combinations(range(len(scores)), 2):
        if seconds[i] != seconds[j]:
            pairs += 1
            order = np.sign(scores[i] - scores[j]) * np.sign(seconds[i] - seconds[j])
            right += 0.5 + 0.5 * order
    return right / pairs


@pytest.mark.parametrize("seed", range(5))
def test_pair_metrics_equal_all_pairs_counted(seed):
    rng = np.random.default_rng(seed)
    users, scores = rng.integers(0, 6, 80), rng.integers(0, 9, 80) / 4
    seconds = np.maximum(rng.integers(-4, 6, 80), 0).astype(float)
    assert metrics.per_user_loss(users, scores, seconds) == pytest.approx(
        brute_per_user_loss(users, scores, seconds)
    )
    assert metrics.xauc(scores, seconds) == pytest.approx(brute_xauc(scores, seconds))


def test_xauc_at_the_ends():
    seconds = np.array([0.0, 1.0, 2.0])
    assert metrics.xauc(seconds, seconds) == pytest.approx(1)
    assert metrics.xauc(-seconds, seconds) == pytest.approx(0)
    assert metrics.xauc(np.ones(3), seconds) == 0.5
    assert np.isnan(metrics.xauc(seconds, np.ones(3)))


def test_auc_by_hand():
    assert metrics.auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    assert np.isnan(metrics.auc(np.array([0.1]), np.array([True])))


def test_the_roc_curve_by_hand():
    curve = metrics.roc_curve(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
    assert curve[1:].tolist() == [[0.0, 0.5, 0.8], [0.5, 1.0, 0.4], [1.0, 1.0, 0.1]]
    assert curve[0, :2].tolist() == [0.0, 0.0]
    assert curve[0, 2] > 0.8
    assert metrics.roc_curve(np.array([1.0, 2.0]), np.array([True, True])).shape == (0, 3)


def test_a_thinned_roc_curve_has_the_area_of_all_scores():
    generator = np.random.default_rng(0)
    positive = generator.random(20_000) < 0.3
    scores = generator.normal(positive, 1.0)
    false, true, thresholds = metrics.roc_curve(scores, positive, points=100).T
    assert len(false) == 101
    assert (np.diff(thresholds) < 0).all()
    assert np.trapezoid(true, false) == pytest.approx(metrics.auc(scores, positive), abs=1e-3)


def test_errors_and_sums_by_hand():
    predicted, seconds = np.array([1.0, 5.0]), np.array([2.0, 3.0])
    assert metrics.mae(predicted, seconds) == 1.5
    assert metrics.rmse(predicted, seconds) == pytest.approx(np.sqrt(2.5))
    assert metrics.sum_ratio(predicted, seconds) == pytest.approx(6 / 5)
    assert np.isnan(metrics.sum_ratio(predicted, np.zeros(2)))


def test_deciles_are_equal_groups_in_order():
    decile = metrics.deciles(np.arange(40)[::-1])
    assert np.bincount(decile).tolist() == [4] * 10
    assert decile[0] == 9
    assert decile[-1] == 0
