from dataclasses import dataclass

import numpy as np
import pytest

from watchrank.evaluation import candidate_baselines
from watchrank.evaluation.candidate_baselines import (
    BASELINES,
    item_similarity,
    last_items_knn,
    popularity,
    segment_popularity,
    user_video_matrix,
)
from watchrank.evaluation.retrieval import evaluate_retrieval

ALL = slice(None)
WATCHES = [(1, 10), (1, 20), (2, 10), (2, 20), (2, 30), (3, 10), (4, 30), (4, 99)]


@dataclass
class Dataset:
    """Videos 10 to 40 (99 is not in the catalogue); users 1 and 2 are of one segment, 3 of another."""

    videos: dict
    watches: dict
    users: dict
    test: dict

    def split(self, name):
        return {"test": self.test}[name]


@pytest.fixture
def data():
    user, video = np.array(WATCHES).T
    history = np.full((5, 50), -1)
    history[0, :2] = [20, 10]
    history[1, :3] = [30, 99, 30]
    history[2, :6] = [40, 40, 40, 40, 40, 10]
    return Dataset(
        videos={"video_id": np.array([10, 20, 30, 40])},
        watches={"user_id": user, "video_id": video, "timestamp_us": np.arange(len(user))},
        users={
            "user_id": np.array([1, 2, 3, 4]),
            "user_language": np.array([7, 7, 7, -1]),
            "country": np.array([1, 1, 2, -1]),
        },
        test={
            "user_id": np.array([1, 2, 3, 4, 5]),
            "video_id": np.array([30, 40, 20, 10, 10]),
            "watched_video_ids": history,
        },
    )


def test_popularity_is_the_share_of_watches(data):
    assert popularity(data)(ALL) == pytest.approx(np.tile([3 / 7, 2 / 7, 2 / 7, 0], (5, 1)))
    assert popularity(data)(slice(1, 3)).shape == (2, 4)


def test_segment_popularity_by_hand(data, monkeypatch):
    monkeypatch.setattr(candidate_baselines, "PRIOR_WATCHES", 7.0)
    scores = segment_popularity(data)(ALL)
    overall = np.array([3, 2, 2, 0])  # of 7 watches, as the prior has
    assert scores[0] == pytest.approx((overall + np.array([2, 2, 1, 0])) / 12)
    assert scores[1] == pytest.approx(scores[0])
    assert scores[2] == pytest.approx((overall + np.array([1, 0, 0, 0])) / 8)
    assert scores[3] == pytest.approx((overall + np.array([0, 0, 1, 0])) / 8)  # language and country unknown
    assert scores[4] == pytest.approx(scores[3])  # not among the users


def test_segment_popularity_keeps_countries_of_a_language_apart(data):
    scores = segment_popularity(data)(slice(0, 3))
    assert scores[0, 1] > scores[2, 1]


def test_a_segment_without_watches_has_the_overall_shares(data):
    data.users["country"][2] = 3
    data.watches = {name: column[data.watches["user_id"] != 3] for name, column in data.watches.items()}
    assert segment_popularity(data)(slice(2, 3))[0] == pytest.approx(np.array([2, 2, 2, 0]) / 6)


def cosines(watched):
    norms = np.maximum(np.linalg.norm(watched, axis=0), 1e-9)
    return (watched.T @ watched) / np.outer(norms, norms)


def test_last_items_knn_by_hand(data):
    # Viewers: 10 of users 1, 2, 3; 20 of 1, 2; 30 of 2, 4; 40 of none.
    with_10 = np.array([1, 2 / np.sqrt(6), 1 / np.sqrt(6), 0])
    with_20 = np.array([2 / np.sqrt(6), 1, 1 / 2, 0])
    with_30 = np.array([1 / np.sqrt(6), 1 / 2, 1, 0])
    scores = last_items_knn(data)(ALL)
    assert scores.dtype == np.float32
    assert scores[0] == pytest.approx(with_20 + with_10)
    assert scores[1] == pytest.approx(2 * with_30)  # 99 is not in the catalogue
    assert scores[2] == pytest.approx(np.zeros(4))  # 10 is the sixth from the end
    assert scores[4] == pytest.approx(np.zeros(4))  # no history
    assert last_items_knn(data)(slice(1, 2))[0] == pytest.approx(scores[1])


def test_repeated_watches_count_once_in_the_similarity(data):
    repeated = np.array([*WATCHES, (1, 10), (1, 10)])
    repeated = repeated[np.argsort(repeated[:, 0], kind="stable")]
    before = last_items_knn(data)(ALL)
    data.watches = {"user_id": repeated[:, 0], "video_id": repeated[:, 1]}
    assert user_video_matrix(data)[1].max() == 3
    assert last_items_knn(data)(ALL) == pytest.approx(before)


@pytest.mark.parametrize("at_once", [1, 70, 10_000])
def test_similarity_in_blocks_equals_the_dense_one(monkeypatch, at_once):
    monkeypatch.setattr(candidate_baselines, "SIMILARITIES_AT_ONCE", at_once)
    watched = (np.random.default_rng(0).random((40, 23)) < 0.2).astype(np.float32)
    similarity = item_similarity(candidate_baselines.sparse.csr_array(watched))
    assert similarity.toarray() == pytest.approx(cosines(watched), abs=1e-6)


def test_the_strongest_similarities_are_kept(monkeypatch):
    monkeypatch.setattr(candidate_baselines, "SIMILARITIES_KEPT", 23 * 4)
    watched = (np.random.default_rng(0).random((40, 23)) < 0.4).astype(np.float32)
    similarity = item_similarity(candidate_baselines.sparse.csr_array(watched)).toarray()
    exact = cosines(watched)
    assert ((similarity > 0).sum(axis=1) == 4).all()
    assert np.sort(similarity, axis=1)[:, -4:] == pytest.approx(np.sort(exact, axis=1)[:, -4:], abs=1e-6)
    assert similarity[similarity > 0] == pytest.approx(exact[similarity > 0], abs=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_can_be_evaluated(data, name):
    ranks = evaluate_retrieval(data, BASELINES[name](data)).ranks
    assert ((ranks >= 1) & (ranks <= 4)).all()
