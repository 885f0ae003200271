"""The simulated users: who they are, what they like, when they ask."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from watchrank.config import SimulationSettings
from watchrank.simulation.catalogue import DAY_MS, Array, Catalogue
from watchrank.simulation.vocabulary import CATEGORIES, COUNTRIES, LANGUAGE_SHARES, LANGUAGES

SURFACES = ("home", "feed")
FEED_SHARE = 0.25

_DEVICES = ("phone", "desktop", "tablet", "tv")
_DEVICE_SHARES = (0.6, 0.2, 0.1, 0.1)
_DEVICE_PATIENCE = np.array([-0.1, 0.0, 0.1, 0.3])
_GENDERS = ("female", "male")
_MISSING_AGE = 0.05
_MISSING_GENDER = 0.08
_FAVOURITES = 5
_FAVOURITE_POOL = 16
_HOUR_MS = 3_600_000
_SECOND_MS = 1_000


LOGGED_IN_SHARE = 0.85
_SCATTER = 2_654_435_761


@dataclass(frozen=True, kw_only=True)
class Audience:
    """A block of users [N]: what the log tells of them and what it hides (tastes, favourites, patience).

    Attributes:
        tastes: what each category adds, [N, categories].
        favourites: channel indices, [N, favourites].
    """

    user_ids: Array
    ages: Array
    genders: Array
    countries: Array
    languages: Array
    devices: Array
    signup_ms: Array
    tastes: Array
    favourites: Array

    @property
    def patience(self) -> Array:
        """What the user's device adds to the logit of the watched share, [N]."""
        return _DEVICE_PATIENCE[self.devices]

    def columns(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return the columns of the log's `users` table; some ages and genders are missing."""
        count = len(self.user_ids)
        countries = [country for language in LANGUAGES for country in COUNTRIES[language]]
        genders = pa.array(self.genders, mask=rng.random(count) < _MISSING_GENDER)
        return {
            "user_id": self.user_ids,
            "age": pa.array(self.ages, mask=rng.random(count) < _MISSING_AGE),
            "gender": pa.array(_GENDERS).take(genders),
            "country": pa.array(countries).take(self.countries),
            "language": pa.array(LANGUAGES).take(self.languages),
            "device": pa.array(_DEVICES).take(self.devices),
            "signup_time": self.signup_ms,
            "logged_in": self.user_ids * _SCATTER % 100 < 100 * LOGGED_IN_SHARE,
        }


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What users asked for, [R] each, ordered by user and time: user and surface are indices."""

    users: Array
    time_ms: Array
    surfaces: Array


def requests_per_user(settings: SimulationSettings, rng: np.random.Generator) -> Array:
    """Share `impressions / slate` requests out among the users; their activity is lognormal. [users]."""
    activity = rng.lognormal(0, 1, settings.users)
    return rng.multinomial(round(settings.impressions / settings.slate), activity / activity.sum())


def user_blocks(counts: Array, settings: SimulationSettings) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of blocks of users, each with about `chunk_impressions` impressions or one user.

    A user costs one request more than it makes, so that a block of idle users stays small as well.
    """
    ends = np.cumsum((counts + 1) * settings.slate)
    first = 0
    while first < len(counts):
        spent = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, spent + settings.chunk_impressions, side="right"))
        last = max(last, first + 1)
        yield first, last
        first = last


def make_audience(first: int, last: int, catalogue: Catalogue, rng: np.random.Generator) -> Audience:
    """Draw the users `first` to `last` (exclusive)."""
    count = last - first
    languages = rng.choice(len(LANGUAGES), count, p=LANGUAGE_SHARES)
    ages = np.round(np.clip(rng.normal(34, 13, count), 13, 85))
    by_age = (ages - 34)[:, None] / 13 * np.linspace(-0.5, 0.5, len(CATEGORIES))
    tastes = rng.normal(0, 1, (count, len(CATEGORIES))) + by_age
    home_countries = len(COUNTRIES["en"])
    return Audience(
        user_ids=np.arange(first, last) + 1,
        ages=ages,
        genders=rng.integers(len(_GENDERS), size=count),
        countries=languages * home_countries + rng.integers(home_countries, size=count),
        languages=languages,
        devices=rng.choice(len(_DEVICES), count, p=_DEVICE_SHARES),
        signup_ms=-(np.minimum(rng.exponential(400, count) + 1, 1_500) * DAY_MS).astype(np.int64),
        tastes=tastes,
        favourites=_favourites(languages, tastes, catalogue, rng),
    )


def draw_requests(counts: Array, days: int, rng: np.random.Generator) -> Requests:
    """Draw times (a daily rhythm with its peak at 20:00 UTC) and surfaces of `counts` [N] requests a user."""
    users = np.repeat(np.arange(len(counts)), counts)
    rhythm = 1 + 0.8 * np.cos((np.arange(24) - 20) * 2 * np.pi / 24)
    hours = rng.choice(24, len(users), p=rhythm / rhythm.sum())
    within = rng.integers(_HOUR_MS - _SECOND_MS, size=len(users))  # the rest is room for `distinct_times`
    time_ms = rng.integers(days, size=len(users)) * DAY_MS + hours * _HOUR_MS + within
    surfaces = (rng.random(len(users)) < FEED_SHARE).astype(np.int64)
    return Requests(users=users, time_ms=distinct_times(users, time_ms), surfaces=surfaces)


def distinct_times(users: Array, time_ms: Array) -> Array:
    """Sort the times within each user (`users` ascending) and move ties apart by a millisecond. [N] → [N]."""
    span = 2 * int(time_ms.max(initial=0)) + 1
    place = np.arange(len(users))
    keys = np.sort(users * span + time_ms) - place
    apart: Array = np.maximum.accumulate(keys) + place - users * span
    return apart


def _favourites(languages: Array, tastes: Array, catalogue: Catalogue, rng: np.random.Generator) -> Array:
    """Pick each favourite from a pool of popular channels by P ~ exp(2.5 same language + 1.5 taste)."""
    size = (len(languages), _FAVOURITES, _FAVOURITE_POOL)
    pool = rng.choice(len(catalogue.channel_ids), size, p=catalogue.channel_weights)
    same_language = catalogue.channel_languages[pool] == languages[:, None, None]
    taste = tastes[np.arange(len(languages))[:, None, None], catalogue.channel_categories[pool]]
    best = np.argmax(2.5 * same_language + 1.5 * taste + rng.gumbel(size=size), axis=2)
    return np.take_along_axis(pool, best[:, :, None], axis=2)[:, :, 0]
