"""What callers of the HTTP service get while a real Triton or a real Redis is down, stopped or empty."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from redis import Redis as RedisClient
from redis.exceptions import TimeoutError as RedisTimeout
from typer.testing import CliRunner

from watchrank.cli import app
from watchrank.deployment.deploy import deploy
from watchrank.deployment.local_server import LocalTriton, Ports
from watchrank.deployment.model_repository import endpoints, loaded
from watchrank.feature_store import materialise, online_user_features, open_store
from watchrank.serving.features import MOST_READERS, is_known

NOW = int(datetime(2026, 1, 8, 12, tzinfo=UTC).timestamp())
USERS = [1, 3, 7, 8, 200]
STRANGER = 10**12
HANGS = 60
"""Seconds after which a call counts as one that hangs; the service has to answer in 3."""


class Server:
    """The real Triton, which can be started again on its ports."""

    def __init__(self, venv, repository, state):
        self.arguments = {"venv": venv, "repository": repository, "state": state, "ports": Ports.free()}
        self.running = LocalTriton(**self.arguments)
        self.running.start()

    def restart(self):
        self.running.stop()
        repository = self.arguments["repository"]
        self.running = LocalTriton(**self.arguments, models=[*endpoints(repository), *loaded(repository)])
        self.running.start()

    @contextmanager
    def stopped(self):
        """Let the server and its backends stand still, connections and all."""
        os.killpg(self.running.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.running.pid, signal.SIGCONT)


class Redis:
    """A real Redis server, which can be started again on its port."""

    def __init__(self, program, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self.command += ["--save", ""]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("redis-server does not start")

    def kill(self):
        self.process.kill()
        self.process.wait()

    @contextmanager
    def stopped(self):
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def redis_server(program, tmp_path_factory):
    server = Redis(program("redis-server"), tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def redis_store(prepared, redis_server, repository, tmp_path_factory):
    file = repository / "feature_repo" / "feature_store_redis.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WATCHRANK_REDIS", f"127.0.0.1:{redis_server.port}")
        store = open_store(file, prepared.place.features, tmp_path_factory.mktemp("state"))
    materialise(store, datetime.now(UTC))
    assert is_known(online_user_features(store, [*USERS, STRANGER])).tolist() == [True] * len(USERS) + [False]
    return store


@pytest.fixture(scope="module")
def server(triton_venv, released, tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    server = Server(triton_venv, repository, tmp_path_factory.mktemp("triton"))
    try:
        deploy(released, repository, server.running.settings)
        yield server
    finally:
        server.running.stop()


@pytest.fixture(scope="module")
def watched(redis_store):
    """The last watches of each user."""
    return [set(ids) - {-1} for ids in online_user_features(redis_store, USERS)["watched_video_ids"].tolist()]


@pytest.fixture(scope="module")
def popular(released):
    return json.loads((released / "popular.json").read_text())


@pytest.fixture
def url(serving, server, redis_store, released, tmp_path):
    """The address of a service that answers in 3 seconds."""
    with serving(
        redis_store,
        server.running.settings,
        tmp_path / "log",
        releases=[released.parent],
        timeout_seconds=3,
        retry_seconds=0.2,
        log_share=1,
    ) as url:
        settled(url, None)
        yield url


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=HANGS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def recommend(url, users=USERS, **question):
    status, answers = ask(f"{url}/recommend", {"user_ids": users, "now": NOW} | question)
    assert status == 200, answers
    return json.loads(answers)


def fallbacks(url, users=USERS):
    return {answer["fallback"] for answer in recommend(url, users)}


def settled(url, fallback):
    """Ask until all answers have this fallback."""
    for _ in range(200):
        if fallbacks(url) == {fallback}:
            return
        time.sleep(0.1)
    raise AssertionError(f"the answers do not come to {fallback}")


def store_answers(url):
    """Ask for the service's health until it reaches the store."""
    for _ in range(200):
        if json.loads(ask(f"{url}/health")[1])["store"]:
            return True
        time.sleep(0.1)
    return False


def metric(url, name):
    lines = ask(f"{url}/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


def check_popular(answers, popular, watched, excluded=()):
    """Check that everyone gets the most watched videos but those seen and excluded."""
    for answer, seen in zip(answers, watched, strict=True):
        assert answer["fallback"] == "triton"
        assert answer["expected_watch_seconds"] == answer["candidate_scores"] == []
        wanted = []
        for group in popular.values():
            left = [video for video in group if video not in seen and video not in excluded]
            wanted.append(left[: len(answer["video_ids"])])
        assert answer["video_ids"] in wanted


# -- Triton ----------------------------------------------------------------------------------------


def test_a_triton_that_is_killed_and_comes_back(url, server, popular, watched, released):
    before = recommend(url, k=7)
    os.killpg(server.running.pid, signal.SIGKILL)
    excluded = popular["all"][:3]
    answers = recommend(url, k=7, excluded=excluded)
    check_popular(answers, popular, watched, excluded)
    assert [len(answer["video_ids"]) for answer in answers] == [7] * len(USERS)
    assert {answer["release"] for answer in answers} == {int(released.name)}
    languages = {tuple(answer["video_ids"]) for answer in recommend(url, [*USERS, STRANGER], k=3)}
    assert len(languages) > 1
    assert metric(url, 'watchrank_fallbacks_total{fallback="triton"}') == 2 * len(USERS) + 1
    assert metric(url, 'watchrank_failures_total{stage="triton"}') == 2
    status, health = ask(f"{url}/health")
    assert status == 200
    assert json.loads(health) == {
        "live": True,
        "ready": True,
        "triton": False,
        "store": True,
        "popular": True,
    }
    status, refusal = ask(f"{url}/search?query=cats")
    assert status == 503
    assert "cannot be reached" in refusal
    assert "Triton does not answer: these are the most watched" in ask(f"{url}/?user_id=3")[1]
    server.restart()
    settled(url, None)
    assert recommend(url, k=7) == before


def test_a_triton_that_stands_still(url, server, popular, watched):
    before = recommend(url)
    with server.stopped():
        check_popular(recommend(url), popular, watched)
        check_popular(recommend(url), popular, watched)
        status, refusal = ask(f"{url}/search?query=cats")
        assert status == 503
        assert "did not answer within 3 s" in refusal
    settled(url, None)
    assert recommend(url) == before


def test_many_callers_of_a_triton_that_stands_still(url, server):
    found = []
    with server.stopped():
        callers = [threading.Thread(target=lambda: found.append(fallbacks(url))) for _ in range(20)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(HANGS)
        assert found == [{"triton"}] * len(callers)
    settled(url, None)


# -- The online store ------------------------------------------------------------------------------


def test_a_store_that_stands_still_makes_everybody_a_newcomer(url, redis_server):
    before = recommend(url)
    newcomers = recommend(url, [STRANGER + user for user in USERS])
    assert {answer["fallback"] for answer in newcomers} == {"features"}
    with redis_server.stopped():
        answers = recommend(url)
        assert metric(url, 'watchrank_failures_total{stage="features"}') == 1
        assert json.loads(ask(f"{url}/health")[1])["store"] is False
    assert answers == [answer | {"user_id": user} for user, answer in zip(USERS, newcomers, strict=True)]
    assert metric(url, 'watchrank_fallbacks_total{fallback="features"}') == 2 * len(USERS)
    settled(url, None)
    assert recommend(url) == before


def test_a_read_that_hangs_ends_by_itself(redis_store, redis_server):
    with redis_server.stopped(), pytest.raises(RedisTimeout):
        online_user_features(redis_store, [1])


def test_readers_of_a_store_that_stands_still_do_not_pile_up(
    serving, server, redis_server, redis_store, released, tmp_path
):
    with serving(
        redis_store,
        server.running.settings,
        tmp_path / "log",
        releases=[released.parent],
        timeout_seconds=0.1,
        retry_seconds=0,
    ) as url:
        with redis_server.stopped():
            for _ in range(2 * MOST_READERS):
                recommend(url, [1])
            names = [thread.name for thread in threading.enumerate()]
            assert sum(name.startswith("online-features") for name in names) <= MOST_READERS
        assert store_answers(url)


def test_a_store_that_is_emptied_and_killed_and_comes_back(url, redis_server, redis_store, prepared):
    before, (newcomer,) = recommend(url), recommend(url, [STRANGER])
    redis_server.kill()
    assert recommend(url, [1]) == [newcomer | {"user_id": 1}]
    redis_server.start()  # empty
    assert store_answers(url)
    assert fallbacks(url) == {"features"}
    materialise(redis_store, datetime.now(UTC))
    settled(url, None)
    assert recommend(url) == before


def test_a_store_that_is_emptied_under_the_service_makes_everybody_a_newcomer_and_tells(
    url, redis_server, redis_store
):
    before, newcomers = recommend(url), recommend(url, [STRANGER + user for user in USERS])
    told = metric(url, 'watchrank_fallbacks_total{fallback="features"}')
    with RedisClient(port=redis_server.port) as client:
        client.flushall()
    answers = recommend(url)
    assert answers == [answer | {"user_id": user} for user, answer in zip(USERS, newcomers, strict=True)]
    assert {answer["fallback"] for answer in answers} == {"features"}
    assert metric(url, 'watchrank_fallbacks_total{fallback="features"}') == told + len(USERS)
    materialise(redis_store, datetime.now(UTC))
    assert recommend(url) == before


def test_with_neither_the_most_watched_of_all_are_answered(url, server, redis_server, popular):
    with redis_server.stopped(), server.stopped():
        for answer in recommend(url, [1, 2], k=4):
            assert (answer["fallback"], answer["video_ids"]) == ("triton", popular["all"][:4])
    settled(url, None)


# -- The command line ------------------------------------------------------------------------------


def test_the_command_answers_without_triton(prepared, released, repository):
    arguments = ["recommend", "1", "--workspace", str(prepared.place.root), "--k", "3"]
    arguments += ["--feature-repo", str(repository / "feature_repo")]
    arguments += ["--set", "deployment.grpc_url=127.0.0.1:1"]
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert re.search(r"user 1, release \d+;", done.output)
    assert "the most watched" in " ".join(done.output.split())
