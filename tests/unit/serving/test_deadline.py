"""What of an answer's time each part gets, and that a part which hangs gets no more."""

import asyncio
import threading
from types import SimpleNamespace

import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2_grpc

from watchrank.config import DeploymentSettings
from watchrank.errors import DeploymentError
from watchrank.feature_store import newcomer_features
from watchrank.serving import features as online
from watchrank.serving.client import TritonClient
from watchrank.serving.features import OnlineFeatures
from watchrank.serving.popular import PopularVideos
from watchrank.serving.question import Question
from watchrank.serving.recommend import RESERVED, Recommender

WHOLE, HANGS = 1_000.0, 60
"""Seconds for an answer, so many that a busy machine changes nothing; seconds after which a test gives up."""


class Failing:
    """A client whose server does not answer; it keeps until when it would have had to."""

    timeout_seconds = WHOLE

    def __init__(self):
        self.deadlines = []

    async def infer(self, endpoint, inputs, *, model=None, deadline=None):
        self.deadlines.append(deadline)
        raise DeploymentError("It does not answer.")


def asked(deadline_in=None):
    """Ask a recommender whose parts fail; return the seconds that store and Triton got, and the answer."""
    client, seconds = Failing(), []

    async def read(self, user_ids, left):
        seconds.append(left)
        raise DeploymentError("It does not answer.")

    async def ask():
        now = asyncio.get_running_loop().time()
        popular = PopularVideos()
        popular._kept = 7, {"all": [1, 2, 3]}
        recommender = Recommender(SimpleNamespace(), client, popular=popular)
        latest = None if deadline_in is None else now + deadline_in
        answers = await recommender.recommend([5], Question(k=2), deadline=latest)
        return answers, [deadline - now for deadline in client.deadlines]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnlineFeatures, "read", read)
        answers, of_triton = asyncio.run(ask())
    return seconds, of_triton, answers


@pytest.mark.parametrize(
    ("given", "whole"), [(None, WHOLE * (1 - RESERVED)), (400, 400)], ids=["own", "caller's"]
)
def test_the_store_gets_half_of_the_time_and_triton_all_that_is_not_kept_for_the_fallback(given, whole):
    assert 0 < RESERVED < 1
    of_store, of_triton, (answer,) = asked(given)
    assert of_store == [pytest.approx(whole / 2, rel=0.05)]
    assert of_triton == [pytest.approx(whole, rel=0.05)]
    assert (answer.fallback, answer.video_ids, answer.release) == ("triton", [1, 2], 7)


def test_a_deadline_that_is_over_leaves_the_fallback():
    of_store, _, (answer,) = asked(-1)
    assert of_store == [0]
    assert answer.fallback == "triton"


def test_a_store_that_hangs_is_waited_for_no_longer_than_told(monkeypatch):
    end = threading.Event()
    monkeypatch.setattr(online, "online_user_features", lambda store, users: end.wait(HANGS))

    async def read():
        features = OnlineFeatures(SimpleNamespace(), retry_seconds=0)
        try:
            await features.read([1], 0.05)
        finally:
            end.set()
            features.close()

    with pytest.raises(DeploymentError, match=r"The online store does not answer \(TimeoutError\)"):
        asyncio.run(read())


@pytest.mark.parametrize("hanging", ["ModelMetadata", "ModelInfer"])
@pytest.mark.parametrize("own", [True, False], ids=["own", "caller's"])
def test_a_triton_that_hangs_is_waited_for_no_longer_than_told(hanging, own):
    async def hang(self, request, context):
        await asyncio.sleep(HANGS)

    servicer = type("Hanging", (service_pb2_grpc.GRPCInferenceServiceServicer,), {hanging: hang})

    async def ask():
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        settings = DeploymentSettings(grpc_url=f"127.0.0.1:{port}", timeout_seconds=0.1 if own else WHOLE)
        try:
            async with TritonClient(settings) as client, asyncio.timeout(HANGS / 2):
                if hanging == "ModelInfer":
                    client._names["candidate_generation"] = ["age"]
                latest = None if own else asyncio.get_running_loop().time() + 0.1
                await client.infer(
                    "candidate_generation", {"age": np.ones((1, 1), np.float32)}, deadline=latest
                )
        finally:
            await server.stop(None)

    with pytest.raises(DeploymentError, match=r"did not answer within 0\.1 s; look at its log"):
        asyncio.run(ask())


def test_an_answer_without_popular_videos_is_the_failure():
    async def ask():
        await Recommender(SimpleNamespace(), Failing()).recommend(
            [1], Question(), features=newcomer_features(1)
        )

    with pytest.raises(DeploymentError, match="does not answer"):
        asyncio.run(ask())
