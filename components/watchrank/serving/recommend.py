"""recommend(user): features from Feast, then one call of Triton's `recommend`."""

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from watchrank.config import DeploymentSettings
from watchrank.errors import DeploymentError, InputError
from watchrank.feature_store import online_user_features
from watchrank.schema import EXPECTED_WATCH_TIME, PAD_ID, RECOMMEND_INPUTS, score_weight, text_id
from watchrank.serving.client import TritonClient

if TYPE_CHECKING:
    from feast import FeatureStore

LARGEST_BATCH = 64
"""Users a request to Triton; more are asked side by side."""

SMALLEST_EXCLUDED = 8
"""Lists of excluded ids are padded to this length or the next power of two: equal lengths share a batch."""

Arrays = dict[str, np.ndarray]

_OWN = frozenset({"video_ids", EXPECTED_WATCH_TIME, "candidate_scores", "release"})
"""What every release answers."""

Observe = Callable[[str, float], object]
"""Is told the name of a stage, "features" or "triton", and how many seconds it took."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One user's answer: videos in falling order of expected watch time, or as diversity has it.

    A ranker of several tasks orders by its score; `answers` holds that and each other task's answer by name.
    """

    user_id: int
    video_ids: list[int]
    expected_watch_seconds: list[float]
    candidate_scores: list[float]
    release: int
    answers: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked for a list of users.

    `excluded` are videos that must not be answered, beside the last watched ones. `now` is the time of the
    request in seconds since 1970, the present when None. `diversity` is 0 (off) to 1; `channel_limit` the
    most videos of one channel, 0 for no limit. `score_weights` say what a unit of a task's answer is worth,
    for a release whose ranker has several tasks; its own hold for those not named.
    """

    k: int = 10
    excluded: Sequence[int] = ()
    now: int | None = None
    surface: str | None = None
    diversity: float = 0.0
    channel_limit: int = 0
    score_weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what has no answer.

        Raises:
            InputError: a value is out of its range.
        """
        if self.k < 1:
            raise InputError(f"k is {self.k}; ask for at least 1 video.")
        if not 0 <= self.diversity <= 1:
            raise InputError(f"diversity is {self.diversity}; give 0 (off) to 1.")
        if self.channel_limit < 0:
            raise InputError(f"channel_limit is {self.channel_limit}; give 0 (no limit) or more.")
        if unfit := [task for task, weight in self.score_weights.items() if not math.isfinite(weight)]:
            raise InputError(f"The score's weight of {unfit[0]} is no finite number; give one.")

    def tensors(self, users: int) -> Arrays:
        """Return the inputs of `recommend` but for the users' features, for so many users."""
        length = max(SMALLEST_EXCLUDED, 1 << (len(self.excluded) - 1).bit_length())
        values: dict[str, Any] = {
            "now": int(time.time()) if self.now is None else self.now,
            "surface": text_id(self.surface),
            "example_age": 0,
            "excluded_video_ids": [*self.excluded, *[PAD_ID] * (length - len(self.excluded))],
            "k": self.k,
            "diversity": self.diversity,
            "channel_limit": self.channel_limit,
        }
        specs = [spec for spec in RECOMMEND_INPUTS if spec.name in values]
        for task, weight in self.score_weights.items():
            specs.append(score_weight(task))
            values[specs[-1].name] = weight
        return {
            spec.name: np.tile(np.array(values[spec.name], spec.dtype).reshape(1, -1), (users, 1))
            for spec in specs
        }


class Recommender:
    """Answers for users: Feast's online features, then Triton."""

    def __init__(
        self, store: "FeatureStore", client: TritonClient, observe: Observe = lambda stage, seconds: None
    ) -> None:
        """Make the recommender.

        Args:
            store: opened by `feature_store.open_store`, materialised.
            client: of the server.
            observe: is told how long each stage of a request to Triton took.
        """
        self.store, self.client, self._observe = store, client, observe

    async def user_features(self, user_ids: Sequence[int]) -> Arrays:
        """Return the newest features of at least one user, each [n, *dims] as in `schema.USER_TENSORS`.

        Raises:
            DeploymentError: the online store does not answer.
        """
        parts = await asyncio.gather(*(self._features(user_ids[part]) for part in _parts(user_ids)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    async def recommend(
        self,
        user_ids: Sequence[int],
        question: Question = Question(),
        *,
        model: str | None = None,
        features: Arrays | None = None,
    ) -> list[Recommendation]:
        """Return the best videos of each user.

        Args:
            user_ids: users, in any number; one that the store does not know is answered as a newcomer.
            question: what is asked for them.
            model: `recommend` of a certain release by its numbered name; what serves when not given.
            features: of the users, from `user_features`; read when not given.

        Raises:
            DeploymentError: Triton or the online store does not answer.
        """
        answers = await asyncio.gather(
            *(
                self._part(user_ids[part], question, model, features and rows_of(features, part))
                for part in _parts(user_ids)
            )
        )
        return [answer for part in answers for answer in part]

    async def _part(
        self, user_ids: Sequence[int], question: Question, model: str | None, features: Arrays | None
    ) -> list[Recommendation]:
        users = await self._features(user_ids) if features is None else features
        request = users | question.tensors(len(user_ids))
        with timed(self._observe, "triton"):
            answer = await self.client.infer("recommend", request, model=model)
        return [_recommendation(user_id, answer, row) for row, user_id in enumerate(user_ids)]

    async def _features(self, user_ids: Sequence[int]) -> Arrays:
        with timed(self._observe, "features"):
            try:
                return await asyncio.to_thread(online_user_features, self.store, user_ids)
            except Exception as error:  # each of Feast's stores raises errors of its own
                raise DeploymentError(
                    f"The online store does not answer ({type(error).__name__}); "
                    "run `watchrank features`, or start the store."
                ) from error


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


def _recommendation(user_id: int, answer: Arrays, row: int) -> Recommendation:
    places = int((answer["video_ids"][row] != PAD_ID).sum())
    return Recommendation(
        user_id=user_id,
        video_ids=answer["video_ids"][row, :places].tolist(),
        expected_watch_seconds=answer[EXPECTED_WATCH_TIME][row, :places].tolist(),
        candidate_scores=answer["candidate_scores"][row, :places].tolist(),
        release=int(answer["release"][row, 0]),
        answers={name: answer[name][row, :places].tolist() for name in sorted(answer.keys() - _OWN)},
    )


async def ask(
    store: "FeatureStore", settings: DeploymentSettings, user_ids: Sequence[int], question: Question
) -> list[Recommendation]:
    """Return the best videos of each user over a connection of its own."""
    async with TritonClient(settings) as client:
        return await Recommender(store, client).recommend(user_ids, question)


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
