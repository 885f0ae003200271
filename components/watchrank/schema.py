"""The one source of tables, columns, dtypes and tensor names.

Everything that must agree on a column reads it here: ingestion, the validation suites, the Feast
definitions, the training data, the ONNX inputs and Triton's configuration.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

Dtype = Literal["int64", "float32", "float64", "bool", "string", "timestamp", "list<int64>", "list<float32>"]

PAD_ID = -1
"""Stands for "no id here": the padding of a list of ids, a missing category, an unknown time."""

WATCH_HISTORY = 50
SEARCH_HISTORY = 50
IMPRESSION_HISTORY = 200
SEARCH_WORDS, SEARCH_NGRAMS = 12, 12
"""Words of a search, and n-grams of a word, that text matching reads."""

DAY_SECONDS = 86_400


def text_id(text: str | None) -> int:
    """Return the id under which a categorical string travels: the first 60 bits of its MD5.

    Ids are all that a tensor, Feast and Triton have to carry; the vocabulary lookup in the model's
    graph treats them as any other id. A missing string is `PAD_ID`.
    """
    if text is None:
        return PAD_ID
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:15], 16)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table.

    `required`: the table must have the column. `nullable`: its values may be missing. A column that
    is not required and not there is *absent*; features that need it drop out of the model.
    """

    name: str
    dtype: Dtype
    description: str
    required: bool = True
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: its columns in order and its key."""

    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column:
        """Return the column of that name."""
        return next(column for column in self.columns if column.name == name)

    @property
    def names(self) -> list[str]:
        """The columns' names, in order."""
        return [column.name for column in self.columns]


def _column(name: str, dtype: Dtype, description: str, **rest: object) -> Column:
    return Column(name=name, dtype=dtype, description=description, **rest)  # type: ignore[arg-type]


def _optional(name: str, dtype: Dtype, description: str, **rest: object) -> Column:
    return _column(name, dtype, description, required=False, nullable=True, **rest)


_USER_ID = _column("user_id", "int64", "the user", minimum=0)
_VIDEO_ID = _column("video_id", "int64", "the video", minimum=0)

# -- The log: what a platform brings -------------------------------------------------------------

IMPRESSIONS = Table(
    name="impressions",
    key=("user_id", "video_id", "timestamp"),
    columns=(
        _USER_ID,
        _VIDEO_ID,
        _column("timestamp", "timestamp", "when the video was shown, UTC"),
        _column("clicked", "bool", "whether the user opened it"),
        _column("watch_seconds", "float64", "seconds watched; 0 when not clicked", minimum=0),
        _optional("surface", "string", "where it was shown: home, feed, ..."),
        _optional("position", "int64", "place in the list, from 0", minimum=0),
        _optional("candidate_source", "string", "what proposed the video"),
        _optional("liked", "bool", "whether the user liked it"),
        _optional("followed", "bool", "whether the user followed the channel from it"),
        _optional("long_view", "bool", "whether the platform counts the watch as long"),
    ),
)

VIDEOS = Table(
    name="videos",
    key=("video_id",),
    columns=(
        _VIDEO_ID,
        _column("channel_id", "int64", "who published it", required=False, minimum=0),
        _optional("upload_time", "timestamp", "when it was published, UTC"),
        _optional("duration_seconds", "float64", "its length; missing when unknown", minimum=0),
        _optional("title", "string", "its title"),
        _optional("language", "string", "its language, as a BCP 47 tag"),
        _optional("category", "string", "its category"),
    ),
)

USERS = Table(
    name="users",
    key=("user_id",),
    columns=(
        _USER_ID,
        _optional("age", "float64", "age in years", minimum=0, maximum=130),
        _optional("gender", "string", "gender as the platform writes it"),
        _optional("country", "string", "country, as an ISO 3166 code"),
        _optional("language", "string", "language, as a BCP 47 tag"),
        _optional("device", "string", "kind of device"),
        _optional("signup_time", "timestamp", "when the account was made, UTC"),
        _optional("logged_in", "bool", "whether the user watches logged in"),
    ),
)

SEARCHES = Table(
    name="searches",
    key=("user_id", "timestamp", "query"),
    columns=(
        _USER_ID,
        _column("timestamp", "timestamp", "when the user searched, UTC"),
        _column("query", "string", "what the user typed"),
        _optional("clicked_video_id", "int64", "the video opened from the results", minimum=0),
    ),
)

LOG_TABLES = (IMPRESSIONS, VIDEOS, USERS, SEARCHES)
"""The log itself."""

EARLIER_WATCHES = Table(
    name="earlier_watches",
    key=("user_id", "place"),
    columns=(
        _USER_ID,
        _VIDEO_ID,
        _column("timestamp", "timestamp", "the watch was not later than this, UTC"),
        _column("place", "int64", "order of the user's earlier watches, the oldest 0", minimum=0),
    ),
)
"""What users watched before the log begins: it adds to their histories and to no statistics."""

SOURCE_TABLES = (*LOG_TABLES, EARLIER_WATCHES)
"""What a source may bring."""

OPTIONAL_TABLES = (SEARCHES, EARLIER_WATCHES)
"""They may be missing as a whole."""

# -- Features: what Feast stores, one value of each column per entity and time --------------------

EVENT_TIMESTAMP = "event_timestamp"
"""From this instant on a feature row may be used. It covers only events strictly before it."""

CREATED_TIMESTAMP = "created_timestamp"
"""From this instant on a feature row was known: its event timestamp, or later when the log came late."""


def _ids(name: str, length: int, description: str) -> Column:
    return _column(name, "list<int64>", description, length=length)


USER_PROFILE = Table(
    name="user_profile",
    key=("user_id",),
    columns=(
        _column("age", "float32", "age in years", nullable=True),
        _column("gender", "int64", "text id of the gender"),
        _column("country", "int64", "text id of the country"),
        _column("user_language", "int64", "text id of the user's language"),
        _column("device", "int64", "text id of the device"),
        _column("signup_time", "int64", "seconds since 1970, or -1"),
        _column("logged_in", "int64", "1 logged in, 0 not, -1 unknown"),
    ),
)

USER_ACTIVITY = Table(
    name="user_activity",
    key=("user_id",),
    columns=(
        _ids("watched_video_ids", WATCH_HISTORY, "last watched (clicked) videos, newest first"),
        _ids("watched_channel_ids", WATCH_HISTORY, "their channels"),
        _ids("watched_times", WATCH_HISTORY, "when, in seconds since 1970"),
        _column("watched_seconds", "list<float32>", "for how many seconds", length=WATCH_HISTORY),
        _ids("search_token_ids", SEARCH_HISTORY, "text ids of the last search tokens, newest first"),
        _ids("impression_video_ids", IMPRESSION_HISTORY, "videos last shown, newest first, with repeats"),
    ),
)

USER_STATISTICS = Table(
    name="user_statistics",
    key=("user_id",),
    columns=(
        _column("user_impressions_7d", "int64", "impressions in 7 x 24 h, held back by a day"),
        _column("user_clicks_7d", "int64", "clicks in 7 x 24 h, held back by a day"),
        _column("user_watch_seconds_7d", "float32", "seconds watched in 7 x 24 h, held back by a day"),
    ),
)
"""Apart from the activity, renewed more rarely and held back: see `features.counts.user_statistics`."""

USER_SEARCH = Table(
    name="user_search",
    key=("user_id",),
    columns=(
        _column("last_search_time", "int64", "when the user last searched, in seconds since 1970, or -1"),
        _ids(
            "search_ngram_ids",
            SEARCH_WORDS * SEARCH_NGRAMS,
            f"n-grams of that search: {SEARCH_WORDS} words of {SEARCH_NGRAMS}, -1 pads",
        ),
    ),
)

VIDEO_PROFILE = Table(
    name="video_profile",
    key=("video_id",),
    columns=(
        _column("channel_id", "int64", "who published it"),
        _column("upload_time", "int64", "seconds since 1970, or -1"),
        _column("duration_seconds", "float32", "its length", nullable=True),
        _column("video_language", "int64", "text id of its language"),
        _column("category", "int64", "text id of its category"),
    ),
)

STATISTICS_DAYS = (1, 7, 28)
"""How far back each count of a video goes."""

VIDEO_STATISTICS = Table(
    name="video_statistics",
    key=("video_id",),
    columns=tuple(
        column
        for days in STATISTICS_DAYS
        for column in (
            _column(f"video_impressions_{days}d", "int64", f"impressions in the {days} x 24 h before"),
            _column(f"video_clicks_{days}d", "int64", f"clicks in the {days} x 24 h before"),
            _column(
                f"video_watch_seconds_{days}d", "float32", f"seconds watched in the {days} x 24 h before"
            ),
        )
    ),
)

FEATURE_TABLES = (
    USER_PROFILE,
    USER_ACTIVITY,
    USER_STATISTICS,
    USER_SEARCH,
    VIDEO_PROFILE,
    VIDEO_STATISTICS,
)

FEATURE_ORIGIN = {
    "age": "users.age",
    "gender": "users.gender",
    "country": "users.country",
    "user_language": "users.language",
    "device": "users.device",
    "signup_time": "users.signup_time",
    "logged_in": "users.logged_in",
    "search_token_ids": "searches.query",
    "last_search_time": "searches.query",
    "search_ngram_ids": "searches.query",
    "watched_channel_ids": "videos.channel_id",
    "channel_id": "videos.channel_id",
    "upload_time": "videos.upload_time",
    "duration_seconds": "videos.duration_seconds",
    "video_language": "videos.language",
    "category": "videos.category",
    "surface": "impressions.surface",
    "candidate_source": "impressions.candidate_source",
}
"""The optional log column that a feature comes from: absent there, the feature is absent too."""

# -- Tensors: what the models take and answer ------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A model's input or output. `dims` leaves the batch out; -1 is the number of candidates."""

    name: str
    dtype: Literal["int64", "float32"]
    dims: tuple[int, ...]
    description: str


CANDIDATES = -1
EXPECTED_WATCH_TIME = "expected_watch_time"


def _tensor(column: Column, dims: tuple[int, ...]) -> Tensor:
    dtype: Literal["int64", "float32"] = "float32" if "float" in column.dtype else "int64"
    return Tensor(name=column.name, dtype=dtype, dims=dims, description=column.description)


REQUEST_TENSORS = (
    Tensor(name="now", dtype="int64", dims=(1,), description="time of the request, seconds since 1970"),
    Tensor(name="surface", dtype="int64", dims=(1,), description="text id of the surface"),
)
USER_TENSORS = tuple(
    _tensor(column, (column.length or 1,))
    for table in (USER_PROFILE, USER_ACTIVITY, USER_STATISTICS, USER_SEARCH)
    for column in table.columns
)
VIDEO_TENSORS = (
    Tensor(name="video_id", dtype="int64", dims=(CANDIDATES,), description="the candidates"),
    *(
        _tensor(column, (CANDIDATES,))
        for table in (VIDEO_PROFILE, VIDEO_STATISTICS)
        for column in table.columns
    ),
)
IMPRESSION_TENSORS = (
    Tensor(
        name="candidate_source",
        dtype="int64",
        dims=(CANDIDATES,),
        description="text id of what proposed the candidate",
    ),
)
RANKING_INPUTS = (*REQUEST_TENSORS, *USER_TENSORS, *VIDEO_TENSORS, *IMPRESSION_TENSORS)
SCORE = Tensor(
    name="score",
    dtype="float32",
    dims=(CANDIDATES,),
    description="the tasks' answers, each times its weight, summed",
)
WEIGHT = "_weight"
"""How the inputs end by which a request weighs the tasks of a ranker with several."""
RANKING_OUTPUTS = (
    Tensor(
        name=EXPECTED_WATCH_TIME,
        dtype="float32",
        dims=(CANDIDATES,),
        description="expected seconds of watching, exp(logit)",
    ),
)


def score_weight(task: str) -> Tensor:
    """Return the input by which a request weighs a task in the score."""
    return Tensor(
        name=f"{task}{WEIGHT}",
        dtype="float32",
        dims=(1,),
        description=f"of {task} in the score; NaN for the release's",
    )


EXAMPLE_AGE = Tensor(
    name="example_age",
    dtype="float32",
    dims=(1,),
    description="0, or seconds to look back from the training's end",
)
EXCLUDED_VIDEO_IDS = Tensor(
    name="excluded_video_ids",
    dtype="int64",
    dims=(CANDIDATES,),
    description="videos that must not be answered; -1 is none",
)
CANDIDATE_INPUTS = (*USER_TENSORS, EXAMPLE_AGE, EXCLUDED_VIDEO_IDS)

K = Tensor(name="k", dtype="int64", dims=(1,), description="how many videos to answer")
DIVERSITY = Tensor(
    name="diversity",
    dtype="float32",
    dims=(1,),
    description="weight of being unlike the videos ranked above, 0 (off) to 1",
)
CHANNEL_LIMIT = Tensor(
    name="channel_limit", dtype="int64", dims=(1,), description="most videos of one channel; 0: no limit"
)
RECOMMEND_INPUTS = (*REQUEST_TENSORS, *CANDIDATE_INPUTS, K, DIVERSITY, CHANNEL_LIMIT)
