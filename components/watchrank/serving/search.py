"""Searching for videos by the text of a query: Triton's `text_match`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from watchrank.config import DeploymentSettings
from watchrank.models.text.tokens import query_ids
from watchrank.schema import PAD_ID, WATCH_HISTORY
from watchrank.serving.client import TritonClient


@dataclass(frozen=True, kw_only=True)
class Found:
    """The videos whose titles match a query best, with the cosines of their vectors, best first."""

    query: str
    video_ids: list[int]
    scores: list[float]


async def search(
    client: TritonClient, queries: Sequence[str], k: int, *, model: str | None = None
) -> list[Found]:
    """Return the k best videos for each query, as far as the release answers with so many.

    Args:
        client: of the server.
        queries: texts, at least one and at most a batch of Triton's.
        k: videos a query.
        model: `text_match` of a certain release by its numbered name; what serves when not given.

    Raises:
        DeploymentError: Triton does not answer, or what serves has no text matching.
    """
    nothing = np.full((len(queries), WATCH_HISTORY), PAD_ID)
    request = {
        "search_ngram_ids": query_ids(queries),
        "watched_video_ids": nothing,
        "excluded_video_ids": nothing[:, :1],
    }
    answer = await client.infer("text_match", request, model=model)
    return [
        _found(query, videos[:k], scores[:k])
        for query, videos, scores in zip(queries, answer["video_ids"], answer["scores"], strict=True)
    ]


async def ask(settings: DeploymentSettings, queries: Sequence[str], k: int) -> list[Found]:
    """Search over a connection of its own."""
    async with TritonClient(settings) as client:
        return await search(client, queries, k)


def _found(query: str, videos: np.ndarray, scores: np.ndarray) -> Found:
    there = videos != PAD_ID
    return Found(query=query, video_ids=videos[there].tolist(), scores=scores[there].tolist())
