"""The HTTP service on a real Triton with two releases, asked over the network."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import asdict
from datetime import UTC, datetime

import pytest

from watchrank.config import ServingSettings
from watchrank.deployment.deploy import deploy
from watchrank.deployment.local_server import LocalTriton
from watchrank.errors import InputError
from watchrank.export.release import refresh_release
from watchrank.feature_store import online_user_features
from watchrank.serving.client import TritonClient
from watchrank.serving.http import listen
from watchrank.serving.question import Question
from watchrank.serving.recommend import Recommender
from watchrank.serving.request_log import in_share, read_log
from watchrank.serving.traffic import Traffic

NOW = int(datetime(2026, 1, 8, 12, tzinfo=UTC).timestamp())
USERS = [3, 1, 200, 10**12]
CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def challenger(released, trained, store):
    """A second release: the same models, another number."""
    return refresh_release(released, store, trained.place.releases, trained.config.export)


@pytest.fixture(scope="module")
def triton(triton_venv, released, challenger, tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    state = tmp_path_factory.mktemp("state")
    with LocalTriton(venv=triton_venv, repository=repository, state=state) as running:
        deploy(released, repository, running.settings)
        deploy(challenger, repository, running.settings, switch=False)
        yield running


@pytest.fixture
def serve(serving, triton, store, tmp_path):
    """Return a function that starts the service with some settings."""
    return lambda **settings: serving(store, triton.settings, tmp_path / "log", **settings)


@pytest.fixture(scope="module")
def service(serving, triton, store, tmp_path_factory):
    """The address of a service with the default settings."""
    with serving(store, triton.settings, tmp_path_factory.mktemp("log")) as url:
        yield url


def call(url, body=None, **headers):
    """Return status, headers and body; a body that is no bytes goes as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def recommend(url, users=tuple(USERS), **question):
    status, _, answers = call(f"{url}/recommend", {"user_ids": list(users), "now": NOW} | question)
    assert status == 200, answers
    return json.loads(answers)


def refusal(url, body=None, **headers):
    status, _, answer = call(url, body, **headers)
    detail = json.loads(answer)
    assert list(detail) == ["detail"]
    return status, detail["detail"]


def metric(url, name):
    _, _, page = call(f"{url}/metrics")
    values = [line.removeprefix(f"{name} ") for line in page.splitlines() if line.startswith(f"{name} ")]
    return float(values[0]) if values else 0.0


def own_answers(triton, store, users, **question):
    async def ask():
        async with TritonClient(triton.settings) as client:
            return await Recommender(store, client).recommend(users, Question(now=NOW, **question))

    return [asdict(answer) for answer in asyncio.run(ask())]


# -- Answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question", [{"k": 7}, {"k": 12, "diversity": 0.5, "channel_limit": 2, "surface": "home"}], ids=str
)
def test_answers_are_those_of_the_recommender(service, triton, store, question):
    excluded = [answer["video_ids"][0] for answer in own_answers(triton, store, USERS)]
    expected = own_answers(triton, store, USERS, excluded=excluded, **question)
    assert recommend(service, excluded=excluded, **question) == expected
    assert all(len(answer["video_ids"]) == question["k"] for answer in expected)


def test_more_users_than_a_batch_are_answered_in_their_order(service, triton, store):
    users = list(range(299, 199, -1))
    assert recommend(service, users, k=3) == own_answers(triton, store, users, k=3)


def test_one_user_by_get(service):
    status, _, answer = call(f"{service}/recommend/3?k=4")
    answer = json.loads(answer)
    assert status == 200
    assert (answer["user_id"], len(answer["video_ids"])) == (3, 4)


def test_openapi_describes_every_route_and_field(service):
    spec = json.loads(call(f"{service}/openapi.json")[2])
    assert set(spec["paths"]) == {"/recommend", "/recommend/{user_id}", "/search", "/health", "/metrics", "/"}
    fields = spec["components"]["schemas"]["Ask"]["properties"]
    assert all(field.get("description") for field in fields.values())
    assert fields["diversity"]["maximum"] == 1


# -- Refusals --------------------------------------------------------------------------------------

BAD = {
    "no users": ({"user_ids": []}, r"user_ids: List should have at least 1 item.*"),
    "a user below 0": ({"user_ids": [1, -1]}, r"user_ids\.1: Input should be greater than or equal to 0"),
    "a user above 64 bits": ({"user_ids": [2**63]}, r"user_ids\.0: Input should be less than or equal to .*"),
    "a user as text": ({"user_ids": ["1"]}, r"user_ids\.0: Input should be a valid integer"),
    "k of 0": ({"user_ids": [1], "k": 0}, "k: Input should be greater than or equal to 1"),
    "diversity": ({"user_ids": [1], "diversity": 1.5}, "diversity: Input should be less than or equal to 1"),
    "an unknown key": ({"user_ids": [1], "limit": 3}, "limit: Extra inputs are not permitted"),
    "no JSON": (b"{", "JSON decode error"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(service, case):
    body, sentence = BAD[case]
    status, detail = refusal(f"{service}/recommend", body)
    assert status == 422
    assert re.search(sentence, detail)
    assert detail.startswith("Bad input: ")


def test_too_many_users_are_refused(serve):
    with serve(max_users=2) as url:
        status, detail = refusal(f"{url}/recommend", {"user_ids": [1, 2, 3]})
        assert (status, detail) == (422, "The request has 3 users; ask for 2 at most.")
        assert len(recommend(url, [1, 2])) == 2


def test_a_long_request_is_refused_by_its_stated_and_by_its_real_length(serve):
    body = json.dumps({"user_ids": [1], "now": NOW}).encode()
    with serve(max_request_bytes=len(body)) as url:
        assert call(f"{url}/recommend", body)[0] == 200
        sentence = f"The request is longer than {len(body)} bytes; send less."
        assert refusal(f"{url}/recommend", body + b" ") == (413, sentence)
        chunks = (chunk for chunk in (body, b" "))
        request = urllib.request.Request(f"{url}/recommend", chunks, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError, match="413"):
            urllib.request.urlopen(request)
        assert metric(url, 'watchrank_requests_total{outcome="too_large"}') == 2


def test_callers_need_the_token_but_for_health(serve, tmp_path):
    (tmp_path / "token").write_text("a secret\n")
    sentence = "The token is missing or wrong; send the header `Authorization: Bearer <token>`."
    with serve(token_file=tmp_path / "token") as url:
        for path in ("/recommend/1", "/metrics", "/", "/openapi.json"):
            assert refusal(f"{url}{path}") == (401, sentence)
        for header in ("Bearer a secre", "Bearer a secret2", "a secret", "Basic a secret", "Bearer \xe9"):
            status, headers, _ = call(f"{url}/recommend/1", Authorization=header)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert call(f"{url}/recommend/1", Authorization="Bearer a secret")[0] == 200
        assert call(f"{url}/health")[0] == 200


def test_above_the_rate_callers_are_told_when_to_come_again(serve):
    with serve(requests_per_second=0.2) as url:
        assert call(f"{url}/recommend/1")[0] == 200
        status, headers, answer = call(f"{url}/recommend/1")
        assert (status, headers["Retry-After"]) == (429, "5")
        assert json.loads(answer) == {"detail": "Too many requests; ask again in 5 s."}
        assert call(f"{url}/health")[0] == 200
        assert metric(url, 'watchrank_requests_total{outcome="too_many"}') == 1


def test_what_is_unexpected_tells_callers_nothing_of_its_inside(serve, monkeypatch):
    async def fail(*_):
        raise RuntimeError("an inner secret")

    monkeypatch.setattr(Traffic, "recommend", fail)
    with serve() as url:
        assert refusal(f"{url}/recommend/1") == (500, "The service failed; its log says how.")
        assert metric(url, 'watchrank_requests_total{outcome="failed"}') == 1


def test_a_port_that_is_taken_is_bad_input(service):
    port = int(service.rpartition(":")[2])
    with pytest.raises(InputError, match=f"Cannot listen on 127.0.0.1 port {port}: Address already in use"):
        listen(ServingSettings(port=port))


# -- Health and metrics ----------------------------------------------------------------------------


def test_the_service_is_ready_while_triton_is(service):
    status, _, answer = call(f"{service}/health")
    assert status == 200
    assert json.loads(answer) == {
        "live": True,
        "ready": True,
        "triton": True,
        "store": True,
        "popular": False,
    }


def test_a_triton_that_is_stopped_is_told(serving, triton_venv, released, store, tmp_path):
    server = LocalTriton(venv=triton_venv, repository=tmp_path / "models", state=tmp_path / "state")
    server.start()
    deploy(released, tmp_path / "models", server.settings)
    with serving(store, server.settings, tmp_path / "log") as url:
        assert len(recommend(url)) == len(USERS)
        server.stop()
        status, _, answer = call(f"{url}/health")
        assert status == 503
        assert json.loads(answer) == {
            "live": True,
            "ready": False,
            "triton": False,
            "store": True,
            "popular": False,
        }
        status, detail = refusal(f"{url}/recommend", {"user_ids": USERS})
        assert status == 503
        assert re.fullmatch(
            r"Triton at 127\.0\.0\.1:\d+ cannot be reached; start it with `make serve`\.", detail
        )
        status, _, page = call(f"{url}/?user_id=3")
        assert status == 503
        assert "cannot be reached" in page


def test_a_store_that_does_not_answer_is_told(serving, triton, tmp_path):
    class Broken:
        def get_online_features(self, *_):
            raise OSError("no such file")

    with serving(Broken(), triton.settings, tmp_path / "log") as url:
        assert json.loads(call(f"{url}/health")[2])["store"] is False
        assert [answer["fallback"] for answer in recommend(url)] == ["features"] * len(USERS)


def test_a_store_that_hangs_is_told(serving, triton, tmp_path):
    released = threading.Event()

    class Hanging:
        def get_online_features(self, *_):
            released.wait(20)
            raise OSError

    with serving(Hanging(), triton.settings, tmp_path / "log") as url:
        _, _, answer = call(f"{url}/health")
        assert not released.is_set()
        released.set()
        assert json.loads(answer)["store"] is False


def test_metrics_move(serve, released):
    with serve() as url:
        answers = recommend(url, [1]) + recommend(url, [1, 2])
        refusal(f"{url}/recommend", {"user_ids": []})
        call(f"{url}/health")
        assert metric(url, 'watchrank_requests_total{outcome="ok"}') == 2
        assert metric(url, 'watchrank_requests_total{outcome="bad_input"}') == 1
        assert metric(url, f'watchrank_answers_total{{release="{int(released.name)}"}}') == 3
        for stage in ("features", "triton"):
            assert metric(url, f'watchrank_stage_seconds_count{{stage="{stage}"}}') == 2
            assert 0 < metric(url, f'watchrank_stage_seconds_sum{{stage="{stage}"}}') < 20
        predicted = [seconds for answer in answers for seconds in answer["expected_watch_seconds"]]
        assert metric(url, "watchrank_predicted_seconds_count") == len(predicted) == 30
        assert metric(url, "watchrank_predicted_seconds_sum") == pytest.approx(sum(predicted))
        below = sum(seconds <= 30 for seconds in predicted)
        assert metric(url, 'watchrank_predicted_seconds_bucket{le="30.0"}') == below


# -- The request log -------------------------------------------------------------------------------


def test_a_share_of_the_users_is_logged_with_their_features(serve, store, tmp_path):
    users = list(range(40))
    with serve(log_share=0.5) as url:
        answers = {answer["user_id"]: answer for answer in recommend(url, users, k=4, surface="home")}
        call(f"{url}/?user_id=1")
        assert metric(url, "watchrank_request_log_dropped_rows_total") == 0
    rows = read_log(tmp_path / "log").to_table().to_pylist()
    assert {row["user_id"] for row in rows} == {user for user in users if in_share(user, 0.5, "request log")}
    assert 10 < len(rows) < 30
    for row in rows:
        assert row["video_ids"] == answers[row["user_id"]]["video_ids"]
        assert row["now"] == NOW
        watched = online_user_features(store, [row["user_id"]])["watched_video_ids"][0].tolist()
        assert row["watched_video_ids"] == watched


# -- The challenger --------------------------------------------------------------------------------


def test_a_canary_is_answered_by_the_other_release(serve, released, challenger):
    numbers = int(released.name), int(challenger.name)
    users = list(range(60))
    with serve(challenger=numbers[1], challenger_share=0.4) as url:
        answers = recommend(url, users)
        assert [answer["user_id"] for answer in answers] == users
        for answer in answers:
            assert answer["release"] == numbers[in_share(answer["user_id"], 0.4, "challenger")]
        assert {answer["release"] for answer in answers} == set(numbers)
        assert metric(url, 'watchrank_challenger_requests_total{outcome="answered"}') == 1
        user = next(answer["user_id"] for answer in answers if answer["release"] == numbers[1])
        assert f"Answer of release {numbers[1]} " in call(f"{url}/?user_id={user}")[2]


def test_a_challenger_that_is_not_loaded_leaves_all_to_the_champion(serve, released):
    with serve(challenger=999, challenger_share=1) as url:
        answers = recommend(url)
        assert {answer["release"] for answer in answers} == {int(released.name)}
        assert metric(url, 'watchrank_challenger_requests_total{outcome="failed"}') == 1


def test_a_shadow_is_measured_and_answers_nobody(serve, released, challenger):
    with serve(challenger=int(challenger.name), challenger_share=1, challenger_mode="shadow") as url:
        assert {answer["release"] for answer in recommend(url)} == {int(released.name)}
        deadline = time.monotonic() + 20
        while not metric(url, "watchrank_challenger_equal_share_count") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert metric(url, "watchrank_challenger_equal_share_count") == len(USERS)
        assert metric(url, "watchrank_challenger_equal_share_sum") == len(USERS)  # the same models
        assert metric(url, "watchrank_challenger_seconds_count") == 1


# -- The page --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dom(tmp_path_factory):
    """Return a function that gives the page at an address as a browser without a screen has it."""
    if not shutil.which(CHROMIUM):
        if os.environ.get("CI") == "true":
            pytest.fail(f"no {CHROMIUM}")
        pytest.skip(f"no {CHROMIUM}")
    profile = tmp_path_factory.mktemp("profile")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]

    def dom(url):
        done = subprocess.run(
            [CHROMIUM, *options, "--dump-dom", url], capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout

    return dom


def cells(page, table):
    """Return the text of the cells of a table's rows, by its id."""
    body = re.search(rf'<table id="{table}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    rows = re.findall(r"<tr.*?>(.*?)</tr>", body, re.DOTALL)
    return [re.findall(r"<td.*?>(.*?)</td>", row) for row in rows]


def test_the_page_shows_how_the_answer_comes_about(service, store, dom):
    watched = online_user_features(store, list(range(300)))["watched_video_ids"]
    user = int((watched >= 0).sum(1).argmax())
    page = dom(f"{service}/?user_id={user}&k=8")
    (answer,) = recommend(service, [user], k=8, now=int(time.time()))
    assert [int(row[1]) for row in cells(page, "ranking")] == answer["video_ids"]
    shown = [float(row[2]) for row in cells(page, "ranking")]
    assert shown == pytest.approx(answer["expected_watch_seconds"], rel=0.01, abs=0.06)
    history = cells(page, "history")
    features = online_user_features(store, [user])
    assert [int(row[0]) for row in history] == [
        v for v in features["watched_video_ids"][0].tolist() if v >= 0
    ]
    assert (
        history[0][2] == f"{datetime.fromtimestamp(features['watched_times'][0][0], UTC):%Y-%m-%d %H:%M:%S}"
    )
    candidates = cells(page, "candidates")
    assert {row[1] for row in candidates} == {"softmax index"}
    assert [float(row[2]) for row in candidates] == sorted(
        (float(row[2]) for row in candidates), reverse=True
    )
    places = {int(row[3]): int(row[0]) for row in candidates if row[3] != "–"}
    assert [places[place] for place in range(1, 9)] == answer["video_ids"]
    assert [row[0].split()[0] for row in cells(page, "time")] == ["features", "recommend", "candidates"]


def test_the_page_of_a_newcomer_and_of_nobody(service, dom):
    newcomer = dom(f"{service}/?user_id={10**12}")
    assert "No watch of this user is known." in newcomer
    assert len(cells(newcomer, "ranking")) == 10
    form = dom(f"{service}/")
    assert '<input name="user_id"' in form
    assert "<table" not in form


def test_the_page_loads_nothing_from_elsewhere_and_escapes(service):
    status, headers, page = call(f"{service}/?user_id=3")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.search(r"(src|href)=|url\(|@import", page)
    status, detail = refusal(f"{service}/?user_id=%3Cscript%3E")
    assert status == 422
    assert "script" not in detail
