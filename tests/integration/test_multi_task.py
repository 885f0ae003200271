"""A release whose ranker has several tasks, on a real Triton."""

import asyncio
import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from watchrank.config import RankingSettings, TaskSettings, TrainingSettings
from watchrank.datasets.batches import RankingBatches
from watchrank.datasets.ranking import RankingDataset
from watchrank.deployment.deploy import deploy
from watchrank.deployment.local_server import LocalTriton
from watchrank.errors import InputError
from watchrank.export.release import Trained, export_release
from watchrank.feature_store import materialise
from watchrank.models.ranking import Answers
from watchrank.serving.client import TritonClient
from watchrank.serving.question import Question
from watchrank.serving.recommend import Recommender
from watchrank.training.ranking import load_model, train_ranking

NOW = int(datetime(2026, 1, 8, 12, tzinfo=UTC).timestamp())
TASKS = (
    TaskSettings(name="click", kind="binary", label="clicked"),
    TaskSettings(name="watch_time", kind="watch_time", label="watch_seconds"),
    TaskSettings(name="like", kind="binary", label="liked"),
)
LIKE_SECONDS = 100.0
"""What a like is worth in the release."""


@pytest.fixture(scope="module")
def folder(released, prepared, tmp_path_factory):
    """The ranker."""
    ranking = RankingSettings(
        model="mmoe", tasks=TASKS, quantiles=16, experts=3, expert_hidden=(32,), position_bias=True
    )
    output = tmp_path_factory.mktemp("mmoe") / "model"
    train_ranking(prepared.place.dataset, output, ranking, TrainingSettings(epochs=2, batch_size=1_024))
    return output


@pytest.fixture(scope="module")
def server(triton_venv, released, folder, prepared, tmp_path_factory):
    place, config = prepared.place, prepared.config
    trained = Trained(
        ranking=folder,
        dataset=place.dataset,
        candidates=place.candidate_model,
        candidate_dataset=place.candidate_dataset,
    )
    export = config.export.model_copy(update={"score_weights": {"watch_time": 1.0, "like": LIKE_SECONDS}})
    releases = tmp_path_factory.mktemp("releases")
    shutil.copytree(released, releases / released.name)
    release = export_release(trained, prepared.store, {"models": {}}, releases, config.index, export)
    materialise(prepared.store, datetime.now(UTC))
    repository, state = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("state")
    with LocalTriton(venv=triton_venv, repository=repository, state=state) as running:
        deploy(released, repository, running.settings)  # a release of one task serves before
        deploy(release, repository, running.settings.model_copy(update={"keep_releases": 1}))
        yield running


@pytest.fixture
def ask(server, prepared):
    def ask(*user_ids, **question):
        async def once():
            async with TritonClient(server.settings) as client:
                recommender = Recommender(prepared.store, client)
                return await recommender.recommend(user_ids, Question(now=NOW, **question))

        return asyncio.run(once())

    return ask


@torch.no_grad()
def test_ranking_answers_each_task_as_the_model_does(server, folder, prepared):
    model, test = load_model(folder), RankingDataset.open(prepared.place.dataset).split("test")
    batch = RankingBatches(test, model.inputs.input_names, 1).read(np.arange(200))
    click, seconds, like = Answers(model)(batch.features).unbind(-1)
    request = {name: value.numpy() for name, value in batch.features.items()}
    weights = {"click_weight": 7.0, "like_weight": -3.0}
    own = {name: np.full((200, 1), value, np.float32) for name, value in weights.items()}

    async def infer(rows, **more):
        async with TritonClient(server.settings) as client:
            parts = [client.infer("ranking", {k: v[i] for k, v in (request | more).items()}) for i in rows]
            return await asyncio.gather(*parts)

    rows = np.array_split(np.arange(200), 9)
    for more, score in (
        ({}, seconds + LIKE_SECONDS * like),
        (own, 7 * click + seconds - 3 * like),
    ):
        parts = asyncio.run(infer(rows, **more))
        answer = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for name, expected in {
            "click_probability": click,
            "expected_watch_time": seconds,
            "like_probability": like,
            "score": score,
        }.items():
            np.testing.assert_allclose(answer[name], expected.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)


def test_recommend_ranks_by_the_score_and_tells_each_answer(ask):
    for answer in ask(1, 2, 10**12, k=20):
        told = {name: np.array(values) for name, values in answer.answers.items()}
        assert list(told) == ["click_probability", "like_probability", "score"]
        assert all(len(values) == len(answer.video_ids) == 20 for values in told.values())
        expected = np.array(answer.expected_watch_seconds) + LIKE_SECONDS * told["like_probability"]
        np.testing.assert_allclose(told["score"], expected, rtol=1e-4)
        assert (np.diff(told["score"]) <= 0).all()


def test_a_request_weighs_the_tasks_anew(ask):
    (by_release,) = ask(1, k=20)
    (by_click,) = ask(1, k=20, score_weights={"click": 1.0, "watch_time": 0.0, "like": 0.0})
    assert by_click.answers["score"] == by_click.answers["click_probability"]
    assert by_click.answers["score"] == sorted(by_click.answers["score"], reverse=True)
    assert by_click.video_ids != by_release.video_ids
    (least,) = ask(1, k=50, score_weights={"click": -1.0, "watch_time": 0.0, "like": 0.0})
    (most,) = ask(1, k=50, score_weights={"click": 1.0, "watch_time": 0.0, "like": 0.0})
    assert least.answers["score"][0] <= 0
    assert least.video_ids[0] == most.video_ids[-1], "negative scores are in order, too"
    (diverse,) = ask(1, k=20, diversity=0.5)
    assert diverse.video_ids[0] == by_release.video_ids[0]
    assert diverse.video_ids != by_release.video_ids


def test_a_weight_of_no_task_is_refused(ask):
    with pytest.raises(InputError, match="'share_weight' is no input"):
        ask(1, score_weights={"share": 1.0})
    with pytest.raises(InputError, match="weight of like is nan; give a number"):
        ask(1, score_weights={"like": float("nan")})
