"""The page that shows how a user's answer comes about: history, candidates, ranking, and the time it took."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import zip_longest
from typing import Any

import jinja2
import numpy as np

from watchrank.deployment.model_repository import name_of
from watchrank.schema import CANDIDATE_INPUTS, PAD_ID
from watchrank.serving.question import Arrays, Question, Recommendation
from watchrank.serving.recommend import Recommender, timed
from watchrank.serving.traffic import Traffic

SOURCE = "softmax index"
"""Where all candidates come from."""


async def explain(
    recommender: Recommender, traffic: Traffic, user_id: int, question: Question
) -> dict[str, Any]:
    """Answer one user and return what the page shows of it.

    Raises:
        InputError: the server refuses the request.
        DeploymentError: Triton or the online store does not answer.
    """
    seconds: dict[str, float] = {}
    deadline = recommender.deadline()
    with timed(seconds.__setitem__, "features from the online store"):
        features = await recommender.user_features([user_id], deadline)
    with timed(seconds.__setitem__, "recommend on Triton"):
        (answer,) = await traffic.recommend([user_id], features, question, deadline)
    candidates = []
    if answer.fallback != "triton":
        with timed(seconds.__setitem__, "candidates again, for this page"):
            found = await _candidates(recommender, features, question, answer.release)
            candidates = candidate_rows(found, answer)
    columns = (answer.expected_watch_seconds, answer.candidate_scores, *answer.answers.values())
    return {
        "answer": answer,
        "history": history(features),
        "candidates": candidates,
        "ranking": list(zip_longest(answer.video_ids, *columns)),
        "seconds": seconds,
    }


def render(**values: Any) -> str:
    """Fill the page's template; all values are escaped."""
    return _environment().get_template("recommendations.html.j2").render(**values)


def history(features: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the last watches of the one user of `features`, newest first."""
    watched = (
        features[name][0].tolist() for name in ("watched_video_ids", "watched_seconds", "watched_times")
    )
    return [
        {"video_id": video_id, "seconds": seconds, "time": _utc(at)}
        for video_id, seconds, at in zip(*watched, strict=True)
        if video_id != PAD_ID
    ]


def candidate_rows(candidates: Arrays, answer: Recommendation) -> list[dict[str, Any]]:
    """Return the candidates in the order of their scores, each with its place in the answer, from 1."""
    places = {video_id: place for place, video_id in enumerate(answer.video_ids, 1)}
    found: Sequence[tuple[int, float]] = list(
        zip(candidates["video_ids"][0].tolist(), candidates["scores"][0].tolist(), strict=True)
    )
    return [
        {"video_id": video_id, "source": SOURCE, "score": score, "place": places.get(video_id)}
        for video_id, score in found
        if video_id != PAD_ID
    ]


async def _candidates(recommender: Recommender, features: Arrays, question: Question, release: int) -> Arrays:
    """Ask the candidate generation of the release that answered, as a canary's is another one."""
    names = {spec.name for spec in CANDIDATE_INPUTS}
    request = {name: value for name, value in (features | question.tensors(1)).items() if name in names}
    model = name_of("candidate_generation", release)
    return await recommender.client.infer("candidate_generation", request, model=model)


def _utc(seconds: int) -> str:
    return "unknown" if seconds == PAD_ID else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


@cache
def _environment() -> jinja2.Environment:
    packages = ("watchrank.serving", "watchrank.evaluation")  # the second has the frame of all pages
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, "") for package in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
