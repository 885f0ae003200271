"""Text matching on a real Triton: alone, and as the second source of `recommend`."""

import asyncio
import json
import shutil
import urllib.error
import urllib.request
from datetime import UTC, datetime
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import pytest

from watchrank import events as event_files
from watchrank.config import TextSettings, TextTrainingSettings, TrainingSettings
from watchrank.datasets.searches import SearchDataset, build_search_dataset
from watchrank.deployment import model_repository
from watchrank.deployment.deploy import deploy
from watchrank.deployment.local_server import LocalTriton
from watchrank.engine import connect
from watchrank.errors import DeploymentError
from watchrank.export.recommend import ReleaseGraphs
from watchrank.export.release import Trained, export_release
from watchrank.feature_store import materialise, online_user_features, push
from watchrank.models.text.tokens import query_ids
from watchrank.schema import USER_SEARCH
from watchrank.serving.client import TritonClient
from watchrank.serving.question import Question
from watchrank.serving.recommend import Recommender
from watchrank.serving.search import search
from watchrank.training.candidate_generation import load_model as load_tower
from watchrank.training.ranking import train_ranking
from watchrank.training.text_matching import load_model, title_vectors, train_text

pytestmark = pytest.mark.slow  # a minute and more

NOW = int(datetime(2026, 1, 8, 12, tzinfo=UTC).timestamp())


@pytest.fixture(scope="module")
def made(released, prepared, tmp_path_factory):
    """A folder with the search dataset, the text model and a release with them."""
    place, config, folder = prepared.place, prepared.config, tmp_path_factory.mktemp("text")
    settings = TextSettings(tower="bag_of_words", width=64, dim=32)
    build_search_dataset(place.events, folder / "dataset", settings, config.split)
    training = TextTrainingSettings(epochs=4, batch_size=64)
    train_text(folder / "dataset", folder / "model", settings, training)
    trained = Trained(
        ranking=place.model,
        dataset=place.dataset,
        candidates=place.candidate_model,
        candidate_dataset=place.candidate_dataset,
        text=folder / "model",
        search_dataset=folder / "dataset",
    )
    shutil.copytree(released, folder / "releases" / released.name)
    index = config.index.model_copy(update={"search_k": 20})
    export_release(trained, prepared.store, {"models": {}}, folder / "releases", index, config.export)
    return folder


@pytest.fixture(scope="module")
def titles(prepared):
    con = connect(prepared.config.engine)
    rows = event_files.videos(con, prepared.place.events).select("video_id", "title").to_pandas()
    con.disconnect()
    return dict(zip(rows["video_id"], rows["title"], strict=True))


@pytest.fixture(scope="module")
def server(triton_venv, made, prepared, tmp_path_factory):
    materialise(prepared.store, datetime.now(UTC))
    repository, state = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("state")
    with LocalTriton(venv=triton_venv, repository=repository, state=state) as running:
        deploy(made / "releases" / "000002", repository, running.settings)
        yield running


def asking(server, question):
    """Run an asynchronous function of a client."""

    async def once():
        async with TritonClient(server.settings) as client:
            return await question(client)

    return asyncio.run(once())


def recommend(server, store, user_id, **question):
    answers = asking(
        server, lambda client: Recommender(store, client).recommend([user_id], Question(now=NOW, **question))
    )
    return answers[0]


def push_search(store, user_id, query, time):
    row = {"user_id": user_id, "last_search_time": time, "search_ngram_ids": query_ids([query])[0].tolist()}
    push(store, USER_SEARCH, pd.DataFrame([row]), datetime.now(UTC))


def test_a_title_is_found_by_its_words_as_the_model_scores_it(server, made, titles):
    model = load_model(made / "model")
    ids, _ = title_vectors(model, SearchDataset.open(made / "dataset"))
    queries = [titles[video] for video in ids[:40]]
    found = asking(server, lambda client: search(client, queries, 20))
    assert [answer.query for answer in found] == queries
    hits = [video in answer.video_ids for video, answer in zip(ids[:40].tolist(), found, strict=True)]
    assert np.mean(hits) > 0.9
    graphs = ReleaseGraphs(made / "releases" / "000002")
    for query, answer in zip(queries, found, strict=True):
        assert answer.scores == sorted(answer.scores, reverse=True)
        x = {"search_ngram_ids": query_ids([query])}
        nothing = np.full((1, 50), -1)
        x |= {"watched_video_ids": nothing, "excluded_video_ids": nothing[:, :1]}
        here = graphs.run("text_match", x)["scores"][0]
        np.testing.assert_allclose(answer.scores, here, rtol=1e-4, atol=1e-5)


def test_a_recent_search_brings_candidates_that_the_tower_did_not(server, prepared, made, titles):
    store, user = prepared.store, 7
    push_search(store, user, "nothing of the kind", NOW - 10**7)
    before = recommend(server, store, user, k=50)
    assert set(before.answers["from_search"]) == {0.0}, "that search was long ago"
    unseen = next(video for video in titles if video not in before.video_ids)
    push_search(store, user, titles[unseen], NOW - 60)
    after = recommend(server, store, user, k=50)
    by_search = {
        video for video, found in zip(after.video_ids, after.answers["from_search"], strict=True) if found
    }
    assert by_search
    assert not by_search & set(before.video_ids)
    assert after.expected_watch_seconds == sorted(after.expected_watch_seconds, reverse=True)
    assert online_user_features(store, [user])["last_search_time"][0, 0] == NOW - 60


def test_recommend_is_what_its_graphs_answer_in_one_process(server, prepared, made):
    users = list(range(40))
    graphs = ReleaseGraphs(made / "releases" / "000002")
    x = online_user_features(prepared.store, users) | Question(now=NOW, k=30).tensors(40)
    here = graphs.run("recommend", {name: x[name] for name in graphs.inputs("recommend")})
    there = asking(
        server, lambda client: Recommender(prepared.store, client).recommend(users, Question(now=NOW, k=30))
    )
    assert sum(here["from_search"].sum(1) > 0) > 0, "some user searched on the last day"
    for row, answer in enumerate(there):
        np.testing.assert_allclose(
            answer.expected_watch_seconds, here["expected_watch_time"][row, :30], rtol=1e-4
        )


def test_a_release_without_text_matching_closes_the_endpoint(triton_venv, made, prepared, tmp_path):
    with LocalTriton(venv=triton_venv, repository=tmp_path / "m", state=tmp_path / "s") as running:
        deploy(made / "releases" / "000002", tmp_path / "m", running.settings)
        assert "text_match" in model_repository.endpoints(tmp_path / "m")
        assert asking(running, lambda client: search(client, ["a"], 1))
        deploy(made / "releases" / "000001", tmp_path / "m", running.settings)
        assert "text_match" not in model_repository.endpoints(tmp_path / "m")
        with pytest.raises(
            DeploymentError, match=r"does not serve this model .* deploy a release that has it"
        ):
            asking(running, lambda client: search(client, ["a"], 1))
        assert recommend(running, prepared.store, 3).answers == {}
        deploy(made / "releases" / "000002", tmp_path / "m", running.settings)
        assert "from_search" in recommend(running, prepared.store, 3).answers


def test_the_service_answers_a_query(serving, server, prepared, made, titles, tmp_path):
    title = next(iter(titles.values()))
    with serving(prepared.store, server.settings, tmp_path / "log") as url:
        with urllib.request.urlopen(f"{url}/search?{urlencode({'query': title, 'k': 5})}") as answer:
            found = json.loads(answer.read())
        assert found["query"] == title
        assert len(found["video_ids"]) == len(found["scores"]) == 5
        (expected,) = asking(server, lambda client: search(client, [title], 5))
        assert found["video_ids"] == expected.video_ids
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}/search?{urlencode({'query': 'x' * 1_001})}")
        assert refused.value.code == 422


def test_a_video_that_candidate_generation_does_not_know_is_reached(server, prepared, made, titles):
    ids, _ = title_vectors(load_model(made / "model"), SearchDataset.open(made / "dataset"))
    known = set(load_tower(prepared.place.candidate_model).vocabulary.keys.tolist())
    new = [video for video in ids.tolist() if video not in known]
    assert new, "some video was watched by nobody"
    reached = 0
    for user, video in enumerate(new[:5], 20):
        push_search(prepared.store, user, titles[video], NOW - 60)
        reached += video in recommend(server, prepared.store, user, k=50).video_ids
    assert reached


@pytest.mark.parametrize("with_text", [True, False])
def test_the_source_can_be_a_feature_of_the_ranker(triton_venv, made, prepared, tmp_path, with_text):
    place, config = prepared.place, prepared.config
    ranking = config.ranking.model_copy(update={"exclude": ("watched_seconds",)})
    train_ranking(place.dataset, tmp_path / "model", ranking, TrainingSettings(epochs=1, batch_size=1_024))
    trained = Trained(
        ranking=tmp_path / "model",
        dataset=place.dataset,
        candidates=place.candidate_model,
        candidate_dataset=place.candidate_dataset,
        text=made / "model" if with_text else None,
        search_dataset=made / "dataset" if with_text else None,
    )
    release = export_release(
        trained, prepared.store, {"models": {}}, tmp_path / "releases", config.index, config.export
    )
    graphs = ReleaseGraphs(release)
    assert "candidate_source" in graphs.inputs("ranking")
    x = online_user_features(prepared.store, [3]) | Question(now=NOW, k=10).tensors(1)
    here = graphs.run("recommend", {name: x[name] for name in graphs.inputs("recommend")})
    with LocalTriton(venv=triton_venv, repository=tmp_path / "m", state=tmp_path / "s") as running:
        deploy(release, tmp_path / "m", running.settings)
        answer = recommend(running, prepared.store, 3, k=10)
    np.testing.assert_allclose(answer.expected_watch_seconds, here["expected_watch_time"][0, :10], rtol=1e-4)
    assert ("from_search" in answer.answers) is with_text
