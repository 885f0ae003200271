"""The simulated videos: channels, uploads, durations, quality, titles."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from watchrank.config import SimulationSettings
from watchrank.simulation.vocabulary import (
    CATEGORIES,
    CATEGORY_WORDS,
    LANGUAGE_SHARES,
    LANGUAGES,
    SEPARATORS,
    STYLE_WORDS,
    WORDS_PER_CATEGORY,
)

Array = npt.NDArray[Any]

DAY_MS = 86_400_000
TITLE_WORDS = 4
BURST_DAYS = 2.0
"""After so many days a video's burst of popularity has fallen to 1/e."""

_OLD_SHARE = 0.3
_OLD_DAYS = (30, 365)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Channels [C] and videos [V]; the videos are in the order of their upload.

    Channels, languages and categories are indices; times are milliseconds since the log's start.
    """

    channel_ids: Array
    channel_weights: Array
    channel_languages: Array
    channel_categories: Array
    video_ids: Array
    channels: Array
    languages: Array
    categories: Array
    upload_ms: Array
    durations: Array
    quality: Array
    title_words: Array

    def titles(self, videos: Array, first: Array, last: Array) -> pa.Array:
        """Return words `first` to `last` (both [N], inclusive) of the titles of `videos` [N]."""
        place = np.arange(TITLE_WORDS)
        kept = (place >= first[:, None]) & (place <= last[:, None])
        words = [
            _WORDS.take(pa.array(self.title_words[videos, i], mask=~kept[:, i])) for i in range(TITLE_WORDS)
        ]
        separators = pa.array([SEPARATORS[language] for language in LANGUAGES]).take(self.languages[videos])
        return pc.binary_join_element_wise(*words, separators, null_handling="skip")

    def columns(self) -> dict[str, Any]:
        """Return the columns of the log's `videos` table, times still in milliseconds."""
        everything = np.arange(len(self.video_ids))
        whole = np.full(len(everything), TITLE_WORDS - 1)
        return {
            "video_id": self.video_ids,
            "channel_id": self.channel_ids[self.channels],
            "upload_time": self.upload_ms,
            "duration_seconds": self.durations,
            "title": pc.utf8_capitalize(self.titles(everything, np.zeros_like(whole), whole)),
            "language": pa.array(LANGUAGES).take(self.languages),
            "category": pa.array(CATEGORIES).take(self.categories),
        }


def make_catalogue(settings: SimulationSettings, rng: np.random.Generator) -> Catalogue:
    """Draw channels and videos.

    A channel has a language, a main category and a quality; popular channels publish more. A video
    takes its channel's language, mostly its category, and varies around its quality.
    """
    channels, videos = settings.channels, settings.videos
    channel_weights = rng.permutation((np.arange(channels) + 10.0) ** -0.8)
    channel_weights /= channel_weights.sum()
    channel_languages = rng.choice(len(LANGUAGES), channels, p=LANGUAGE_SHARES)
    channel_categories = rng.integers(len(CATEGORIES), size=channels)
    channel = rng.choice(channels, videos, p=channel_weights)
    languages = channel_languages[channel]
    strays = rng.random(videos) < 0.2
    categories = np.where(strays, rng.integers(len(CATEGORIES), size=videos), channel_categories[channel])
    return Catalogue(
        channel_ids=_sparse_ids(channels, 30, rng),
        channel_weights=channel_weights,
        channel_languages=channel_languages,
        channel_categories=channel_categories,
        video_ids=_sparse_ids(videos, 40, rng),
        channels=channel,
        languages=languages,
        categories=categories,
        upload_ms=_upload_times(settings, rng),
        durations=np.round(np.clip(rng.lognormal(np.log(240), 0.7, videos), 20, 3_600)),
        quality=rng.normal(0, 0.5, channels)[channel] + rng.normal(0, 0.6, videos),
        title_words=_title_words(languages, categories, rng),
    )


def burst(age_ms: Array) -> Array:
    """Return exp(-age / `BURST_DAYS`): 1 at the upload, then falling."""
    falling: Array = np.exp(-np.maximum(age_ms, 0) / (BURST_DAYS * DAY_MS))
    return falling


def _sparse_ids(count: int, bits: int, rng: np.random.Generator) -> Array:
    ids = np.unique(rng.integers(2**bits, size=2 * count))
    while len(ids) < count:
        ids = np.union1d(ids, rng.integers(2**bits, size=count))
    return rng.permutation(ids)[:count]


def _upload_times(settings: SimulationSettings, rng: np.random.Generator) -> Array:
    """Ascending, [V]: old videos (at least a slate) long before the start, the rest around and in the log."""
    period = settings.days * DAY_MS
    old = min(settings.videos, max(settings.slate, round(_OLD_SHARE * settings.videos)))
    youngest, oldest = (days * DAY_MS for days in _OLD_DAYS)
    before = -rng.integers(youngest, oldest, size=old)
    recent = rng.integers(-min(period, youngest), period, size=settings.videos - old)
    return np.sort(np.concatenate([before, recent]))


_WORDS = pa.array(
    [word for words in CATEGORY_WORDS.values() for language in LANGUAGES for word in words[language]]
    + [word for language in LANGUAGES for word in STYLE_WORDS[language]]
)


def _title_words(languages: Array, categories: Array, rng: np.random.Generator) -> Array:
    """Indices into `_WORDS`, [V, `TITLE_WORDS`]: different words of the category, then one of style."""
    shuffled = rng.random((len(languages), WORDS_PER_CATEGORY), dtype=np.float32).argsort(axis=1)
    block = (categories * len(LANGUAGES) + languages) * WORDS_PER_CATEGORY
    styles = len(STYLE_WORDS["en"])
    first_style = len(CATEGORIES) * len(LANGUAGES) * WORDS_PER_CATEGORY
    style = first_style + languages * styles + rng.integers(styles, size=len(languages))
    return np.column_stack([block[:, None] + shuffled[:, : TITLE_WORDS - 1], style])
