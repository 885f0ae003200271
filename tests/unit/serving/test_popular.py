import json
import logging

import numpy as np
import pytest

from watchrank.deployment.model_repository import point
from watchrank.errors import DeploymentError, InputError
from watchrank.feature_store import newcomer_features
from watchrank.releases import checksums
from watchrank.schema import USER_TENSORS, text_id
from watchrank.serving.features import is_known
from watchrank.serving.popular import PopularVideos
from watchrank.serving.question import Question
from watchrank.workspace import Workspace

GERMAN = text_id("de")


def release(folder, number, popular):
    """Write a release that holds popular videos alone."""
    place = folder / f"{number:06d}"
    place.mkdir(parents=True)
    (place / "popular.json").write_text(json.dumps(popular))
    manifest = {"release": number, "endpoints": [], "files": checksums(place)}
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


@pytest.fixture
def releases(tmp_path):
    release(tmp_path, 1, {"all": [1, 2, 3, 4, 5, 6], str(GERMAN): [4, 9]})
    release(tmp_path, 2, {"all": [20, 21]})
    return tmp_path


def users(**changes):
    """Features of three newcomers, with some changed."""
    return {name: values.copy() for name, values in newcomer_features(3).items()} | changes


def videos(popular, **question):
    features = users(user_language=np.array([[GERMAN], [-1], [text_id("fr")]]))
    features["watched_video_ids"][1, :2] = [1, 3]
    return [answer.video_ids for answer in popular.recommend([7, 8, 9], Question(**question), features)]


def test_the_videos_of_the_language_come_first_and_watched_ones_not_at_all(releases):
    popular = PopularVideos([releases], serving=1)
    assert videos(popular, k=4) == [[4, 9, 1, 2], [2, 4, 5, 6], [1, 2, 3, 4]]
    assert videos(popular, k=4, excluded=[4, 1]) == [[9, 2, 3, 5], [2, 5, 6], [2, 3, 5, 6]]
    answer = popular.recommend([7, 8, 9], Question(), users())[2]
    assert (answer.user_id, answer.release, answer.fallback) == (9, 1, "triton")
    assert answer.expected_watch_seconds == answer.candidate_scores == []


def test_the_newest_release_stands_in_until_one_serves(releases):
    popular = PopularVideos([releases / "none", releases])
    assert popular.release == 2
    popular.follow(1)
    assert (popular.release, popular.follows(1), popular.follows(2)) == (1, True, False)


def test_a_release_that_is_away_or_damaged_leaves_the_one_before(releases, caplog):
    popular = PopularVideos([releases], serving=1)
    popular.follow(3)
    assert (popular.release, popular.follows(3)) == (1, True)
    (releases / "000002" / "popular.json").write_text('{"all": [66]}')
    with caplog.at_level(logging.WARNING):
        popular.follow(2)
    assert popular.release == 1
    assert "popular.json is not the file of its manifest" in caplog.text


@pytest.mark.parametrize("popular", [{"en": [1]}, {"all": ["x"]}, [1]])
def test_what_is_not_as_a_release_has_it_is_refused(tmp_path, popular):
    release(tmp_path, 1, popular)
    assert PopularVideos([tmp_path]).release is None


def test_nothing_known_is_told():
    with pytest.raises(DeploymentError, match="No popular videos are known"):
        PopularVideos().recommend([1], Question(), users())


def test_a_workspace_prefers_what_its_model_repository_serves(tmp_path):
    place = Workspace(tmp_path)
    for number in (1, 2, 3):
        release(place.releases, number, {"all": [number]})
    assert PopularVideos.of(place).release == 3
    model = place.model_repository / "recommend_000002"
    model.mkdir(parents=True)
    (model / "config.pbtxt").write_text('name: "recommend_000002"\nmax_batch_size: 64\n')
    point("recommend", 2, place.model_repository)
    assert PopularVideos.of(place).release == 2


def test_a_newcomer_is_one_of_whom_nothing_is_known():
    for tensor in USER_TENSORS:
        features = users()
        assert not is_known(features).any()
        features[tensor.name][1, -1] = 5
        assert is_known(features).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ({"excluded": [2**63]}, f"excluded has {2**63}; give whole numbers from 0 to {2**63 - 1}"),
        ({"excluded": [1, -1]}, "excluded has -1"),
        ({"k": 2**63}, "k has 9223372036854775808"),
        ({"now": -1}, "now has -1"),
        ({"channel_limit": 2**64}, "channel_limit has"),
        ({"surface": "\ud800"}, "no printable text"),
        ({"score_weights": {"like": float("nan")}}, "weight of like is nan"),
        ({"score_weights": {"like": 1e39}}, r"weight of like is 1e\+39; give a number up to 3.4e\+38"),
        ({"diversity": float("nan")}, "diversity is nan"),
    ],
)
def test_a_question_without_an_answer_is_refused(question, sentence):
    with pytest.raises(InputError, match=sentence):
        Question(**question)
