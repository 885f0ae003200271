"""Rebuilding features from a log that came late or was corrected: the past stays as it was known."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from watchrank.config import EngineSettings, FeatureSettings
from watchrank.features import build_features
from watchrank.features.record import Build
from watchrank.schema import FEATURE_TABLES, text_id

INSTANT = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)
EPOCH = datetime.fromtimestamp(0, UTC)

Known = dict[int, dict]


def rows_of(features: Path, table: str) -> list[dict]:
    files = [*features.glob(f"{table}.parquet"), *features.glob(f"{table}/*/part.parquet")]
    return [row for file in sorted(files) for row in pq.read_table(file, partitioning=None).to_pylist()]


def known(features: Path, table: str, at: datetime) -> Known:
    """Return each entity's values that count at a time, read off the files in plain Python."""
    times = ("event_timestamp", "created_timestamp")
    (key,) = next(found for found in FEATURE_TABLES if found.name == table).key
    rows = rows_of(features, table)
    assert len({(row[key], *(row[time] for time in times)) for row in rows}) == len(rows)
    rows = [row for row in rows if max(row[time] for time in times) <= at]
    newest = {row[key]: row for row in sorted(rows, key=lambda row: [row[time] for time in times])}
    return {
        entity: {name: value for name, value in row.items() if name not in times}
        for entity, row in newest.items()
        if any(row[name] is not None for name in row if name not in (key, *times))
    }


def watched(features: Path, user: int, at: datetime) -> list[int]:
    return known(features, "user_activity", at)[user]["watched_video_ids"]


def files_of(features: Path) -> dict[str, bytes]:
    return {str(file.relative_to(features)): file.read_bytes() for file in features.rglob("*.*")}


@pytest.fixture
def build(make_events, tmp_path) -> Callable[..., Path]:
    """Return a function that builds a log's features over those of the logs before."""

    def build(impressions: list[dict], *, into: str = "features", cadence: int = 0, **tables: list) -> Path:
        settings = FeatureSettings(activity_cadence_seconds=cadence)
        build_features(make_events(impressions, **tables), tmp_path / into, settings, EngineSettings())
        return tmp_path / into

    return build


@pytest.fixture
def log(shown) -> list[dict]:
    """User 1 watches 7 on day 1 and 8 on day 2; user 2 watches 7 on day 1 and 8 on day 3, the last event."""
    return [
        shown(1, 7, NOON, 30),
        shown(2, 7, NOON, 10),
        shown(1, 8, NOON + DAY, 20),
        shown(2, 8, NOON + 2 * DAY, 5),
    ]


END = NOON + 2 * DAY + INSTANT
"""The horizon of `log`."""


def test_a_late_watch_changes_the_future_alone(build, log, shown):
    features = build(log)
    late, next_day = shown(1, 9, NOON + HOUR, 40), shown(2, 9, NOON + 3 * DAY)
    build([*log, late, next_day])
    end = NOON + 3 * DAY + INSTANT
    for at, before in ((NOON + 2 * HOUR, [7]), (NOON + DAY + HOUR, [8, 7]), (end - INSTANT, [8, 7])):
        assert watched(features, 1, at) == before
    assert watched(features, 1, end) == [8, 9, 7]
    activity = [row for row in rows_of(features, "user_activity") if row["user_id"] == 1]
    found = {(row["event_timestamp"], row["created_timestamp"]): row["watched_video_ids"] for row in activity}
    assert found == {
        (NOON + INSTANT, NOON + INSTANT): [7],
        (NOON + HOUR + INSTANT, end): [9, 7],
        (NOON + DAY + INSTANT, NOON + DAY + INSTANT): [8, 7],
        (NOON + DAY + INSTANT, end): [8, 9, 7],
    }
    assert known(features, "video_statistics", NOON + 2 * HOUR).keys() == {7}
    assert known(features, "video_statistics", end)[9]["video_impressions_7d"] == 1


def test_without_a_later_snapshot_the_corrected_one_of_the_same_time_counts(build, log):
    features = build(log)
    build([{**log[0], "watch_seconds": 33.0}, *log[1:]])
    seconds = [known(features, "user_activity", at)[1]["watched_seconds"] for at in (END - INSTANT, END)]
    assert seconds == [[20.0, 30.0], [20.0, 33.0]]


def test_counts_held_back_are_of_the_past_once_the_log_covers_them(build, log, shown):
    """Day 1 is counted at the end of day 2; a watch of day 1 that comes with day 4 was not in it."""
    features = build(log)
    build([*log, shown(1, 9, NOON + HOUR, 40), shown(2, 9, NOON + 3 * DAY)])
    counts = [
        known(features, "user_statistics", at)[1]["user_clicks_7d"]
        for at in (NOON + 2 * DAY, NOON + 3 * DAY, NOON + 3 * DAY + INSTANT)
    ]
    assert counts == [1, 2, 3]


def test_a_corrected_profile_leaves_the_former_to_the_past(build, log, shown):
    former = {"video_id": 7, "channel_id": 5, "category": "pets"}
    features = build(log, videos=[former])
    build([*log, shown(1, 9, NOON + 3 * DAY)], videos=[former | {"category": "news"}])
    end = NOON + 3 * DAY + INSTANT
    categories = [known(features, "video_profile", at)[7]["category"] for at in (EPOCH, end - INSTANT, end)]
    assert categories == [text_id("pets"), text_id("pets"), text_id("news")]


def test_a_new_video_is_known_when_its_first_events_come(build, log, shown):
    features = build(log)
    build([*log, shown(1, 9, NOON + 3 * DAY)])
    assert 9 not in known(features, "video_profile", END - INSTANT)
    assert known(features, "video_profile", END)[9]["channel_id"] == 109


def test_a_new_day_adds_its_rows_and_touches_no_other_day(build, log, shown):
    features = build(log)
    before = files_of(features)
    build([*log, shown(1, 7, NOON + 3 * DAY, 15)])
    after = files_of(features)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {
        "build.json",
        "user_activity/date=2026-01-13/part.parquet",
        "user_statistics/date=2026-01-15/part.parquet",
        "video_statistics/date=2026-01-13/part.parquet",
    }
    for table in ("user_activity", "user_statistics", "video_statistics"):
        assert all(row["created_timestamp"] == row["event_timestamp"] for row in rows_of(features, table))


def test_building_again_changes_nothing(build, log, shown):
    features = build(log)
    before = files_of(features)
    build(log)
    assert files_of(features) == before
    corrected = [*log[1:], shown(1, 9, NOON + HOUR, 40), shown(3, 9, NOON + 3 * DAY)]
    build(corrected)
    backfilled = files_of(features)
    assert backfilled != before
    build(corrected)
    assert files_of(features) == backfilled


def test_at_one_horizon_the_last_correction_counts(build, log, shown):
    features = build(log)
    before = rows_of(features, "user_activity")
    build([*log, shown(1, 9, NOON + HOUR, 40)])
    build([*log, shown(1, 5, NOON + HOUR, 40)])
    assert watched(features, 1, END - INSTANT) == [8, 7]
    assert watched(features, 1, END) == [8, 5, 7]
    build(log)
    assert rows_of(features, "user_activity") == before


def test_a_watch_taken_back_leaves_what_is_now_said_of_the_time_before(build, log, shown):
    features = build(log)
    build([shown(1, 5, NOON, 30), log[1], log[3], shown(2, 9, NOON + 3 * DAY)])
    end = NOON + 3 * DAY + INSTANT
    assert watched(features, 1, end - INSTANT) == [8, 7]
    assert watched(features, 1, end) == [5]
    build([log[1], log[3], shown(2, 9, NOON + 4 * DAY)])
    assert watched(features, 1, end) == [5]
    assert 1 not in known(features, "user_activity", NOON + 4 * DAY + INSTANT)


def random_logs(shown) -> list[list[dict]]:
    """Three logs, each of two days more than the one before, less some of its events, plus some late ones."""
    random = np.random.default_rng(3)

    def some(rows: int, first: int, last: int) -> list[dict]:
        minutes = random.integers(first * 24 * 60, last * 24 * 60, rows).tolist()
        what = random.integers(1, 6, (rows, 3)).tolist()
        return [
            shown(user, video, NOON + timedelta(minutes=minute), seconds if seconds > 2 else None)
            for minute, (user, video, seconds) in zip(minutes, what, strict=True)
        ]

    logs = [some(40, 0, 2)]
    for days in (4, 6):
        stays = [row for row in logs[-1] if random.random() > 0.1]
        logs.append([*stays, *some(8, 0, days - 2), *some(20, days - 2, days)])
    keys = [{(row["user_id"], row["video_id"], row["timestamp"]): row for row in log} for log in logs]
    return [list(rows.values()) for rows in keys]


def test_corrections_leave_the_past_and_make_the_present_that_of_the_last_log(build, shown):
    """At the horizon of each log, and all the time before the first, a first build says what counts."""
    logs = random_logs(shown)
    ends = [max(row["timestamp"] for row in log) + INSTANT for log in logs]
    fresh = [build(log, into=f"fresh_{place}", cadence=7_000) for place, log in enumerate(logs)]
    for log in logs:
        features = build(log, cadence=7_000)
    served = [(ends[0] - hours * HOUR, fresh[0]) for hours in range(1, 48, 5)]
    for at, first in [*served, *zip(ends, fresh, strict=True)]:
        for table in FEATURE_TABLES:
            assert known(features, table.name, at) == known(first, table.name, at), (table.name, at)


def with_searches(logs: list[list[dict]]) -> list[dict]:
    """Give each log searches of its first user, of the times of their impressions."""
    return [
        {
            "impressions": log,
            "searches": [
                {"user_id": 1, "timestamp": row["timestamp"], "query": f"cats {row['video_id']}"}
                for row in log
                if row["user_id"] == 1 and row["video_id"] % 2
            ],
            "earlier_watches": [
                {"user_id": 2, "video_id": 70 + place, "timestamp": NOON + place * DAY, "place": place}
                for place in range(5)
            ],
        }
        for log in logs
    ]


@pytest.mark.parametrize("cadence", [0, 7_000])
def test_new_days_alone_are_computed_and_the_tables_are_those_of_a_full_build(
    build, shown, monkeypatch, cadence
):
    """A log, its correction, then two with new days alone; user 1 has watched more than a list holds."""
    first, corrected, _ = random_logs(shown)
    first = [*first, *(shown(1, 6 + n % 5, NOON + timedelta(minutes=7, seconds=n), 5) for n in range(60))]
    keys = [(row["user_id"], row["video_id"], row["timestamp"]) for row in first]
    corrected = [*first[5:], *(row for row in corrected if tuple(row.values())[:3] not in keys)]
    midnight = NOON.replace(hour=0) + 5 * DAY
    days = [
        [shown(n % 6, n % 5 + 1, midnight + day * DAY + n * HOUR, n % 2 or None) for n in range(0, 24, 3)]
        for day in range(2)
    ]
    logs = with_searches([first, corrected, corrected + days[0], corrected + days[0] + days[1]])
    computed = []
    until = Build.unchanged_until

    def noted(self: Build, former: Build) -> datetime | None:
        computed.append(until(self, former))
        return computed[-1]

    monkeypatch.setattr(Build, "unchanged_until", noted)
    for log in logs:
        features = build(**log, cadence=cadence)
    assert computed == [None, midnight, midnight + DAY]
    monkeypatch.setattr(Build, "unchanged_until", lambda *_: None)
    for log in logs:
        full = build(**log, into="full", cadence=cadence)
    assert rows_of(full, "user_activity")[0].keys() >= {"created_timestamp"}
    assert any(row["created_timestamp"] > row["event_timestamp"] for row in rows_of(full, "user_activity"))
    for table in FEATURE_TABLES:
        assert rows_of(features, table.name) == rows_of(full, table.name), table.name


def test_the_windows_of_a_new_day_reach_back_as_in_a_full_build(build, shown):
    """A log that ends after 40 days, and a day more; about the start of each window there is much."""
    midnight = NOON.replace(hour=0)
    log = [
        shown(
            number % 5, number % 3, midnight + day * DAY + number * timedelta(minutes=7), number % 4 or None
        )
        for day in (11, 12, 13, 32, 33, 34, 38, 39, 40)
        for number in range(205)
    ]
    build([row for row in log if row["timestamp"] < midnight + 40 * DAY])
    features, full = build(log), build(log, into="full")
    for table in ("video_statistics", "user_statistics"):
        pairs = zip(rows_of(features, table), rows_of(full, table), strict=True)
        assert not [pair for pair in pairs if pair[0] != pair[1]][:3], table
    assert known(features, "video_statistics", midnight + 41 * DAY)[1]["video_impressions_28d"] > 400


def test_a_video_of_another_channel_changes_the_lists_of_the_past(build, log, shown):
    """Its watches are of days that did not change."""
    features = build(log)
    build([*log, shown(1, 9, NOON + 3 * DAY, 5)], videos=[{"video_id": 7, "channel_id": 5}])
    end = NOON + 3 * DAY + INSTANT
    assert known(features, "user_activity", end)[1]["watched_channel_ids"] == [109, 108, 5]


def test_other_settings_build_afresh(build, log, shown, caplog):
    features = build(log)
    build([*log, shown(1, 9, NOON + HOUR, 40)], cadence=3_600)
    activity = rows_of(features, "user_activity")
    assert all(row["created_timestamp"] == row["event_timestamp"] for row in activity)
    assert [row["watched_video_ids"] for row in activity if row["user_id"] == 1] == [[7], [9, 7], [8, 9, 7]]
    (message,) = (record.getMessage() for record in caplog.records)
    assert "have other settings: built afresh" in message


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"definitions": "other"}, "are defined otherwise"),
        ({"settings": {"activity_cadence_seconds": 9}}, "have other settings"),
        ({"horizon": "2030-01-01T00:00:00Z"}, "are of a log that went further"),
        ({"horizon": None}, "do not say what built them"),
    ],
)
def test_a_build_goes_on_only_from_its_like(tmp_path, caplog, changed, reason):
    build = Build.of(FeatureSettings(), NOON)
    earlier = build.model_copy(update={"horizon": NOON - DAY})
    earlier.write(tmp_path)
    assert build.former(tmp_path) == earlier
    assert build.former(tmp_path / "nothing") is None
    assert not caplog.records
    record = json.loads((tmp_path / "build.json").read_text())
    (tmp_path / "build.json").write_text(json.dumps(record | changed))
    assert build.former(tmp_path) is None
    assert reason in caplog.text
