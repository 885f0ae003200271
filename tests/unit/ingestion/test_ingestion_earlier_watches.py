"""Earlier watches: judged like the log, one file, a user's list replaced as a whole."""

import pytest

WATCHES = "earlier_watches.parquet"
GOOD = {"user_id": "1", "video_id": "10", "timestamp": "2026-01-01T00:00:00Z", "place": "0"}


@pytest.fixture
def log(new_log):
    """The log with three earlier watches, two by the first user."""
    log = new_log()
    log.earlier_watches = [{**GOOD, "place": "1"}, GOOD, {**GOOD, "user_id": "2", "video_id": "11"}]
    return log


def watches(rows):
    return [(row["user_id"], row["video_id"], row["place"]) for row in rows]


def test_bad_rows_are_set_apart_with_their_reasons(tmp_path, log, run, rows_of):
    log.earlier_watches += [
        {**GOOD, **change}
        for change in (
            {"video_id": ""},
            {"video_id": "99", "place": "2"},
            {"user_id": "9"},
            {"timestamp": "once"},
            {"timestamp": "2027-01-01T00:00:00Z", "place": "3"},
            {"place": "-1"},
            {"place": ""},
            {"video_id": "11"},
        )
    ]
    report = run(log.write(tmp_path / "data"), tmp_path / "events")
    assert report.tables["earlier_watches"].quarantined == {
        "duplicate": 1,
        "missing place": 1,
        "missing video_id": 1,
        "place out of range": 1,
        "time in the future": 1,
        "unknown user": 1,
        "unknown video": 1,
        "unparsable timestamp": 1,
    }
    assert watches(rows_of(tmp_path / "events" / WATCHES)) == [(1, 11, 0), (1, 10, 1), (2, 11, 0)]
    assert report.tables["earlier_watches"].rows == 3


def test_second_run_touches_no_file_and_a_run_without_the_table_keeps_it(tmp_path, log, run, files_in):
    data, events = log.write(tmp_path / "data"), tmp_path / "events"
    run(data, events)
    before = files_in(events)
    assert run(data, events).written == ()
    (data / "earlier_watches.csv").unlink()
    assert run(data, events).written == ()
    assert files_in(events) == before


def test_a_users_new_list_replaces_all_of_the_old_one_and_no_other_users(tmp_path, log, run, rows_of):
    data, events = log.write(tmp_path / "data"), tmp_path / "events"
    run(data, events)
    log.earlier_watches = [{**GOOD, "video_id": "11"}]
    assert run(log.write(data), events).written == (WATCHES,)
    assert watches(rows_of(events / WATCHES)) == [(1, 11, 0), (2, 11, 0)]


def test_another_source_does_not_inherit_them(tmp_path, log, run):
    run(log.write(tmp_path / "data"), tmp_path / "events")
    other = tmp_path / "movielens"
    other.mkdir()
    days = [1767571200, 1767657600]  # the two days of the log
    ratings = "".join(f"1,10,4.0,{day}\n" for day in days)
    (other / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + ratings)
    (other / "movies.csv").write_text("movieId,title,genres\n10,Heat,Crime\n")
    report = run(other, tmp_path / "events", source="movielens")
    assert report.tables.keys() == {"users", "videos", "impressions"}


def test_a_log_without_them_has_no_trace_of_them(tmp_path, new_log, run, files_in):
    report = run(new_log().write(tmp_path / "data"), tmp_path / "events")
    assert report.tables.keys() == {"users", "videos", "impressions"}
    assert not any(b"earlier" in name.encode() + content for name, (_, content) in files_in(tmp_path).items())
