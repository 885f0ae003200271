"""recommend(user): features from Feast, then one call of Triton's `recommend`; both have a fallback."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from watchrank.config import DeploymentSettings, ServingSettings
from watchrank.errors import DeploymentError
from watchrank.feature_store import newcomer_features
from watchrank.schema import EXPECTED_WATCH_TIME, PAD_ID
from watchrank.serving.breaker import Breaker
from watchrank.serving.client import TritonClient
from watchrank.serving.features import OnlineFeatures, is_known
from watchrank.serving.popular import PopularVideos
from watchrank.serving.question import Arrays, Fallback, Question, Recommendation

if TYPE_CHECKING:
    from feast import FeatureStore

LARGEST_BATCH = 64
"""Users a request to Triton; more are asked side by side."""

RESERVED = 0.1
"""Share of the time for an answer that is kept for the fallback itself."""

_OWN = frozenset({"video_ids", EXPECTED_WATCH_TIME, "candidate_scores", "release"})
"""What every release answers."""

Observe = Callable[[str, float], object]
"""Is told the name of a stage, "features" or "triton", and how many seconds it took."""

Fail = Callable[[Fallback], object]
"""Is told the name of a stage that failed, or that was left alone after a failure."""


class Recommender:
    """Answers for users: Feast's online features, then Triton.

    With popular videos it always answers in time: without the online store as for newcomers, without Triton
    with the popular videos. Each `Recommendation` says so. Without them what fails is raised.
    """

    def __init__(
        self,
        store: "FeatureStore",
        client: TritonClient,
        observe: Observe = lambda stage, seconds: None,
        *,
        popular: PopularVideos | None = None,
        retry_seconds: float = ServingSettings().retry_seconds,
        fail: Fail = lambda stage: None,
        name: str = "Triton",
    ) -> None:
        """Make the recommender.

        Args:
            store: opened by `feature_store.open_store`, materialised.
            client: of the server; its time limit is that of a whole answer.
            observe: is told how long each stage of a request took.
            popular: what to answer while Triton does not.
            retry_seconds: how long the store or Triton is left alone after it failed.
            fail: is told each stage that fell out.
            name: what the log calls that which ranks.
        """
        self.client, self.popular, self._observe, self._fail = client, popular, observe, fail
        self.features = OnlineFeatures(store, retry_seconds)
        self._retry_seconds = retry_seconds
        self._breaker = Breaker(name, retry_seconds)

    def challenger(self, name: str) -> "Recommender":
        """Return one that asks over the same connection, is not measured, and has no fallback."""
        return Recommender(self.features.store, self.client, retry_seconds=self._retry_seconds, name=name)

    def deadline(self) -> float:
        """Return until when, on the event loop's clock, an answer may take that is asked for now."""
        return asyncio.get_running_loop().time() + self.client.timeout_seconds * (1 - RESERVED)

    async def user_features(self, user_ids: Sequence[int], deadline: float | None = None) -> Arrays:
        """Return the newest features of at least one user, each [n, *dims] as in `schema.USER_TENSORS`.

        The store gets half of the time until `deadline`. When it does not answer and there are popular
        videos to fall back to, the features are those of newcomers.

        Raises:
            DeploymentError: the online store does not answer, and there is no fallback.
        """
        latest = halfway(deadline or self.deadline())
        parts = await asyncio.gather(*(self._features(user_ids[part], latest) for part in _parts(user_ids)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    async def recommend(
        self,
        user_ids: Sequence[int],
        question: Question = Question(),
        *,
        model: str | None = None,
        features: Arrays | None = None,
        deadline: float | None = None,
    ) -> list[Recommendation]:
        """Return the best videos of each user.

        Args:
            user_ids: users, in any number; one that the store does not know is answered as a newcomer.
            question: what is asked for them.
            model: `recommend` of a certain release by its numbered name; what serves when not given.
            features: of the users, from `user_features`; read when not given.
            deadline: from `deadline()` when the request came; from now on when not given.

        Raises:
            InputError: Triton refuses the request.
            DeploymentError: Triton or the online store does not answer, and there is no fallback.
        """
        latest = deadline or self.deadline()
        users = await self.user_features(user_ids, latest) if features is None else features
        answers = await asyncio.gather(
            *(
                self._part(user_ids[part], question, model, rows_of(users, part), latest)
                for part in _parts(user_ids)
            )
        )
        return [answer for part in answers for answer in part]

    async def _features(self, user_ids: Sequence[int], deadline: float) -> Arrays:
        try:
            with timed(self._observe, "features"):
                return await self.features.read(user_ids, seconds_until(deadline))
        except DeploymentError:
            self._fail("features")
            if self.popular is None:
                raise
        return newcomer_features(len(user_ids))

    async def _part(
        self,
        user_ids: Sequence[int],
        question: Question,
        model: str | None,
        features: Arrays,
        deadline: float,
    ) -> list[Recommendation]:
        try:
            with timed(self._observe, "triton"), self._breaker.watching():
                request = features | question.tensors(len(user_ids))
                answer = await self.client.infer("recommend", request, model=model, deadline=deadline)
        except DeploymentError:
            self._fail("triton")
            if self.popular is None or self.popular.release is None:
                raise
            return self.popular.recommend(user_ids, question, features)
        known = is_known(features).tolist()
        answers = [_recommendation(user_id, answer, row, known[row]) for row, user_id in enumerate(user_ids)]
        if model is None:
            self._keep_popular(answers[0].release)
        return answers

    def _keep_popular(self, release: int) -> None:
        """Read the popular videos of a release that has begun to serve, beside the event loop."""
        if self.popular and not self.popular.follows(release):
            asyncio.get_running_loop().run_in_executor(None, self.popular.follow, release)


def halfway(deadline: float) -> float:
    """Return the middle between now and a deadline: what a step may take when another one comes after it."""
    return deadline - seconds_until(deadline) / 2


def seconds_until(deadline: float) -> float:
    """Return how many seconds are left until a deadline on the event loop's clock, at least 0."""
    return max(deadline - asyncio.get_running_loop().time(), 0.0)


@contextmanager
def timed(observe: Observe, stage: str) -> Iterator[None]:
    """Tell `observe` how many seconds the block took, whether it ended well or not."""
    start = time.perf_counter()
    try:
        yield
    finally:
        observe(stage, time.perf_counter() - start)


def rows_of(arrays: Arrays, rows: slice | Sequence[int]) -> Arrays:
    """Return some rows of every array."""
    return {name: values[rows] for name, values in arrays.items()}


def _parts(user_ids: Sequence[int]) -> list[slice]:
    return [slice(first, first + LARGEST_BATCH) for first in range(0, len(user_ids), LARGEST_BATCH)]


def _recommendation(user_id: int, answer: Arrays, row: int, known: bool) -> Recommendation:
    places = int((answer["video_ids"][row] != PAD_ID).sum())
    return Recommendation(
        user_id=user_id,
        video_ids=answer["video_ids"][row, :places].tolist(),
        expected_watch_seconds=answer[EXPECTED_WATCH_TIME][row, :places].tolist(),
        candidate_scores=answer["candidate_scores"][row, :places].tolist(),
        release=int(answer["release"][row, 0]),
        answers={name: answer[name][row, :places].tolist() for name in sorted(answer.keys() - _OWN)},
        fallback=None if known else "features",
    )


async def ask(
    store: "FeatureStore",
    settings: DeploymentSettings,
    user_ids: Sequence[int],
    question: Question,
    popular: PopularVideos | None = None,
) -> list[Recommendation]:
    """Return the best videos of each user over a connection of its own; see `Recommender`."""
    async with TritonClient(settings) as client:
        return await Recommender(store, client, popular=popular).recommend(user_ids, question)


def showcase(
    store: "FeatureStore", release: Path, settings: DeploymentSettings, users: int = 3, k: int = 5
) -> str:
    """Return a Markdown table of Triton's answers for a few users that the release names."""
    user_ids = json.loads((release / "manifest.json").read_text())["showcase_users"][:users]
    answers = asyncio.run(ask(store, settings, user_ids, Question(k=k)))
    lines = ["| user | video | expected watch, s |", "| --- | --- | --- |"]
    lines += [
        f"| {answer.user_id} | {video} | {seconds:.1f} |"
        for answer in answers
        for video, seconds in zip(answer.video_ids, answer.expected_watch_seconds, strict=True)
    ]
    return "\n".join(lines) + "\n"
