"""What users do with the videos they are shown: clicks, watches, reactions, searches.

Click model, for a user u, a video v of age a (days since upload) at position k:

    P(click) = sigmoid(surface + quality_v + 0.9 same language + 0.9 favourite channel
                       + 0.6 taste_u,category + 1.2 exp(-a / 2)
                       - 0.8 log(1 + earlier impressions of v to u) - 0.25 log(1 + k))

Watch model, given a click:

    T = duration_v * Beta(2 m, 2 (1 - m)),     so E[T | click] = duration_v * m
    logit m = -1.2 + 0.5 quality_v + 0.8 same language + 0.4 favourite channel
              + 0.4 taste_u,category + patience_u - 0.4 log(duration_v / 240 s), kept within ±2.5

The Beta's concentration of 2 lets some watches end at once and some reach the end. An impression
that is not clicked has T = 0, so its true expected watch time is E[T] = P(click) * duration_v * m.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from watchrank.simulation.audience import SURFACES, Audience, Requests, distinct_times
from watchrank.simulation.catalogue import TITLE_WORDS, Array, Catalogue, burst
from watchrank.simulation.slates import SOURCES, Shelf, Slates

SURFACE_LOGITS = np.array([-4.75, -1.1])
"""Click rates of about 5 % (home) and 50 % (feed)."""

_CONCENTRATION = 2.0
_LONG_VIEW_SHARE = 0.7
_SEARCH_RATE = 0.2
_SEARCH_POOL = 16
_SEARCH_WITHIN_MS = 60_000
_SEARCH_CLICK_RATE = 0.6


@dataclass(frozen=True, kw_only=True)
class Impressions:
    """Everything the two models need of the impressions, [N] each. Users and videos are indices."""

    users: Array
    videos: Array
    time_ms: Array
    surfaces: Array
    positions: Array
    sources: Array
    same_language: Array
    favourite: Array
    taste: Array
    age_ms: Array
    earlier: Array


def impressions_of(
    requests: Requests, slates: Slates, audience: Audience, catalogue: Catalogue
) -> Impressions:
    """Lay the slates out as impressions, ordered by user, time and position."""
    slate = slates.videos.shape[1]
    users, time_ms = np.repeat(requests.users, slate), np.repeat(requests.time_ms, slate)
    videos = slates.videos.ravel()
    channels = catalogue.channels[videos]
    return Impressions(
        users=users,
        videos=videos,
        time_ms=time_ms,
        surfaces=np.repeat(requests.surfaces, slate),
        positions=np.tile(np.arange(slate), len(requests.users)),
        sources=slates.sources.ravel(),
        same_language=audience.languages[users] == catalogue.languages[videos],
        favourite=(audience.favourites[users] == channels[:, None]).any(axis=1),
        taste=audience.tastes[users, catalogue.categories[videos]],
        age_ms=time_ms - catalogue.upload_ms[videos],
        earlier=_earlier(users * len(catalogue.video_ids) + videos),
    )


def click_probability(shown: Impressions, catalogue: Catalogue) -> Array:
    """The click model, [N]."""
    return _sigmoid(
        SURFACE_LOGITS[shown.surfaces]
        + catalogue.quality[shown.videos]
        + 0.9 * shown.same_language
        + 0.9 * shown.favourite
        + 0.6 * shown.taste
        + 1.2 * burst(shown.age_ms)
        - 0.8 * np.log1p(shown.earlier)
        - 0.25 * np.log1p(shown.positions)
    )


def mean_watched_share(shown: Impressions, audience: Audience, catalogue: Catalogue) -> Array:
    """The watch model's m, [N]: the mean share of the video that is watched after a click."""
    logit = (
        -1.2
        + 0.5 * catalogue.quality[shown.videos]
        + 0.8 * shown.same_language
        + 0.4 * shown.favourite
        + 0.4 * shown.taste
        + audience.patience[shown.users]
        - 0.4 * np.log(catalogue.durations[shown.videos] / 240)
    )
    return _sigmoid(np.clip(logit, -2.5, 2.5))


def act(
    shown: Impressions, audience: Audience, catalogue: Catalogue, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let users click, watch and react.

    Returns:
        The columns of the log's `impressions` table and of the truth, times still in milliseconds.
    """
    probability = click_probability(shown, catalogue)
    mean_share = mean_watched_share(shown, audience, catalogue)
    durations = catalogue.durations[shown.videos]
    clicked = rng.random(len(probability)) < probability
    share = _watched_share(clicked, mean_share, rng)
    key = {
        "user_id": audience.user_ids[shown.users],
        "video_id": catalogue.video_ids[shown.videos],
        "timestamp": shown.time_ms,
    }
    log = {
        **key,
        "clicked": clicked,
        "watch_seconds": durations * share,
        "surface": pa.array(SURFACES).take(shown.surfaces),
        "position": shown.positions,
        "candidate_source": pa.array(SOURCES).take(shown.sources),
        "liked": _reacts(clicked, -3.5 + 2.5 * share + 0.5 * catalogue.quality[shown.videos], rng),
        "followed": _reacts(clicked & ~shown.favourite, -5.5 + 2.5 * share, rng),
        "long_view": clicked & (share >= _LONG_VIEW_SHARE),
    }
    expected = probability * durations * mean_share
    return log, {**key, "expected_watch_seconds": expected, "click_probability": probability}


def search(
    requests: Requests,
    audience: Audience,
    catalogue: Catalogue,
    shelf: Shelf,
    end_ms: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Let users search, shortly after some requests and before `end_ms`, for videos to their taste.

    The query is one or two neighbouring words of a title. Most searches open that video.

    Returns:
        The columns of the log's `searches` table, times still in milliseconds.
    """
    asked = np.flatnonzero(rng.random(len(requests.users)) < _SEARCH_RATE)
    users = requests.users[asked]
    delay_ms = rng.integers(1_000, _SEARCH_WITHIN_MS, size=len(asked))
    time_ms = distinct_times(users, requests.time_ms[asked] + delay_ms)
    in_time = time_ms < end_ms
    users, time_ms = users[in_time], time_ms[in_time]
    videos = _wanted(users, time_ms, audience, catalogue, shelf, rng)
    first = rng.integers(TITLE_WORDS - 1, size=len(users))
    last = first + rng.integers(2, size=len(users))
    opened = rng.random(len(users)) < _SEARCH_CLICK_RATE
    return {
        "user_id": audience.user_ids[users],
        "timestamp": time_ms,
        "query": catalogue.titles(videos, first, last),
        "clicked_video_id": pa.array(catalogue.video_ids[videos], mask=~opened),
    }


def _wanted(
    users: Array,
    time_ms: Array,
    audience: Audience,
    catalogue: Catalogue,
    shelf: Shelf,
    rng: np.random.Generator,
) -> Array:
    """Pick one of a few random videos each by P ~ exp(3 same language + 1.5 taste + quality). [N]."""
    size = (len(users), _SEARCH_POOL)
    every_user, every_time = np.repeat(users, _SEARCH_POOL), np.repeat(time_ms, _SEARCH_POOL)
    pool = shelf.random(every_user, every_time, audience, rng).reshape(size)
    same_language = audience.languages[users][:, None] == catalogue.languages[pool]
    taste = audience.tastes[users[:, None], catalogue.categories[pool]]
    wish = 3 * same_language + 1.5 * taste + catalogue.quality[pool] + rng.gumbel(size=size)
    best: Array = pool[np.arange(len(users)), np.argmax(wish, axis=1)]
    return best


def _earlier(pairs: Array) -> Array:
    """How often each value stood further up. [N] → [N]."""
    order = np.argsort(pairs, kind="stable")
    in_order = pairs[order]
    place = np.arange(len(pairs))
    starts = np.diff(in_order, prepend=in_order[:1] - 1) != 0
    counts = np.empty_like(place)
    counts[order] = place - np.maximum.accumulate(np.where(starts, place, 0))
    return counts


def _watched_share(clicked: Array, mean_share: Array, rng: np.random.Generator) -> Array:
    share = np.zeros(len(clicked))
    mean = mean_share[clicked]
    share[clicked] = rng.beta(_CONCENTRATION * mean, _CONCENTRATION * (1 - mean))
    return share


def _reacts(may: Array, logit: Array, rng: np.random.Generator) -> Array:
    reacts: Array = may & (rng.random(len(may)) < _sigmoid(logit))
    return reacts


def _sigmoid(logit: Array) -> Array:
    odds: Array = 1 / (1 + np.exp(-logit))
    return odds
