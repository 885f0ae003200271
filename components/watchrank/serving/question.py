"""What `recommend` is asked, and what it answers."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from watchrank.errors import InputError
from watchrank.schema import PAD_ID, RECOMMEND_INPUTS, score_weight, text_id

SMALLEST_EXCLUDED = 8
"""Lists of excluded ids are padded to this length or the next power of two: equal lengths share a batch."""

LARGEST_INTEGER = 2**63 - 1
LARGEST_WEIGHT = float(np.finfo(np.float32).max)

Arrays = dict[str, np.ndarray]

Fallback = Literal["features", "triton"]
"""What an answer had to do without."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One user's answer: videos in falling order of expected watch time, or as diversity has it.

    A ranker of several tasks orders by its score; `answers` holds that and each other task's answer by name.

    `fallback` is "features" when nothing is known of the user, who is new, or the online store is empty or
    does not answer: the videos are those for a newcomer. It is "triton" when Triton does not answer: the
    videos are the most watched of the release, without seconds and scores.
    """

    user_id: int
    video_ids: list[int]
    expected_watch_seconds: list[float]
    candidate_scores: list[float]
    release: int
    answers: dict[str, list[float]] = field(default_factory=dict)
    fallback: Fallback | None = None


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
        check_integers("k", [self.k])
        check_integers("channel_limit", [self.channel_limit])
        check_integers("now", [self.now or 0])
        check_integers("excluded", self.excluded)
        if self.surface is not None and not self.surface.isprintable():
            raise InputError(f"The surface {self.surface!r} is no printable text; give its name.")
        for task, weight in self.score_weights.items():
            if not abs(weight) <= LARGEST_WEIGHT:
                raise InputError(
                    f"The score's weight of {task} is {weight}; give a number up to {LARGEST_WEIGHT:.2g}."
                )

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


def check_integers(name: str, values: Sequence[int]) -> None:
    """Check that values are 0 or more and fit into 64 bits.

    Raises:
        InputError: one does not; `name` says which they are.
    """
    for value in values:
        if not 0 <= value <= LARGEST_INTEGER:
            raise InputError(f"{name} has {value}; give whole numbers from 0 to {LARGEST_INTEGER}.")
