import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from watchrank.config import EngineSettings, FeatureSettings
from watchrank.engine import connect
from watchrank.errors import InputError
from watchrank.events import absent
from watchrank.features import build_features
from watchrank.features.text import search_tokens, text_ids
from watchrank.models.text.tokens import query_ids
from watchrank.schema import FEATURE_ORIGIN, FEATURE_TABLES, USER_ACTIVITY, VIDEO_STATISTICS, text_id

INSTANT = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
WEEK = timedelta(days=7)
NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def engine():
    connection = connect(EngineSettings())
    yield connection
    connection.disconnect()


def rows_of(features: Path, table: str, *keys: int) -> list[dict]:
    """Rows in order of entity and time, all known in time; only those of the entities, if given."""
    path = features / f"{table}.parquet" if table.endswith("profile") else features / table
    rows = pq.read_table(path).drop_columns(["date"] if path.is_dir() else []).to_pylist()
    key = "user_id" if table.startswith("user") else "video_id"
    found = [row for row in rows if not keys or row[key] in keys]
    assert all(row.pop("created_timestamp") == row["event_timestamp"] for row in found)
    return sorted(found, key=lambda row: (row[key], row["event_timestamp"]))


def seconds(time: datetime) -> int:
    return int(time.timestamp())


def test_a_snapshot_follows_each_event_with_lists_newest_first(make_features, shown):
    later = NOON + timedelta(minutes=5, microseconds=500_000)
    _, features = make_features(
        [shown(1, 7, NOON, 30), shown(1, 8, NOON), shown(1, 9, later, 12.5), shown(2, 9, NOON)],
        searches=[{"user_id": 1, "timestamp": later, "query": "Blue cats"}],
    )
    assert rows_of(features, "user_activity") == [
        {
            "user_id": 1,
            "event_timestamp": NOON + INSTANT,
            "watched_video_ids": [7],
            "watched_channel_ids": [107],
            "watched_times": [seconds(NOON)],
            "watched_seconds": [30.0],
            "search_token_ids": [],
            "impression_video_ids": [8, 7],
        },
        {
            "user_id": 1,
            "event_timestamp": later + INSTANT,
            "watched_video_ids": [9, 7],
            "watched_channel_ids": [109, 107],
            "watched_times": [seconds(NOON) + 300, seconds(NOON)],
            "watched_seconds": [12.5, 30.0],
            "search_token_ids": [text_id("cats"), text_id("blue")],
            "impression_video_ids": [9, 8, 7],
        },
        {
            "user_id": 2,
            "event_timestamp": NOON + INSTANT,
            "watched_video_ids": [],
            "watched_channel_ids": [],
            "watched_times": [],
            "watched_seconds": [],
            "search_token_ids": [],
            "impression_video_ids": [9],
        },
    ]


def test_an_event_at_the_stamp_itself_is_not_in_the_snapshot(make_features, shown):
    _, features = make_features([shown(1, 7, NOON, 30), shown(1, 8, NOON + INSTANT, 40)])
    first, second = rows_of(features, "user_activity")
    assert (first["event_timestamp"], first["watched_video_ids"]) == (NOON + INSTANT, [7])
    assert (second["event_timestamp"], second["watched_video_ids"]) == (NOON + 2 * INSTANT, [8, 7])


def earlier(user: int, *watches: tuple[int, datetime]) -> list[dict]:
    """A user's earlier watches, oldest first, each a video and the time that it was not later than."""
    return [
        {"user_id": user, "video_id": video, "timestamp": time, "place": place}
        for place, (video, time) in enumerate(watches)
    ]


def watched_of(row: dict) -> list[tuple]:
    names = ("watched_video_ids", "watched_channel_ids", "watched_times", "watched_seconds")
    return list(zip(*(row[name] for name in names), strict=True))


@pytest.mark.parametrize("cadence", [0, 3_600])
def test_earlier_watches_come_before_those_of_the_log(make_features, shown, cadence):
    last = NOON - timedelta(days=3, hours=2)
    _, features = make_features(
        [shown(1, 7, NOON, 30), shown(1, 8, NOON)],
        earlier_watches=earlier(1, (9, last), (7, last), (8, last))[::-1],
        cadence=cadence,
    )
    before, after = rows_of(features, "user_activity")
    assert before["event_timestamp"] == stamp_of(last, cadence)
    past = [(8, 108, seconds(last), 0.0), (7, 107, seconds(last), 0.0), (9, 109, seconds(last), 0.0)]
    assert watched_of(before) == past
    assert before["impression_video_ids"] == before["search_token_ids"] == []
    assert after["event_timestamp"] == stamp_of(NOON, cadence)
    assert watched_of(after) == [(7, 107, seconds(NOON), 30.0), *past]
    assert after["impression_video_ids"] == [8, 7]


def test_a_user_with_nothing_but_earlier_watches_has_one_snapshot_just_after(make_features, shown):
    _, features = make_features([shown(1, 7, NOON)], earlier_watches=earlier(2, (8, NOON), (9, NOON)))
    (row,) = rows_of(features, "user_activity", 2)
    assert (row["event_timestamp"], row["watched_video_ids"]) == (NOON + INSTANT, [9, 8])


def test_an_earlier_watch_enters_only_snapshots_stamped_after_its_time(make_features, shown):
    """User 1's was at the time of the second impression; user 2's older one may have been, and holds back."""
    impressions = [shown(user, 7, NOON + place * INSTANT, 30) for user in (1, 2) for place in (0, 1)]
    known = NOON + INSTANT
    _, features = make_features(
        impressions, earlier_watches=[*earlier(1, (8, known)), *earlier(2, (8, known), (9, NOON - HOUR))]
    )
    found = [row["watched_video_ids"] for row in rows_of(features, "user_activity")]
    assert found == [[7], [7, 8, 7], [7], [7, 9, 8, 7]]
    times = rows_of(features, "user_activity", 2)[1]["watched_times"]
    assert times == [seconds(time) for time in (NOON, NOON - HOUR, NOON, NOON)]


def test_earlier_watches_count_in_no_statistics_and_change_nothing_else(make_features, shown):
    impressions = [shown(1, 7, NOON, 30), shown(2, 8, NOON + HOUR)]
    videos = [{"video_id": video, "channel_id": 5} for video in (7, 8)]
    _, plain = make_features(impressions, videos=videos)
    _, features = make_features(impressions, videos=videos, earlier_watches=earlier(1, (8, NOON - HOUR)))
    for table in ("user_statistics", "video_statistics", "user_profile", "video_profile"):
        assert rows_of(features, table) == rows_of(plain, table), table
    assert rows_of(features, "user_activity", 2) == rows_of(plain, "user_activity", 2)


def test_long_lists_of_earlier_watches_are_cut_at_the_old_end(make_features, shown):
    last = NOON - HOUR
    impressions = [shown(1, 900 + place, NOON + place * INSTANT, 1) for place in range(30)]
    _, features = make_features(
        impressions, earlier_watches=earlier(1, *((video, last) for video in range(70)))
    )
    rows = rows_of(features, "user_activity")
    newest_first = [*range(929, 899, -1), *range(69, -1, -1)]
    assert [row["watched_video_ids"] for row in rows] == [
        newest_first[30 - place : 80 - place] for place in range(31)
    ]


def test_a_search_alone_makes_a_snapshot(make_features, shown):
    _, features = make_features(
        [shown(1, 7, NOON)], searches=[{"user_id": 2, "timestamp": NOON, "query": "学习 ML"}]
    )
    (row,) = rows_of(features, "user_activity", 2)
    assert row["event_timestamp"] == NOON + INSTANT
    assert row["search_token_ids"] == [text_id("习"), text_id("学"), text_id("ml")]
    assert row["impression_video_ids"] == []
    assert rows_of(features, "user_statistics", 2) == []


def test_seven_days_are_counted_from_the_stamp_to_the_microsecond(make_features, shown):
    on_the_edge, past_it = NOON + WEEK - INSTANT, NOON + WEEK
    _, features = make_features(
        [shown(user, 7, NOON, 30) for user in (1, 2)]
        + [shown(1, 8, on_the_edge, 40), shown(2, 8, past_it, 40)]
    )
    assert rows_of(features, "user_activity", 2)[1]["watched_video_ids"] == [8, 7]


def test_user_statistics_are_renewed_once_a_day_go_back_seven_and_lag_by_one(make_features, shown):
    day = timedelta(days=1)
    events = [shown(1, 7, NOON, 30), shown(1, 8, NOON + HOUR), shown(1, 9, NOON + 6 * day, 40)]
    _, features = make_features([*events, shown(1, 7, NOON + 7 * day, 5)])
    midnight = datetime(2026, 1, 12, tzinfo=UTC)  # the end of the first day, and a day of lag
    found = [tuple(row.values()) for row in rows_of(features, "user_statistics")]
    assert found == [
        (1, midnight, 2, 1, 30.0),
        (1, midnight + 6 * day, 3, 2, 70.0),
        (1, midnight + 7 * day, 2, 2, 45.0),
    ]


def test_a_cadence_keeps_one_snapshot_a_bucket_stamped_at_its_end(make_features, shown):
    events = [shown(1, 7, NOON, 30), shown(1, 8, NOON + HOUR - INSTANT), shown(1, 9, NOON + HOUR, 40)]
    _, features = make_features(events, cadence=3_600)
    first, second = rows_of(features, "user_activity")
    assert (first["event_timestamp"], first["impression_video_ids"]) == (NOON + HOUR, [8, 7])
    assert (second["event_timestamp"], second["impression_video_ids"]) == (NOON + 2 * HOUR, [9, 8, 7])


def test_video_statistics_end_before_the_stamp(make_features, shown):
    _, features = make_features(
        [
            shown(1, 7, NOON, 30),
            shown(2, 7, NOON + HOUR - INSTANT),
            shown(3, 7, NOON + HOUR, 5),
            shown(4, 7, NOON + timedelta(days=1), 10),
            shown(5, 7, NOON + WEEK, 1),
        ]
    )
    names = [column.name for column in VIDEO_STATISTICS.columns]
    rows = rows_of(features, "video_statistics")
    assert [(row["event_timestamp"] - NOON, *(row[name] for name in names)) for row in rows] == [
        (HOUR, 2, 1, 30.0, 2, 1, 30.0, 2, 1, 30.0),
        (2 * HOUR, 3, 2, 35.0, 3, 2, 35.0, 3, 2, 35.0),
        (timedelta(days=1) + HOUR, 2, 2, 15.0, 4, 3, 45.0, 4, 3, 45.0),
        (WEEK + HOUR, 1, 1, 1.0, 3, 3, 16.0, 5, 4, 46.0),
    ]


def test_a_stamp_at_midnight_lies_in_the_next_days_partition(make_features, shown):
    _, features = make_features([shown(1, 7, datetime(2026, 1, 10, 23, 30, tzinfo=UTC))])
    assert [path.parent.name for path in features.glob("video_statistics/*/*")] == ["date=2026-01-11"]
    assert [path.parent.name for path in features.glob("user_activity/*/*")] == ["date=2026-01-10"]


def test_profiles_hold_ids_of_texts_and_whole_seconds(make_features, shown):
    signup = datetime(2020, 5, 1, 3, 4, 5, 999_999, tzinfo=UTC)
    user = {"user_id": 1, "age": 33.0, "gender": "f", "country": "FR", "language": "fr", "device": "phone"}
    video = {"video_id": 7, "channel_id": 5, "upload_time": signup, "duration_seconds": 12.5}
    _, features = make_features(
        [shown(1, 7, NOON), shown(2, 8, NOON)],
        users=[user | {"signup_time": signup}],
        videos=[video | {"title": "Cats", "language": "fr", "category": "pets"}],
    )
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert rows_of(features, "user_profile") == [
        {
            "user_id": 1,
            "event_timestamp": epoch,
            "age": 33.0,
            "gender": text_id("f"),
            "country": text_id("FR"),
            "user_language": text_id("fr"),
            "device": text_id("phone"),
            "signup_time": 1588302245,
            "logged_in": -1,
        },
        {
            "user_id": 2,
            "event_timestamp": epoch,
            "age": None,
            **dict.fromkeys(["gender", "country", "user_language", "device", "signup_time", "logged_in"], -1),
        },
    ]
    known, unknown = rows_of(features, "video_profile")
    assert known == {
        "video_id": 7,
        "event_timestamp": epoch,
        "channel_id": 5,
        "upload_time": 1588302245,
        "duration_seconds": 12.5,
        "video_language": text_id("fr"),
        "category": text_id("pets"),
    }
    assert (unknown["upload_time"], unknown["video_language"], unknown["category"]) == (-1, -1, -1)


def test_columns_that_the_log_lacks_are_padded_missing_or_empty(make_features, shown):
    _, features = make_features([shown(1, 7, NOON, 30)])
    (user,) = rows_of(features, "user_profile")
    assert [user[name] for name in ("age", "gender", "user_language", "signup_time")] == [None, -1, -1, -1]
    assert rows_of(features, "user_activity")[0]["search_token_ids"] == []
    assert rows_of(features, "video_profile")[0]["video_language"] == -1


def test_videos_may_lack_channel_upload_time_and_duration(make_features, shown):
    events, features = make_features([shown(1, 7, NOON, 30)], videos=[{"video_id": 7, "title": "Cats"}])
    (video,) = rows_of(features, "video_profile")
    assert [video[name] for name in ("channel_id", "upload_time", "duration_seconds")] == [-1, -1, None]
    assert rows_of(features, "user_activity")[0]["watched_channel_ids"] == [-1]
    lacking = {name for name, origin in FEATURE_ORIGIN.items() if origin in absent(events)}
    assert {"channel_id", "watched_channel_ids", "upload_time", "duration_seconds"} < lacking


def test_files_have_the_schemas_columns_and_microseconds_in_utc(make_features, shown):
    _, features = make_features([shown(1, 7, NOON, 30)])
    kinds = {"int64": pa.int64(), "float32": pa.float32()}
    for table in FEATURE_TABLES:
        (file,) = [*features.glob(f"{table.name}.parquet"), *features.glob(f"{table.name}/*/*.parquet")]
        stored = pq.read_schema(file)
        assert stored.names == [*table.key, "event_timestamp", "created_timestamp", *table.names]
        for stamp in ("event_timestamp", "created_timestamp"):
            assert stored.field(stamp).type == pa.timestamp("us", tz="UTC")
        for column in table.columns:
            found = stored.field(column.name).type
            if column.length:
                assert pa.types.is_list(found)
                found, wanted = found.value_type, column.dtype.removeprefix("list<").removesuffix(">")
            else:
                wanted = column.dtype
            assert found == kinds[wanted], column.name


def random_log(shown) -> tuple[list[dict], list[dict]]:
    """Two busy users and three videos over nine days, with many events at the same time."""
    random = np.random.default_rng(5)
    times = [NOON + timedelta(seconds=int(second)) for second in random.integers(0, 9 * 86_400, 220)]
    impressions = {
        (user, video, time): shown(user, video, time, float(watched) if watched > 0 else None)
        for time in times
        for user, video, watched in zip(
            random.integers(1, 3, 2), random.integers(1, 4, 2), random.integers(-20, 20, 2), strict=True
        )
    }
    searches = {
        (user, time): {
            "user_id": user,
            "timestamp": time,
            "query": " ".join(random.choice(["a", "b", "c"], 2)),
        }
        for time, user in zip(times[:110], map(int, random.integers(1, 3, 110)), strict=True)
    }
    return list(impressions.values()), list(searches.values())


def stamp_of(time: datetime, cadence: int) -> datetime:
    if cadence == 0:
        return time + INSTANT
    return datetime.fromtimestamp((seconds(time) // cadence + 1) * cadence, UTC)


def expected_activity(impressions: list[dict], searches: list[dict], cadence: int) -> list[dict]:
    """What `user_activity` must hold, read off the log in plain Python."""
    stamps = {(row["user_id"], stamp_of(row["timestamp"], cadence)) for row in impressions + searches}
    rows = []
    for user, stamp in sorted(stamps):
        seen = [row for row in impressions if row["user_id"] == user and row["timestamp"] < stamp]
        seen.sort(key=lambda row: (row["timestamp"], row["video_id"]), reverse=True)
        watched = [row for row in seen if row["clicked"]][:50]
        asked = [row for row in searches if row["user_id"] == user and row["timestamp"] < stamp]
        asked.sort(key=lambda row: row["timestamp"])
        tokens = [text_id(word) for row in asked for word in row["query"].split()]
        rows.append(
            {
                "user_id": user,
                "event_timestamp": stamp,
                "watched_video_ids": [row["video_id"] for row in watched],
                "watched_channel_ids": [100 + row["video_id"] for row in watched],
                "watched_times": [seconds(row["timestamp"]) for row in watched],
                "watched_seconds": [row["watch_seconds"] for row in watched],
                "search_token_ids": tokens[::-1][:50],
                "impression_video_ids": [row["video_id"] for row in seen][:200],
            }
        )
    return rows


def expected_statistics(
    impressions: list[dict], entity: str, windows: tuple[int, ...], cadence: int, lag: int = 0
) -> list[dict]:
    """What `user_statistics` or `video_statistics` must hold, read off the log in plain Python."""
    key, rows = f"{entity}_id", []
    for one, stamp in sorted({(row[key], stamp_of(row["timestamp"], cadence)) for row in impressions}):
        values: dict = {key: one, "event_timestamp": stamp}
        for days in windows:
            first = stamp - timedelta(days=days)
            within = [row for row in impressions if first <= row["timestamp"] < stamp and row[key] == one]
            values[f"{entity}_impressions_{days}d"] = len(within)
            values[f"{entity}_clicks_{days}d"] = sum(row["clicked"] for row in within)
            values[f"{entity}_watch_seconds_{days}d"] = sum(row["watch_seconds"] for row in within)
        rows.append(values | {"event_timestamp": stamp + timedelta(seconds=lag)})
    return rows


@pytest.mark.parametrize("cadence", [0, 3_600, 7_000])
def test_long_histories_agree_with_a_plain_reading_of_the_log(make_features, shown, cadence):
    impressions, searches = random_log(shown)
    _, features = make_features(
        impressions, searches=searches, cadence=cadence, statistics_cadence=cadence or 900
    )
    found = rows_of(features, "user_activity")
    assert found == expected_activity(impressions, searches, cadence)
    for column in USER_ACTIVITY.columns:
        if column.length:
            assert max(len(row[column.name]) for row in found) == column.length
    of_videos = expected_statistics(impressions, "video", (1, 7, 28), cadence or 900)
    assert rows_of(features, "video_statistics") == of_videos
    of_users = expected_statistics(impressions, "user", (7,), 86_400, lag=86_400)
    assert rows_of(features, "user_statistics") == of_users


def test_building_again_replaces_every_partition(make_features, make_events, shown):
    _, features = make_features([shown(1, 7, NOON), shown(1, 7, NOON + WEEK)])
    fewer = make_events([shown(1, 7, NOON)])
    build_features(fewer, features, FeatureSettings(), EngineSettings())
    assert [path.parent.name for path in features.glob("user_activity/*/*")] == ["date=2026-01-10"]


def test_a_broken_events_file_leaves_the_features_as_they_were(make_features, shown):
    events, features = make_features([shown(1, 7, NOON)])
    before = {path: path.read_bytes() for path in features.rglob("*.parquet")}
    (file,) = events.glob("impressions/*/*.parquet")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"part\.parquet"):
        build_features(events, features, FeatureSettings(), EngineSettings())
    assert {path: path.read_bytes() for path in features.rglob("*.parquet")} == before
    hidden = {path.name for path in features.parent.iterdir() if path.name.startswith(".")}
    assert all(name.endswith(".lock") for name in hidden)


@pytest.mark.parametrize(
    ("query", "tokens"),
    [
        ("  Learn\tPYTHON\u3000now ", ["learn", "python", "now"]),
        ("学习Python教程", ["python", "学", "习", "教", "程"]),
        ("ねこ 2", ["2", "ね", "こ"]),
        ("한국 드라마", ["한국", "드라마"]),
        (" \u00a0", []),
        ("", []),
    ],
)
def test_search_tokens(engine, query, tokens):
    table = ibis.memtable(pa.table({"query": [query]}))
    assert engine.backend.to_pyarrow(table.select(tokens=search_tokens(table["query"])))[
        "tokens"
    ].to_pylist() == [tokens]


SIGN = "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f]"
MIXED = st.text("aΣİ 猫ねﾊ한\u3000\U00020000\0", max_size=8)
TEXTS = st.lists(st.none() | st.text(max_size=40) | MIXED, min_size=1)
ANY_TEXT = settings(max_examples=25, deadline=None, derandomize=True)


@ANY_TEXT
@given(TEXTS)
def test_text_ids_in_the_engine_are_the_schemas(engine, texts):
    table = ibis.memtable(pa.table({"text": pa.array(texts, pa.string())}))
    found = engine.backend.to_pyarrow(table.select(id=text_ids(table.text)))["id"].to_pylist()
    assert found == [text_id(text) for text in texts]


@ANY_TEXT
@given(TEXTS)
def test_any_search_is_its_words_and_then_its_signs(engine, texts):
    table = ibis.memtable(pa.table({"text": pa.array(texts, pa.string())}))
    split = table.select(lower=table.text.lower(), tokens=search_tokens(table.text))
    for row in engine.backend.to_pyarrow(split).to_pylist():
        lower = row["lower"] or ""
        signs = [sign for sign in lower if re.fullmatch(SIGN, sign)]
        assert (row["tokens"] or []) == [*re.sub(SIGN, " ", lower).split(), *signs]


def test_the_last_search_before_each_stamp_is_kept_by_its_ngrams(make_features, shown):
    first, second = NOON, NOON + timedelta(minutes=10)
    searches = [
        {"user_id": 1, "timestamp": second, "query": "Zebra 学习"},
        {"user_id": 1, "timestamp": first, "query": "blue cats"},
        {"user_id": 1, "timestamp": second, "query": "a tie: the greater text counts"},
        {"user_id": 2, "timestamp": first, "query": "blue cats"},
    ]
    _, features = make_features([shown(1, 7, NOON)], searches=searches)
    found = rows_of(features, "user_search")
    assert [(row["user_id"], row["event_timestamp"], row["last_search_time"]) for row in found] == [
        (1, first + INSTANT, seconds(first)),
        (1, second + INSTANT, seconds(second)),
        (2, first + INSTANT, seconds(first)),
    ]
    asked = ["blue cats", "a tie: the greater text counts", "blue cats"]
    assert [row["search_ngram_ids"] for row in found] == query_ids(asked).tolist()
    _, hourly = make_features([shown(1, 7, NOON)], searches=searches, cadence=3_600)
    assert [(row["user_id"], row["last_search_time"]) for row in rows_of(hourly, "user_search")] == [
        (1, seconds(second)),
        (2, seconds(first)),
    ]


def test_a_log_without_searches_has_a_table_of_none(make_features, shown):
    _, features = make_features([shown(1, 7, NOON)])
    assert rows_of(features, "user_search") == []
