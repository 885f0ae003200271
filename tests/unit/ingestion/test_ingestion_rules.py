"""Each reason for quarantine, on a row made for it; `surface` names the row."""

from pathlib import Path

import pytest

from watchrank.errors import InputError

GOOD = "2026-01-05T12:00:00Z"
BAD_IMPRESSIONS = [
    ({"user_id": ""}, "missing user_id"),
    ({"video_id": ""}, "missing video_id"),
    ({"timestamp": "  "}, "missing timestamp"),
    ({"clicked": ""}, "missing clicked"),
    ({"watch_seconds": ""}, "missing watch_seconds"),
    ({"user_id": "one"}, "unparsable user_id"),
    ({"user_id": "1.5"}, "unparsable user_id"),
    ({"video_id": "0x0A"}, "unparsable video_id"),
    ({"video_id": "99999999999999999999"}, "unparsable video_id"),
    ({"timestamp": "yesterday"}, "unparsable timestamp"),
    ({"timestamp": "1767607200"}, "unparsable timestamp"),
    ({"timestamp": "2026-13-05T12:00:00Z"}, "unparsable timestamp"),
    ({"timestamp": "1969-12-31T23:59:59Z"}, "unparsable timestamp"),
    ({"timestamp": "infinity"}, "unparsable timestamp"),
    ({"clicked": "maybe"}, "unparsable clicked"),
    ({"watch_seconds": "nan"}, "unparsable watch_seconds"),
    ({"watch_seconds": "inf"}, "unparsable watch_seconds"),
    ({"position": "first"}, "unparsable position"),
    ({"user_id": "-1"}, "user_id out of range"),
    ({"position": "-1"}, "position out of range"),
    ({"watch_seconds": "-0.1"}, "negative watch time"),
    ({"watch_seconds": "86401"}, "absurd watch time"),
    ({"watch_seconds": "1200.5"}, "watch time too long for the video"),
    ({"clicked": "false", "watch_seconds": "1"}, "watch time without a click"),
    ({"timestamp": "2026-02-01T00:00:01Z"}, "time in the future"),
    ({"user_id": "3"}, "unknown user"),
    ({"video_id": "12"}, "unknown video"),
]
GOOD_IMPRESSIONS = [
    {"watch_seconds": "1200"},
    {"video_id": "11", "watch_seconds": "86400"},
    {"clicked": "F", "watch_seconds": "0.0"},
    {"user_id": "2.0"},
    {"timestamp": "2026-02-01T00:00:00Z"},
    {"timestamp": "2026-01-05 12:00:00"},
]


@pytest.fixture(scope="module")
def reasons(tmp_path_factory, new_log, run, rows_of):
    """Ingest all rows at once; return the reason of each by its surface, None for a good row."""
    folder: Path = tmp_path_factory.mktemp("rules")
    log = new_log()
    changes = [change for change, _ in BAD_IMPRESSIONS] + GOOD_IMPRESSIONS
    log.impressions = [
        log.impression(
            **{"position": str(place), "surface": f"row {place}", "timestamp": at(place), **change}
        )
        for place, change in enumerate(changes)
    ]
    run(log.write(folder / "data"), folder / "events")
    bad = rows_of(folder / "events" / "quarantine" / "impressions")
    good = rows_of(folder / "events" / "impressions")
    return {row["surface"]: row.get("reason") for row in [*bad, *good]}


def at(place: int) -> str:
    """Give each row a time of its own."""
    return f"2026-01-05T12:00:{place:02}Z"


@pytest.mark.parametrize(("place", "reason"), [(i, reason) for i, (_, reason) in enumerate(BAD_IMPRESSIONS)])
def test_bad_row_is_set_apart_with_its_reason(reasons, place, reason):
    assert reasons[f"row {place}"] == reason


@pytest.mark.parametrize("place", range(len(GOOD_IMPRESSIONS)))
def test_row_at_the_edge_of_a_rule_is_good(reasons, place):
    assert reasons[f"row {len(BAD_IMPRESSIONS) + place}"] is None


def test_no_row_is_lost(reasons):
    assert len(reasons) == len(BAD_IMPRESSIONS) + len(GOOD_IMPRESSIONS)


def test_repeated_impression_keeps_the_click_whatever_the_order(tmp_path, log, run, rows_of):
    log.impressions = [
        log.impression(clicked="false", watch_seconds="0"),
        log.impression(watch_seconds="3"),
        log.impression(watch_seconds="8"),
        log.impression(watch_seconds="8"),
    ]
    report = run(log.write(tmp_path / "data"), tmp_path / "events")
    log.impressions.reverse()
    run(log.write(tmp_path / "reversed"), tmp_path / "other")
    assert report.tables["impressions"].quarantined == {"duplicate": 3}
    kept = rows_of(tmp_path / "events" / "impressions")
    assert [(row["clicked"], row["watch_seconds"]) for row in kept] == [(True, 8.0)]
    assert rows_of(tmp_path / "other" / "impressions") == kept


def test_bad_row_is_no_reason_to_drop_its_repeat(tmp_path, log, run, rows_of):
    log.impressions = [log.impression(watch_seconds="99999"), log.impression(watch_seconds="4")]
    report = run(log.write(tmp_path / "data"), tmp_path / "events")
    assert report.tables["impressions"].quarantined == {"absurd watch time": 1}
    assert [row["watch_seconds"] for row in rows_of(tmp_path / "events" / "impressions")] == [4.0]


def test_quarantine_keeps_the_text_that_could_not_be_read(tmp_path, log, run, rows_of):
    log.impressions.append(log.impression(timestamp="1767607200", watch_seconds="7"))
    run(log.write(tmp_path / "data"), tmp_path / "events")
    assert rows_of(tmp_path / "events" / "quarantine") == [
        {
            "user_id": "1",
            "video_id": "10",
            "timestamp": "1767607200",
            "clicked": "true",
            "watch_seconds": "7.0",
            "surface": "home",
            "reason": "unparsable timestamp",
        }
    ]


def test_users_and_videos_are_judged_and_take_their_impressions_along(tmp_path, log, run):
    log.users = [
        {"user_id": "1", "age": "30"},
        {"user_id": "1", "age": "31"},
        {"user_id": "2", "age": "131"},
        {"user_id": "", "age": "9"},
    ]
    log.videos += [
        {"video_id": "12", "channel_id": "", "upload_time": "2026-01-01", "duration_seconds": "6"},
        {"video_id": "13", "channel_id": "5", "upload_time": "soon", "duration_seconds": "6"},
        {"video_id": "14", "channel_id": "5", "upload_time": "", "duration_seconds": "-6"},
    ]
    tables = run(log.write(tmp_path / "data"), tmp_path / "events").tables
    assert tables["users"].quarantined == {"age out of range": 1, "duplicate": 1, "missing user_id": 1}
    assert tables["users"].rows == 1
    assert tables["videos"].quarantined == {
        "duration_seconds out of range": 1,
        "missing channel_id": 1,
        "unparsable upload_time": 1,
    }
    assert tables["impressions"].quarantined == {"unknown user": 1}


def test_searches_are_judged_like_impressions(tmp_path, log, run, rows_of):
    search = {"user_id": "1", "timestamp": "2026-01-05T08:00:00Z", "query": "cats", "clicked_video_id": ""}
    log.searches = [
        search,
        {**search},
        {**search, "timestamp": "2026-01-05T07:00:00Z", "query": "dogs", "clicked_video_id": "11"},
        {**search, "query": " "},
        {**search, "query": "birds", "clicked_video_id": "99"},
        {**search, "query": "fish", "user_id": "9"},
        {**search, "query": "bees", "timestamp": "2027-01-01T00:00:00Z"},
    ]
    report = run(log.write(tmp_path / "data"), tmp_path / "events")
    assert report.tables["searches"].quarantined == {
        "duplicate": 1,
        "missing query": 1,
        "time in the future": 1,
        "unknown user": 1,
        "unknown video": 1,
    }
    kept = rows_of(tmp_path / "events" / "searches" / "date=2026-01-05")
    assert [(row["query"], row["clicked_video_id"]) for row in kept] == [("dogs", 11), ("cats", None)]


def test_too_many_bad_rows_stop_the_run_with_counts_and_an_example(tmp_path, log, run):
    log.impressions += [log.impression(user_id="x", timestamp=at(place)) for place in range(2)]
    with pytest.raises(InputError) as caught:
        run(log.write(tmp_path / "data"), tmp_path / "events", max_quarantine_share=0.3)
    message = str(caught.value)
    assert "2 of 5 rows (40.0%)" in message
    assert "2 unparsable user_id" in message
    assert "user_id='x'" in message
    assert "max_quarantine_share" in message
    assert not (tmp_path / "events").exists()


def test_share_is_reached_but_not_passed(tmp_path, log, run):
    log.impressions += [log.impression(user_id="x", timestamp=at(place)) for place in range(2)]
    report = run(log.write(tmp_path / "data"), tmp_path / "events", max_quarantine_share=0.4)
    assert report.tables["impressions"].quarantined == {"unparsable user_id": 2}


def test_no_good_row_at_all_is_an_error_at_any_share(tmp_path, log, run):
    log.impressions = [log.impression(clicked="?")]
    with pytest.raises(InputError, match="1 unparsable clicked"):
        run(log.write(tmp_path / "data"), tmp_path / "events")
