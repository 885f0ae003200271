"""Which videos a request shows: popular ones, new ones of favourite channels, and random ones."""

from dataclasses import dataclass

import numpy as np

from watchrank.simulation.audience import Audience, Requests
from watchrank.simulation.catalogue import DAY_MS, Array, Catalogue, burst
from watchrank.simulation.vocabulary import LANGUAGES

SOURCES = ("popular", "favourites", "explore")
_POPULAR, _FAVOURITES, _EXPLORE = range(3)
_SOURCE_SHARES = (0.5, 0.25, 0.25)
_OWN_LANGUAGE = 0.85
_NONE = -1


@dataclass(frozen=True, kw_only=True)
class Slates:
    """What the requests show: video and source indices, [R, slate]."""

    videos: Array
    sources: Array


class Shelf:
    """The catalogue sorted for drawing from it."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Sort the videos by language and by channel."""
        self._catalogue = catalogue
        self._by_language = np.argsort(catalogue.languages, kind="stable")
        in_order = catalogue.languages[self._by_language]
        self._language_ends = np.searchsorted(in_order, np.arange(len(LANGUAGES)), side="right")
        self._span = 2 * int(np.abs(catalogue.upload_ms).max()) + 2
        keys = catalogue.channels * self._span + catalogue.upload_ms
        self._by_channel = np.argsort(keys, kind="stable")
        self._channel_keys = keys[self._by_channel]

    def draw_slates(
        self, requests: Requests, audience: Audience, slate: int, rng: np.random.Generator
    ) -> Slates:
        """Draw `slate` distinct videos a request, each uploaded before it.

        More candidates than needed are drawn, each from a random source; the first usable ones are
        shown. A request that lacks usable ones shows neighbours in upload order.
        """
        size = (len(requests.users), slate + slate // 2 + 4)
        sources = rng.choice(len(SOURCES), size, p=_SOURCE_SHARES)
        candidates = np.empty(size, np.int64)
        for source, draw in enumerate((self.popular, self.of_favourites, self.random)):
            chosen = sources == source
            request = np.nonzero(chosen)[0]
            users = requests.users[request]
            candidates[chosen] = draw(users, requests.time_ms[request], audience, rng)
        usable = (candidates != _NONE) & _first_in_row(candidates)
        best = np.argsort(~usable, axis=1, kind="stable")[:, :slate]
        videos = np.take_along_axis(candidates, best, axis=1)
        shown_sources = np.take_along_axis(sources, best, axis=1)
        short = usable.sum(axis=1) < slate
        videos[short] = self._neighbours(requests.time_ms[short], slate, rng)
        shown_sources[short] = _EXPLORE
        return Slates(videos=videos, sources=shown_sources)

    def popular(self, users: Array, time_ms: Array, audience: Audience, rng: np.random.Generator) -> Array:
        """Draw from the day's popular videos, mostly of the user's language. [N] → [N], -1 for none."""
        abroad = rng.random(len(users)) >= _OWN_LANGUAGE
        anywhere = rng.integers(len(LANGUAGES), size=len(users))
        languages = np.where(abroad, anywhere, audience.languages[users])
        point = rng.random(len(users))
        videos = np.empty(len(users), np.int64)
        days = time_ms // DAY_MS
        order = np.argsort(days.astype(np.int32), kind="stable")
        starts = np.flatnonzero(np.diff(days[order], prepend=-1))
        for rows in np.split(order, starts)[1:]:
            videos[rows] = self._popular_on(int(days[rows[0]]), languages[rows], point[rows])
        return np.where(self._uploaded(videos, time_ms), videos, _NONE)

    def of_favourites(
        self, users: Array, time_ms: Array, audience: Audience, rng: np.random.Generator
    ) -> Array:
        """Draw from the last uploads of a favourite channel. [N] → [N], -1 for none."""
        favourite = rng.integers(audience.favourites.shape[1], size=len(users))
        channels = audience.favourites[users, favourite]
        newest = np.searchsorted(self._channel_keys, channels * self._span + time_ms) - 1
        place = newest - (rng.geometric(0.3, len(users)) - 1)
        videos = self._by_channel[np.maximum(place, 0)]
        right = (place >= 0) & (self._catalogue.channels[videos] == channels)
        return np.where(right, videos, _NONE)

    def random(self, users: Array, time_ms: Array, audience: Audience, rng: np.random.Generator) -> Array:
        """Draw evenly from all videos that are there. [N] → [N]."""
        there = np.searchsorted(self._catalogue.upload_ms, time_ms)
        return rng.integers(there)

    def _popular_on(self, day: int, languages: Array, point: Array) -> Array:
        """Pick by P ~ exp(quality) (0.08 + burst(age at noon)) among the day's videos of a language."""
        catalogue = self._catalogue
        age_ms = (day + 0.5) * DAY_MS - catalogue.upload_ms
        weights = np.exp(catalogue.quality) * (0.08 + burst(age_ms))
        weights[catalogue.upload_ms >= (day + 1) * DAY_MS] = 0
        sums = np.cumsum(weights[self._by_language])
        ends = np.concatenate([[0.0], sums])[np.concatenate([[0], self._language_ends])]
        low, high = ends[languages], ends[languages + 1]
        place = np.searchsorted(sums, low + point * (high - low), side="right")
        videos = self._by_language[np.minimum(place, len(sums) - 1)]
        return np.where(high > low, videos, _NONE)

    def _uploaded(self, videos: Array, time_ms: Array) -> Array:
        there: Array = (videos != _NONE) & (self._catalogue.upload_ms[videos] < time_ms)
        return there

    def _neighbours(self, time_ms: Array, slate: int, rng: np.random.Generator) -> Array:
        there = np.searchsorted(self._catalogue.upload_ms, time_ms)
        neighbours: Array = (rng.integers(there)[:, None] + np.arange(slate)) % there[:, None]
        return neighbours


def _first_in_row(candidates: Array) -> Array:
    """Whether a value has not stood further left in its row. [R, K] → [R, K]."""
    order = np.argsort(candidates, axis=1, kind="stable")
    in_order = np.take_along_axis(candidates, order, axis=1)
    fresh = np.ones(candidates.shape, bool)
    fresh[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    first = np.empty_like(fresh)
    np.put_along_axis(first, order, fresh, axis=1)
    return first
