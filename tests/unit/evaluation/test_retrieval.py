from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from watchrank.evaluation import retrieval
from watchrank.evaluation.retrieval import evaluate_retrieval, positions


@dataclass
class Dataset:
    videos: dict
    watches: dict
    users: dict
    test: dict

    def split(self, name):
        return {"test": self.test}[name]


def dataset(catalogue, watches, test, histories=None):
    """`watches` are pairs of user and video, `test` maps a user to its target."""
    user, video = np.array(sorted(watches)).reshape(-1, 2).T
    history = np.full((len(test), 50), -1)
    for row, seen in enumerate(histories or ()):
        history[row, : len(seen)] = seen
    return Dataset(
        videos={"video_id": np.array(catalogue)},
        watches={"user_id": user, "video_id": video, "timestamp_us": np.arange(len(user))},
        users={"user_id": np.unique(user)},
        test={
            "user_id": np.array(list(test)),
            "video_id": np.array(list(test.values())),
            "watched_video_ids": history,
        },
    )


def scorer_of(scores):
    table = np.array(scores, dtype=np.float32)
    table.flags.writeable = False
    return lambda rows: table[rows]


CATALOGUE = (10, 20, 30, 40, 50)


def test_seen_videos_are_no_candidates():
    # User 1 saw 10 and 30 (watches), user 2 saw 50 (its history only). Left to rank, best first:
    # user 1: 20, 40, 50 with target 40 -> 2; user 2: 40, 30, 20, 10 with target 10 -> 4.
    data = dataset(CATALOGUE, [(1, 10), (1, 30)], {1: 40, 2: 10}, [[], [50]])
    result = evaluate_retrieval(data, scorer_of([[5, 4, 3, 2, 1], [1, 2, 3, 4, 5]]))
    assert result.ranks.tolist() == [2, 4]
    assert result.metrics["map"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert result.metrics["ndcg@10"] == pytest.approx((1 / np.log2(3) + 1 / np.log2(5)) / 2)
    assert result.metrics["recall@10"] == 1


def test_a_target_that_was_seen_stays_a_candidate():
    # 40 is the target and was seen, in both places; 10 was seen and is higher.
    data = dataset(CATALOGUE, [(1, 10), (1, 40)], {1: 40}, [[40, 10]])
    assert evaluate_retrieval(data, scorer_of([[5, 4, 3, 2, 1]])).ranks.tolist() == [3]


def test_padding_and_unknown_ids_exclude_nothing():
    data = dataset(CATALOGUE, [(1, 11), (2, 99)], {1: 50}, [[-1, 7, 60]])
    assert evaluate_retrieval(data, scorer_of([[5, 4, 3, 2, 1]])).ranks.tolist() == [5]


def test_equal_scores_bring_no_luck():
    # 10 was seen; the other four are tied on ranks 1 to 4.
    data = dataset(CATALOGUE, [(1, 10)], {1: 30, 2: 30})
    result = evaluate_retrieval(data, scorer_of([[7] * 5, [9, 7, 7, 1, 1]]))
    assert result.ranks.tolist() == [2.5, 2.5]


def test_a_target_outside_the_catalogue_is_never_found():
    data = dataset(CATALOGUE, [(1, 10)], {1: 35, 2: 20})
    metrics, ranks = evaluate_retrieval(data, scorer_of([[1, 9, 9, 1, 1]] * 2))
    assert ranks.tolist() == [np.inf, 1.5]
    assert metrics["recall@200"] == 0.5
    assert metrics["map"] == pytest.approx(1 / 1.5 / 2)
    assert metrics["ndcg@100"] == pytest.approx(1 / np.log2(2.5) / 2)


def test_recall_at_each_cutoff():
    ranks = np.array([1, 10, 10.5, 50, 100, 101, 200, 201, np.inf, 3])
    metrics = retrieval.rank_metrics(ranks)
    assert [metrics[f"recall@{k}"] for k in (10, 50, 100, 200)] == [0.3, 0.5, 0.6, 0.8]
    assert metrics["ndcg@10"] == pytest.approx((1 + 1 / np.log2(11) + 0.5) / 10)


def test_coverage_and_novelty_by_hand(monkeypatch):
    monkeypatch.setattr(retrieval, "TOP", 2)
    # Watches: 10 four times, 20 three, 30 once; 40 and 50 never, which counts as once.
    watches = [(3, 10), (4, 10), (5, 10), (6, 10), (3, 20), (4, 20), (5, 20), (3, 30)]
    data = dataset(CATALOGUE, watches, {1: 50, 3: 50})
    metrics = evaluate_retrieval(data, scorer_of([[9, 8, 1, 1, 0], [9, 8, 7, 2, 1]])).metrics
    # User 1 is given 10 and 20; user 3 has seen 10, 20, 30 and is given 40 and 50.
    assert metrics["coverage@2"] == pytest.approx(4 / 5)
    assert metrics["novelty@2"] == pytest.approx((1 + np.log2(8 / 3) + 3 + 3) / 4)


def test_a_user_who_saw_nearly_all_is_given_only_the_rest():
    data = dataset(CATALOGUE, [(1, 10), (1, 20), (1, 30)], {1: 50})
    metrics = evaluate_retrieval(data, scorer_of([[9, 8, 7, 2, 1]])).metrics
    assert metrics["coverage@100"] == pytest.approx(2 / 5)


def brute_ranks(data, scores):
    ranks = []
    for row, (user, target) in enumerate(zip(data.test["user_id"], data.test["video_id"], strict=True)):
        seen = set(data.watches["video_id"][data.watches["user_id"] == user])
        seen |= set(data.test["watched_video_ids"][row])
        left = [i for i, v in enumerate(data.videos["video_id"]) if v not in seen - {target}]
        order = dict(zip(left, stats.rankdata([-scores[row, i] for i in left]), strict=True))
        ranks.append(order[list(data.videos["video_id"]).index(target)])
    return ranks


@pytest.mark.parametrize("at_once", [1, 100, 10_000])
def test_chunks_of_any_size_equal_one_user_after_the_other(monkeypatch, at_once):
    monkeypatch.setattr(retrieval, "TOP", 2)
    rng = np.random.default_rng(0)
    catalogue = np.unique(rng.integers(0, 200, 40))
    pairs = np.column_stack([rng.integers(0, 25, 300), rng.choice(catalogue, 300)]).tolist()
    test = {int(user): int(rng.choice(catalogue)) for user in rng.permutation(30)}
    data = dataset(catalogue, pairs, test, [list(rng.choice(catalogue, 3)) for _ in test])
    scores = rng.integers(0, 6, (len(test), len(catalogue))).astype(np.float32)
    in_one_chunk = evaluate_retrieval(data, lambda rows: scores[rows])
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", at_once)
    asked = []
    result = evaluate_retrieval(data, lambda rows: asked.append(rows) or scores[rows])
    assert result.ranks.tolist() == brute_ranks(data, scores)
    assert result.metrics == in_one_chunk.metrics
    assert len(asked) == -(-len(test) // max(at_once // len(catalogue), 1))


def test_the_scores_are_not_written_to():
    data = dataset(CATALOGUE, [(1, 10)], {1: 40})
    scores = np.ones((1, 5), dtype=np.float32)
    evaluate_retrieval(data, lambda rows: scores[rows])
    assert (scores == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    data = dataset(CATALOGUE, [(1, 10)], {1: 40})
    with pytest.raises(ValueError, match="NaN or infinite"):
        evaluate_retrieval(data, scorer_of([[1, 2, 3, bad, 5]]))


def test_scores_of_a_wrong_shape_are_refused():
    data = dataset(CATALOGUE, [(1, 10)], {1: 40})
    with pytest.raises(ValueError, match=r"\(1, 4\).*\(1, 5\)"):
        evaluate_retrieval(data, scorer_of([[1, 2, 3, 4]]))


def test_a_split_without_rows_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        evaluate_retrieval(dataset(CATALOGUE, [(1, 10)], {}), scorer_of(np.empty((0, 5))))


def test_an_empty_catalogue_is_refused():
    with pytest.raises(ValueError, match="no videos"):
        evaluate_retrieval(dataset((), [(1, 10)], {1: 10}), scorer_of(np.empty((1, 0))))


def test_positions():
    assert positions(np.array([2, 5, 9]), np.array([[9, -1], [5, 10]])).tolist() == [[2, -1], [1, -1]]
    assert positions(np.array([], dtype=int), np.array([3])).tolist() == [-1]
