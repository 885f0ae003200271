import asyncio
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest

from watchrank.config import ServingSettings
from watchrank.errors import DeploymentError, InputError
from watchrank.schema import USER_TENSORS
from watchrank.serving.guard import Buckets, TokenBucket, read_token
from watchrank.serving.metrics import Distribution, Metrics
from watchrank.serving.page import explain
from watchrank.serving.question import Question
from watchrank.serving.recommend import LARGEST_BATCH, Recommender
from watchrank.serving.request_log import in_share
from watchrank.serving.traffic import MOST_SHADOWS, Traffic, equal_share

CHAMPION, CHALLENGER = 1, 7
USERS = list(range(200))


class TwoReleases:
    """A server with two releases: each answers with videos of its own beside those that both answer."""

    timeout_seconds = 60

    def __init__(self, challenger_fails=False, champion_fails=False, hold=None):
        self.challenger_fails, self.champion_fails, self.hold = challenger_fails, champion_fails, hold
        self.asked = []

    async def infer(self, endpoint, request, model=None, deadline=None):
        assert model in (None, f"recommend_{CHALLENGER:06d}")
        assert len(request["k"]) <= LARGEST_BATCH
        users = request["watched_video_ids"][:, 0].tolist()
        self.asked.append((model, users))
        if self.hold and model:
            await self._hang(deadline)
        if deadline is not None and asyncio.get_running_loop().time() >= deadline:
            raise DeploymentError("no time left")
        if self.challenger_fails if model else self.champion_fails:
            raise DeploymentError("no answer")
        release = CHALLENGER if model else CHAMPION
        videos = np.array([[user, 10_000, 10_000 + release, -1] for user in users])
        return {
            "video_ids": videos,
            "expected_watch_time": np.full(videos.shape, 5, np.float32),
            "candidate_scores": np.full(videos.shape, 1, np.float32),
            "release": np.full((len(users), 1), release),
        }

    async def _hang(self, deadline):
        try:
            async with asyncio.timeout_at(deadline):
                await self.hold.wait()
        except TimeoutError:
            raise DeploymentError("no answer in time") from None


def traffic_to(server, **settings):
    settings = ServingSettings(**{"challenger": CHALLENGER, "challenger_share": 0.3} | settings)
    metrics = Metrics()
    return Traffic(Recommender(None, server, retry_seconds=0), settings, metrics), metrics


def features_of(users):
    """Features whose watched videos tell the user."""
    return {
        tensor.name: np.tile(np.array(users)[:, None], (1, tensor.dims[0])).astype(tensor.dtype)
        for tensor in USER_TENSORS
    }


async def ask(traffic, users=USERS):
    deadline = asyncio.get_running_loop().time() + 60
    return await traffic.recommend(users, features_of(users), Question(now=0), deadline)


def counted(metrics, outcome):
    return metrics.registry.get_sample_value("watchrank_challenger_requests_total", {"outcome": outcome})


def in_canary(users=USERS, share=0.3):
    return {user for user in users if in_share(user, share, "challenger")}


def test_who_is_in_a_share_is_so_for_good():
    assert [user for user in range(80) if in_share(user, 0.1, "challenger")] == [13, 52, 60, 63]
    assert in_canary(share=0.1) < in_canary(share=0.3) < in_canary(share=1) == set(USERS)
    assert in_canary(share=0) == set()


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_the_share_is_right_and_independent_of_the_logs(share):
    users = range(20_000)
    challenged = np.array([in_share(user, share, "challenger") for user in users])
    logged = np.array([in_share(user, 0.5, "request log") for user in users])
    error = 4 * math.sqrt(share * (1 - share) / len(users))
    assert challenged.mean() == pytest.approx(share, abs=error)
    assert (challenged & logged).mean() == pytest.approx(share / 2, abs=error)


def test_a_canary_answers_its_users_and_no_others():
    traffic, metrics = traffic_to(TwoReleases())
    answers = asyncio.run(ask(traffic))
    assert [answer.user_id for answer in answers] == USERS
    assert [answer.video_ids[0] for answer in answers] == USERS
    assert {answer.user_id for answer in answers if answer.release == CHALLENGER} == in_canary()
    assert counted(metrics, "answered") == 1


@pytest.mark.parametrize("settings", [{"challenger": None}, {"challenger_share": 0}])
def test_without_a_challenger_the_champion_answers_all(settings):
    server = TwoReleases(challenger_fails=True)
    answers = asyncio.run(ask(traffic_to(server, **settings)[0]))
    assert {answer.release for answer in answers} == {CHAMPION}
    assert {model for model, _ in server.asked} == {None}


def test_a_canary_of_all_users_does_not_ask_the_champion():
    server = TwoReleases(champion_fails=True)
    answers = asyncio.run(ask(traffic_to(server, challenger_share=1)[0]))
    assert {answer.release for answer in answers} == {CHALLENGER}


def test_the_champion_answers_for_a_challenger_that_fails_which_is_logged_once(caplog):
    server = TwoReleases(challenger_fails=True)
    traffic, metrics = traffic_to(server)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            answers = asyncio.run(ask(traffic))
            assert [answer.video_ids[0] for answer in answers] == USERS
            assert {answer.release for answer in answers} == {CHAMPION}
    assert counted(metrics, "failed") == 3
    (record,) = caplog.records
    assert record.message == "The challenger recommend_000007 fails: no answer"
    server.challenger_fails = False
    assert CHALLENGER in {answer.release for answer in asyncio.run(ask(traffic))}


def test_a_challenger_that_hangs_leaves_half_of_the_time_to_the_champion():
    async def run():
        traffic, metrics = traffic_to(TwoReleases(hold=asyncio.Event()), challenger_share=1)
        deadline = asyncio.get_running_loop().time() + 1
        return await traffic.recommend([5], features_of([5]), Question(now=0), deadline), metrics

    (answer,), metrics = asyncio.run(run())
    assert (answer.release, answer.fallback) == (CHAMPION, None)
    assert counted(metrics, "failed") == 1


def test_when_the_champion_fails_there_is_no_answer():
    traffic, _ = traffic_to(TwoReleases(champion_fails=True))
    with pytest.raises(DeploymentError, match="no answer"):
        asyncio.run(ask(traffic))


def test_a_shadow_delays_nobody_and_is_measured():
    async def run():
        server = TwoReleases(hold=asyncio.Event())
        traffic, metrics = traffic_to(server, challenger_mode="shadow")
        answers = await asyncio.wait_for(ask(traffic), 5)
        assert {answer.release for answer in answers} == {CHAMPION}
        assert counted(metrics, "answered") is None
        server.hold.set()
        while counted(metrics, "answered") is None:
            await asyncio.sleep(0.01)
        shadowed = [user for model, users in server.asked if model for user in users]
        return set(shadowed), metrics.registry

    shadowed, registry = asyncio.run(asyncio.wait_for(run(), 10))
    assert shadowed == in_canary()
    assert registry.get_sample_value("watchrank_challenger_equal_share_count") == len(shadowed)
    mean = registry.get_sample_value("watchrank_challenger_equal_share_sum") / len(shadowed)
    assert mean == pytest.approx(2 / 3)
    assert registry.get_sample_value("watchrank_challenger_seconds_count") == 1


def test_a_shadow_that_fails_changes_no_answer():
    async def run():
        traffic, metrics = traffic_to(TwoReleases(challenger_fails=True), challenger_mode="shadow")
        answers = await ask(traffic)
        while counted(metrics, "failed") is None:
            await asyncio.sleep(0.01)
        return answers

    assert {answer.release for answer in asyncio.run(asyncio.wait_for(run(), 10))} == {CHAMPION}


def test_shadows_do_not_pile_up_and_end_with_the_service():
    async def run():
        traffic, metrics = traffic_to(TwoReleases(hold=asyncio.Event()), challenger_mode="shadow")
        for _ in range(MOST_SHADOWS + 3):
            await ask(traffic)
        assert counted(metrics, "skipped") == 3
        await traffic.close()
        return len(asyncio.all_tasks())

    assert asyncio.run(asyncio.wait_for(run(), 20)) <= 2


def test_the_share_of_equal_videos():
    assert equal_share([1, 2, 3, 4], [4, 9, 1]) == 0.5
    assert equal_share([], [1]) == 1


def test_a_token_bucket_lets_through_its_rate_and_a_burst_of_a_second():
    now = 0.0
    bucket = TokenBucket(4, clock=lambda: now)
    assert [bucket.take() for _ in range(5)] == [0, 0, 0, 0, 0.25]
    now = 0.25
    assert [bucket.take(), bucket.take()] == [0, 0.25]
    now = 100
    assert [bucket.take() for _ in range(5)] == [0, 0, 0, 0, 0.25]


def test_a_slow_bucket_lets_one_through_at_once():
    bucket = TokenBucket(0.1, clock=lambda: 0.0)
    assert [bucket.take(), bucket.take()] == [0, 10]


def test_each_address_has_a_rate_of_its_own_and_the_oldest_is_forgotten():
    buckets = Buckets(1, most=2)
    assert [buckets.take("a") == 0, buckets.take("a") > 0, buckets.take("b") == 0] == [True] * 3
    assert buckets.take("c") == 0
    assert buckets.take("b") > 0
    assert buckets.take("a") == 0


def test_a_token_that_is_missing_or_empty_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read the token in .*/none"):
        read_token(tmp_path / "none")
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(InputError, match="is empty"):
        read_token(tmp_path / "empty")
    (tmp_path / "token").write_text("secret\n")
    assert read_token(tmp_path / "token") == b"secret"


def test_the_page_shows_the_candidates_of_the_release_that_answered():
    server = TwoReleases()
    traffic, _ = traffic_to(server, challenger_share=1)

    async def user_features(users, deadline):
        return features_of(users)

    async def candidates(endpoint, request, model):
        assert endpoint == "candidate_generation"
        assert {"k", "now"}.isdisjoint(request)
        asked.append(model)
        return {"video_ids": np.array([[9, 10_000, -1]]), "scores": np.array([[3.0, 2.0, 0.0]])}

    asked = []
    recommender = SimpleNamespace(
        user_features=user_features, client=SimpleNamespace(infer=candidates), deadline=lambda: 1e12
    )
    shown = asyncio.run(explain(recommender, traffic, 5, Question(now=0)))
    assert asked == [f"candidate_generation_{CHALLENGER:06d}"]
    assert [(row["video_id"], row["place"]) for row in shown["candidates"]] == [(9, None), (10_000, 2)]
    assert shown["ranking"][1] == (10_000, 5, 1)


def test_a_distribution_counts_up_to_each_bound():
    counted = Distribution("seconds", "", (1.0, 10.0), "stage")
    counted.observe([0.5, 1.0, 1.5, 10.0, 99.0], "a")
    counted.observe(2.0, "a")
    counted.observe([], "b")
    (family,) = counted.collect()
    found = {(s.labels["stage"], s.labels.get("le", s.name)): s.value for s in family.samples}
    assert [found["a", bound] for bound in ("1.0", "10.0", "+Inf", "seconds_count")] == [2, 5, 6, 6]
    assert found["a", "seconds_sum"] == 114
    assert found["b", "+Inf"] == 0
