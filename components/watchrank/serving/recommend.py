"""recommend(user): features from Feast, candidates, ranking by Triton."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from watchrank.config import DeploymentSettings
from watchrank.errors import InputError
from watchrank.feature_store import online_user_features, online_video_features
from watchrank.schema import EXPECTED_WATCH_TIME, PAD_ID, text_id
from watchrank.serving.client import TritonClient

if TYPE_CHECKING:
    from feast import FeatureStore


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One user's answer: videos in falling order of expected watch time."""

    user_id: int
    video_ids: list[int]
    expected_watch_seconds: list[float]


class Recommender:
    """Ranks candidates for users: Feast's online features, then one call of Triton's `ranking`.

    Candidates are the most watched videos among users of the same language that the user has not
    watched lately.
    """

    def __init__(
        self,
        store: "FeatureStore",
        client: TritonClient,
        release: Path,
        *,
        candidates: int = 200,
    ) -> None:
        """Make the recommender.

        Args:
            store: opened by `feature_store.open_store`, materialised.
            client: of the server that serves the release.
            release: folder of the release.
            candidates: how many candidates are ranked.
        """
        self.store, self.client, self.candidates = store, client, candidates
        self.popular: dict[str, list[int]] = _read_popular(release)

    def recommend(
        self, user_ids: list[int], k: int = 10, *, now: int | None = None, surface: str | None = None
    ) -> list[Recommendation]:
        """Return the best `k` videos of each user.

        Args:
            user_ids: users; one that the store does not know is answered by what is popular.
            k: how many videos.
            now: time of the request in seconds since 1970; the present when not given.
            surface: where the videos will be shown.

        Raises:
            InputError: `k` is below 1.
            DeploymentError: Triton does not answer.
        """
        if k < 1:
            raise InputError(f"k is {k}; ask for at least 1 video.")
        users = online_user_features(self.store, user_ids)
        context = {"now": int(time.time()) if now is None else now, "surface": text_id(surface)}
        return [
            self._one(user_id, {name: column[[row]] for name, column in users.items()}, context, k)
            for row, user_id in enumerate(user_ids)
        ]

    def _one(
        self, user_id: int, user: dict[str, np.ndarray], context: dict[str, int], k: int
    ) -> Recommendation:
        video_ids = self._candidates(user)
        if not video_ids:
            return Recommendation(user_id=user_id, video_ids=[], expected_watch_seconds=[])
        videos = {name: column[None] for name, column in online_video_features(self.store, video_ids).items()}
        request = {name: np.full((1, 1), value, dtype=np.int64) for name, value in context.items()}
        features = request | user | videos | {"video_id": np.array([video_ids])}
        answer = self.client.rank(features)
        seconds = answer[EXPECTED_WATCH_TIME][0]
        best = np.argsort(-seconds, kind="stable")[:k]
        return Recommendation(
            user_id=user_id,
            video_ids=[video_ids[place] for place in best],
            expected_watch_seconds=[float(seconds[place]) for place in best],
        )

    def _candidates(self, user: dict[str, np.ndarray]) -> list[int]:
        language = int(user["user_language"][0, 0])
        popular = self.popular.get(str(language), []) if language != PAD_ID else []
        watched = set(user["watched_video_ids"][0].tolist())
        fresh = [video for video in dict.fromkeys([*popular, *self.popular["all"]]) if video not in watched]
        return fresh[: self.candidates]


def _read_popular(release: Path) -> dict[str, Any]:
    try:
        popular: dict[str, Any] = json.loads((release / "popular.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read the release {release}: {error}. Export it again.") from None
    return popular


def showcase(
    store: "FeatureStore", release: Path, settings: DeploymentSettings, users: int = 3, k: int = 5
) -> str:
    """Return a Markdown table of Triton's answers for a few users of the release's golden requests."""
    manifest = json.loads((release / "manifest.json").read_text())
    with TritonClient(settings) as client:
        answers = Recommender(store, client, release).recommend(manifest["showcase_users"][:users], k)
    lines = ["| user | video | expected watch, s |", "| --- | --- | --- |"]
    lines += [
        f"| {answer.user_id} | {video} | {seconds:.1f} |"
        for answer in answers
        for video, seconds in zip(answer.video_ids, answer.expected_watch_seconds, strict=True)
    ]
    return "\n".join(lines) + "\n"
