"""Which release answers a user: the one that serves, or for some users a challenger beside it."""

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from watchrank.config import ServingSettings
from watchrank.deployment.model_repository import name_of
from watchrank.errors import WatchrankError
from watchrank.serving.metrics import Metrics
from watchrank.serving.question import Arrays, Question, Recommendation
from watchrank.serving.recommend import Recommender, halfway, rows_of
from watchrank.serving.request_log import in_share

MOST_SHADOWS = 32
"""Requests that wait for the challenger at once; above it the challenger is not asked."""


class Traffic:
    """Sends requests to the champion, which is what serves, and some of them to the challenger.

    As a canary the challenger answers its users in half of the time that is left; when it fails, the champion
    does. In its shadow the champion answers everybody and the challenger is asked afterwards, to be measured.
    """

    def __init__(self, champion: Recommender, settings: ServingSettings, metrics: Metrics) -> None:
        """Make it; `champion` gives the connection to the challenger, too."""
        self._model = name_of("recommend", settings.challenger) if settings.challenger else None
        self._champion, self._challenger = champion, champion.challenger(f"The challenger {self._model}")
        self._share, self._mode = settings.challenger_share, settings.challenger_mode
        self._metrics = metrics
        self._shadows: set[asyncio.Task[None]] = set()

    def is_challenged(self, user_id: int) -> bool:
        """Tell whether the challenger is asked for a user: for good, as long as the share does not sink."""
        return self._model is not None and in_share(user_id, self._share, "challenger")

    async def recommend(
        self, user_ids: Sequence[int], features: Arrays, question: Question, deadline: float
    ) -> list[Recommendation]:
        """Return the answer for each user.

        Args:
            user_ids: users, at least one.
            features: of these users, from `Recommender.user_features`.
            question: what is asked for them.
            deadline: from `Recommender.deadline` when the request came.

        Raises:
            InputError: the server refuses the request.
            DeploymentError: the champion does not answer, and has no fallback.
        """
        challenged = [self.is_challenged(user_id) for user_id in user_ids]
        chosen, others = np.flatnonzero(challenged).tolist(), np.flatnonzero(~np.array(challenged)).tolist()
        part = [user_ids[row] for row in chosen], rows_of(features, chosen), question
        if not chosen or self._mode == "shadow":
            answers = await self._champion.recommend(user_ids, question, features=features, deadline=deadline)
            if chosen:
                self._shadow(*part, [answers[row] for row in chosen])
            return answers
        of_challenger, of_champion = await asyncio.gather(
            self._canary(*part, deadline),
            self._champion.recommend(
                [user_ids[row] for row in others],
                question,
                features=rows_of(features, others),
                deadline=deadline,
            ),
        )
        by_row = dict(zip([*chosen, *others], [*of_challenger, *of_champion], strict=True))
        return [by_row[row] for row in range(len(user_ids))]

    async def close(self) -> None:
        """Stop asking the challenger in the background."""
        for task in self._shadows:
            task.cancel()
        await asyncio.gather(*self._shadows, return_exceptions=True)

    async def _canary(
        self, user_ids: Sequence[int], features: Arrays, question: Question, deadline: float
    ) -> list[Recommendation]:
        answers = await self._ask_challenger(user_ids, features, question, halfway(deadline))
        if answers is None:
            return await self._champion.recommend(user_ids, question, features=features, deadline=deadline)
        return answers

    def _shadow(
        self,
        user_ids: Sequence[int],
        features: Arrays,
        question: Question,
        of_champion: Sequence[Recommendation],
    ) -> None:
        if len(self._shadows) >= MOST_SHADOWS:
            self._metrics.challenger_requests.add("skipped")
            return
        task = asyncio.create_task(self._compare(user_ids, features, question, of_champion))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _compare(
        self,
        user_ids: Sequence[int],
        features: Arrays,
        question: Question,
        of_champion: Sequence[Recommendation],
    ) -> None:
        of_challenger = await self._ask_challenger(user_ids, features, question)
        if of_challenger is not None:
            for one, other in zip(of_champion, of_challenger, strict=True):
                self._metrics.challenger_equal.observe(equal_share(one.video_ids, other.video_ids))

    async def _ask_challenger(
        self, user_ids: Sequence[int], features: Arrays, question: Question, deadline: float | None = None
    ) -> list[Recommendation] | None:
        """Return the challenger's answers, or None when it fails."""
        start = time.perf_counter()
        try:
            answers = await self._challenger.recommend(
                user_ids, question, model=self._model, features=features, deadline=deadline
            )
        except WatchrankError:
            self._metrics.challenger_requests.add("failed")
            return None
        self._metrics.challenger_requests.add("answered")
        self._metrics.challenger_seconds.observe(time.perf_counter() - start)
        return answers


def equal_share(one: Sequence[int], other: Sequence[int]) -> float:
    """Return the share of the videos of `one` that are in `other`, too; 1 when there are none."""
    return len({*one} & {*other}) / len(one) if one else 1.0
