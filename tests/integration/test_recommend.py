"""`recommend` on a real Triton: one release of models trained on the small log."""

import asyncio
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
import torch

from watchrank.deployment.deploy import deploy
from watchrank.deployment.local_server import LocalTriton
from watchrank.export.recommend import ReleaseGraphs
from watchrank.export.video_features import videos_of
from watchrank.feature_store import materialise, online_user_features, online_video_features, push
from watchrank.models.ranking import Answers
from watchrank.schema import PAD_ID, USER_ACTIVITY, WATCH_HISTORY
from watchrank.serving.client import TritonClient
from watchrank.serving.question import Question
from watchrank.serving.recommend import Recommender
from watchrank.training import candidate_generation, ranking

NOW = int(datetime(2026, 1, 8, 12, tzinfo=UTC).timestamp())
UNKNOWN = 10**12
K = 50
"""Candidates of the small release."""


@pytest.fixture(scope="module")
def server(triton_venv, released, tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    with LocalTriton(
        venv=triton_venv, repository=repository, state=tmp_path_factory.mktemp("state")
    ) as running:
        deploy(released, repository, running.settings)
        yield running


@pytest.fixture(scope="module")
def store(prepared):
    materialise(prepared.store, datetime.now(UTC))
    return prepared.store


@pytest.fixture
def ask(server, store):
    """Return a function that asks for users and returns their answers."""

    def ask(*user_ids, **question):
        async def once():
            async with TritonClient(server.settings) as client:
                return await Recommender(store, client).recommend(user_ids, Question(now=NOW, **question))

        return asyncio.run(once())

    return ask


@pytest.fixture
def infer(server, store):
    """Return a function that asks the endpoint for one user, with some tensors changed."""

    def infer(user_id=1, **changes):
        request = online_user_features(store, [user_id]) | Question(now=NOW).tensors(1)
        request |= {name: np.asarray(value) for name, value in changes.items()}

        async def once():
            async with TritonClient(server.settings) as client:
                return await client.infer("recommend", request)

        return {name: value[0] for name, value in asyncio.run(once()).items()}

    return infer


class OfflinePipeline:
    """The trained torch models, one after the other, on Feast's features."""

    def __init__(self, place, store):
        self.tower = candidate_generation.load_model(place.candidate_model)
        self.ranker = Answers(ranking.load_model(place.model)).eval()
        self.store = store

    @torch.no_grad()
    def recommend(self, user_ids):
        """Return ids [n, K] and seconds [n, K], best first."""
        users = online_user_features(self.store, user_ids) | {"example_age": np.zeros((len(user_ids), 1))}
        users = {name: torch.tensor(value) for name, value in users.items()}
        users["example_age"] = users["example_age"].float()
        scores = torch.nn.functional.pad(self.tower(users) @ self.tower.vectors.T, (1, 0))
        scores.scatter_(1, self.tower.vocabulary(users["watched_video_ids"]), -torch.inf)
        best = scores[:, 1:].topk(K).indices
        videos = self.tower.vocabulary.keys[best]
        features = online_video_features(self.store, videos.ravel().tolist())
        x = {name: torch.from_numpy(value).view(len(user_ids), K) for name, value in features.items()}
        now = Question(now=NOW).tensors(len(user_ids))
        x |= users | {name: torch.from_numpy(now[name]) for name in ("now", "surface")}
        seconds = self.ranker({name: x[name] for name in self.ranker.model.inputs.input_names})[..., 0]
        seconds, order = torch.sort(seconds, dim=1, descending=True, stable=True)
        return videos.gather(1, order).numpy(), seconds.numpy()


def test_a_thousand_users_get_what_the_offline_pipeline_gives(server, store, trained):
    random = np.random.default_rng(0)
    users = [*random.permutation(300).tolist() * 3, *range(UNKNOWN, UNKNOWN + 100)]
    batches = np.split(np.array(users), np.sort(random.choice(np.arange(1, 1_000), 60, replace=False)))

    async def ask_all():
        async with TritonClient(server.settings) as client:
            recommender = Recommender(store, client)
            question = Question(k=K, now=NOW)
            asked = [recommender.recommend(batch.tolist(), question) for batch in batches]
            return [answer for part in await asyncio.gather(*asked) for answer in part]

    answers = asyncio.run(ask_all())
    assert [answer.user_id for answer in answers] == users
    ids, seconds = OfflinePipeline(trained.place, store).recommend(users)
    np.testing.assert_allclose([a.expected_watch_seconds for a in answers], seconds, rtol=1e-4)
    swapped = np.array([answer.video_ids for answer in answers]) != ids
    gaps = np.abs(np.diff(seconds, axis=1)) / seconds[:, 1:]
    near = np.pad(gaps, ((0, 0), (1, 0)), constant_values=1) < 1e-4
    near |= np.pad(gaps, ((0, 0), (0, 1)), constant_values=1) < 1e-4
    assert not (swapped & ~near).any()
    assert swapped.mean() < 0.01


def test_answers_are_sorted_and_hold_no_watched_or_excluded_video(ask, store):
    (first,) = ask(1, k=20)
    (answer,) = ask(1, k=20, excluded=first.video_ids[:5])
    watched = online_user_features(store, [1])["watched_video_ids"][0].tolist()
    assert answer.expected_watch_seconds == sorted(answer.expected_watch_seconds, reverse=True)
    assert len(set(answer.video_ids)) == 20
    assert not {*watched, *first.video_ids[:5]} & set(answer.video_ids)
    assert set(first.video_ids[5:]) <= set(answer.video_ids)


def test_an_unknown_user_is_answered_as_a_newcomer(ask):
    known, first, second = ask(1, UNKNOWN, UNKNOWN + 1, k=10)
    assert first.video_ids == second.video_ids != known.video_ids
    assert len(first.video_ids) == 10


def test_k_beyond_what_is_ranked_gives_what_there_is(ask):
    (answer,) = ask(1, k=10_000)
    assert len(answer.video_ids) == K


def test_a_user_for_whom_everything_is_excluded_gets_an_empty_answer(ask, released):
    everything = videos_of(released / "video_features" / "model.onnx").tolist()
    (nothing,) = ask(1, k=10, excluded=everything)
    assert (nothing.video_ids, nothing.expected_watch_seconds) == ([], [])
    (few,) = ask(UNKNOWN, k=10, excluded=everything[3:])
    assert set(few.video_ids) <= set(everything[:3])


EXTREMES = {
    "unseen videos in the history": {"watched_video_ids": np.full((1, WATCH_HISTORY), 2**61)},
    "NaN": {"age": np.full((1, 1), np.nan, np.float32), "example_age": np.full((1, 1), np.nan, np.float32)},
    "infinite": {
        "age": np.full((1, 1), np.inf, np.float32),
        "diversity": np.full((1, 1), np.inf, np.float32),
    },
    "the largest integers": {
        name: np.full((1, 1), np.iinfo(np.int64).max) for name in ("now", "signup_time", "k", "channel_limit")
    },
    "the smallest integers": {
        name: np.full((1, 1), np.iinfo(np.int64).min) for name in ("now", "signup_time", "surface")
    },
}


@pytest.mark.parametrize("case", EXTREMES)
def test_extreme_values_get_a_finite_sorted_answer(infer, case):
    answer = infer(**EXTREMES[case])
    videos, seconds = answer["video_ids"], answer["expected_watch_time"]
    places = (videos != PAD_ID).sum()
    assert places >= 10
    assert np.isfinite(seconds).all()
    assert (np.diff(seconds[:places]) <= 0).all() or case == "infinite"
    assert len(set(videos[:places].tolist())) == places


def test_k_0_gets_nothing(infer):
    assert (infer(k=[[0]])["video_ids"] == PAD_ID).all()


def test_diversity_and_a_limit_of_channels_change_the_answer_inside_the_call(ask, store):
    (plain,) = ask(1, k=15)
    (diverse,) = ask(1, k=15, diversity=0.7)
    (limited,) = ask(1, k=15, channel_limit=1)
    assert plain.video_ids != diverse.video_ids
    channels = online_video_features(store, limited.video_ids)["channel_id"]
    assert len(set(channels.tolist())) == 15
    before = online_video_features(store, plain.video_ids)["channel_id"]
    assert len(set(before.tolist())) < 15


def test_the_graphs_here_answer_as_triton_does(server, store, released):
    request = online_user_features(store, list(range(40))) | Question(now=NOW, diversity=0.3).tensors(40)
    here = ReleaseGraphs(released).run("recommend", request)

    async def once():
        async with TritonClient(server.settings) as client:
            return await client.infer("recommend", request)

    there = asyncio.run(once())
    np.testing.assert_array_equal(there["release"], int(released.name))
    np.testing.assert_allclose(there["expected_watch_time"], here["expected_watch_time"], rtol=1e-4)
    assert (there["video_ids"] == here["video_ids"]).mean() > 0.99


def test_the_single_models_can_be_asked_alone(server, store):
    users = online_user_features(store, [1, 2])
    question = Question(now=NOW).tensors(2)
    tower = {name: question[name] for name in ("example_age", "excluded_video_ids")}

    async def ask():
        async with TritonClient(server.settings) as client:
            found = await client.infer("candidate_generation", users | tower)
            videos = found["video_ids"][:, :7]
            features = online_video_features(store, videos.ravel().tolist())
            slates = {name: value.reshape(2, 7) for name, value in features.items()}
            context = {name: question[name] for name in ("now", "surface")}
            return found, await client.infer("ranking", users | slates | context)

    found, ranked = asyncio.run(ask())
    assert found["video_ids"].shape == (2, K)
    assert (np.diff(found["scores"], axis=1) <= 0).all()
    assert ranked["expected_watch_time"].shape == (2, 7)


def test_a_watch_changes_the_next_answer_of_its_user_only(ask, store):
    """A stream's newest activity is pushed to Feast's online store; no release, no other user is touched."""
    mine, other = ask(7, 8, k=10)
    activity = {name: value[0] for name, value in online_user_features(store, [7]).items()}
    row = {column.name: activity[column.name].tolist() for column in USER_ACTIVITY.columns}
    seen = mine.video_ids[0]
    front = {
        "watched_video_ids": seen,
        "watched_channel_ids": int(online_video_features(store, [seen])["channel_id"][0]),
        "watched_times": NOW - 60,
        "watched_seconds": 90.0,
        "impression_video_ids": seen,
    }
    row |= {name: [value, *row[name]][: len(row[name])] for name, value in front.items()}
    push(store, USER_ACTIVITY, pd.DataFrame([{"user_id": 7, **row}]), datetime.now(UTC))
    mine_after, other_after = ask(7, 8, k=10)
    assert seen not in mine_after.video_ids
    assert mine_after.video_ids != mine.video_ids[1:]
    assert other_after == other
