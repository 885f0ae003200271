import numpy as np
import pytest

from watchrank.evaluation import metrics
from watchrank.evaluation.bootstrap import bootstrap, interval, statistic

USERS = 30


@pytest.fixture
def impressions():
    """User, answer with ties, watched seconds of 300 impressions; not each user has as many."""
    rng = np.random.default_rng(1)
    user = np.minimum(rng.integers(0, USERS, 300), rng.integers(0, USERS, 300))
    predicted = rng.integers(1, 12, 300) / 12
    seconds = np.where(rng.random(300) < predicted, rng.exponential(30, 300), 0.0)
    return user, predicted, seconds


REFERENCES = {
    "per_user_loss": lambda user, p, y: metrics.per_user_loss(user, p, y),
    "log_loss": lambda user, p, y: metrics.log_loss(p, y),
    "auc": lambda user, p, y: metrics.auc(p, y),
    "rmse": lambda user, p, y: metrics.rmse(p, y),
    "sum_ratio": lambda user, p, y: metrics.sum_ratio(p, y),
    "calibration_error": lambda user, p, y: abs(np.log(metrics.sum_ratio(p, y))),
}


def labels(metric, seconds):
    return (seconds > 0).astype(float) if metric in ("log_loss", "auc") else seconds


def copied(counts, user):
    """The rows of drawn users, and who they are: a user who is drawn twice is two users."""
    rows, who = [], []
    for place, drawn in enumerate(np.repeat(np.arange(USERS), counts.astype(int))):
        own = np.flatnonzero(user == drawn)
        rows.append(own)
        who.append(np.full(len(own), place))
    return np.concatenate(rows), np.concatenate(who)


@pytest.mark.parametrize("metric", REFERENCES)
def test_a_metric_under_counts_is_the_metric_of_the_copied_impressions(impressions, metric):
    user, predicted, seconds = impressions
    label = labels(metric, seconds)
    found = statistic(metric, user, USERS, predicted, label)
    rng = np.random.default_rng(0)
    counts = np.array([np.bincount(rng.integers(USERS, size=USERS), minlength=USERS) for _ in range(8)])
    expected = []
    for row in counts:
        rows, who = copied(row, user)
        expected.append(REFERENCES[metric](who, predicted[rows], label[rows]))
    np.testing.assert_allclose(found(counts.astype(float)), expected)
    assert found(np.ones((1, USERS)))[0] == pytest.approx(REFERENCES[metric](user, predicted, label))


def test_the_interval_is_that_of_resampled_users(impressions):
    user, predicted, seconds = impressions
    watched = (seconds > 0).astype(float)
    statistics = [statistic("auc", user, USERS, predicted, watched)]
    values, drawn = bootstrap(statistics, USERS, 2_000, seed=0)
    assert values == pytest.approx([metrics.auc(predicted, watched)])
    rng, slow = np.random.default_rng(7), []
    for _ in range(2_000):
        rows, _ = copied(np.bincount(rng.integers(USERS, size=USERS), minlength=USERS), user)
        slow.append(metrics.auc(predicted[rows], watched[rows]))
    expected = np.quantile(slow, [0.025, 0.975])
    found = interval(drawn[:, 0], 0.95)
    np.testing.assert_allclose(found, expected, atol=0.1 * (expected[1] - expected[0]))


def test_users_are_drawn_whole():
    """Ten impressions that are alike tell no more than one does."""
    rng = np.random.default_rng(0)
    predicted, label = rng.random(200), rng.random(200) + 0.5
    few = bootstrap([statistic("rmse", np.arange(200), 200, predicted, label)], 200, 400, seed=0)[1]
    ten = [np.repeat(values, 10) for values in (np.arange(200), predicted, label)]
    many = bootstrap([statistic("rmse", ten[0], 200, ten[1], ten[2])], 200, 400, seed=0)[1]
    np.testing.assert_allclose(many, few)


def test_all_metrics_see_the_same_resamples_and_blocks_do_not_matter(impressions, monkeypatch):
    user, predicted, seconds = impressions
    loss = statistic("per_user_loss", user, USERS, predicted, seconds)
    _, drawn = bootstrap([loss, loss], USERS, 50, seed=3)
    assert drawn.shape == (50, 2)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert len(np.unique(drawn[:, 0])) > 40
    monkeypatch.setattr("watchrank.evaluation.bootstrap.COUNTS_AT_ONCE", 7 * USERS)
    np.testing.assert_allclose(bootstrap([loss], USERS, 50, seed=3)[1][:, 0], drawn[:, 0])


def test_what_cannot_be_measured_is_nan():
    user, same = np.array([0, 1]), np.array([1.0, 1.0])
    counts = np.array([[1.0, 1.0]])
    assert np.isnan(statistic("auc", user, 2, same, same)(counts)).all()
    assert np.isnan(statistic("sum_ratio", user, 2, same, np.zeros(2))(counts)).all()
    assert np.isnan(statistic("per_user_loss", user, 2, same, same)(counts)).all()
    assert np.isnan(interval(np.array([np.nan, np.nan]), 0.9)).all()
    assert interval(np.array([np.nan, 1.0, 3.0]), 1 - 1e-12) == pytest.approx((1, 3))
