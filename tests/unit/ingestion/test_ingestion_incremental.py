"""Runs that follow each other: nothing touched without need, and a run cut short is put right by the next."""

import shutil

import pyarrow.parquet as pq
import pytest

from watchrank.errors import InputError
from watchrank.events import manifest
from watchrank.ingestion import staging

DAY_5 = "impressions/date=2026-01-05/part.parquet"
DAY_6 = "impressions/date=2026-01-06/part.parquet"
DAY_7 = "impressions/date=2026-01-07/part.parquet"
MANIFEST = "manifest.json"


@pytest.fixture
def log(new_log):
    """The log with one bad row, so that there is a quarantine."""
    log = new_log()
    log.impressions.append(log.impression(user_id="9"))
    return log


@pytest.fixture
def data(tmp_path, log):
    return log.write(tmp_path / "data")


@pytest.fixture(scope="module")
def first(tmp_path_factory, new_log, run):
    """The report and the events folder of the first run on the log."""
    folder, log = tmp_path_factory.mktemp("first"), new_log()
    log.impressions.append(log.impression(user_id="9"))
    return run(log.write(folder / "data"), folder / "events"), folder / "events"


@pytest.fixture
def events(tmp_path, first):
    """A copy of the events folder after the first run."""
    return shutil.copytree(first[1], tmp_path / "out" / "events")


def changed(before, after):
    """Return the files that are new, gone or written again."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_first_run_writes_everything_and_nothing_else(first, files_in):
    report, events = first
    tables = {"users.parquet", "videos.parquet", DAY_5, DAY_6, "quarantine/impressions/part.parquet"}
    assert set(report.written) == tables
    assert set(files_in(events)) == {*tables, MANIFEST}
    assert {path.name for path in events.parent.iterdir()} == {"data", "events", ".events.lock"}


def test_what_a_killed_run_staged_goes_with_the_next(data, events, run, monkeypatch):
    def left(engine, source, folder, *rest):
        staged = staging.stage(engine, source, folder, *rest)
        shutil.copytree(folder, folder.with_name(f"{folder.name}.killed"), dirs_exist_ok=True)
        return staged

    monkeypatch.setattr("watchrank.ingestion.job.stage", left)
    run(data, events)
    monkeypatch.undo()
    (killed,) = events.parent.glob(".events.*.killed")
    assert [*killed.rglob("*.parquet")]
    run(data, events)
    assert {path.name for path in events.parent.iterdir()} == {"events", ".events.lock"}


def test_second_run_on_the_same_input_touches_no_file(data, events, run, files_in):
    before = files_in(events)
    assert run(data, events).written == ()
    assert files_in(events) == before


def test_order_and_format_of_the_input_do_not_matter(tmp_path, log, data, events, run, files_in):
    before = files_in(events)
    log.impressions.reverse()
    run(log.write(tmp_path / "other", "csv.gz"), events)
    assert files_in(events) == before


def test_new_day_adds_only_its_partition(log, data, events, run, files_in):
    before = files_in(events)
    log.impressions.append(log.impression(timestamp="2026-01-07T00:00:00Z"))
    report = run(log.write(data), events)
    assert report.written == (DAY_7,)
    assert changed(before, files_in(events)) == {DAY_7, MANIFEST}
    assert report.tables["impressions"].rows == 4


def test_changed_day_replaces_its_partition(log, data, events, run, files_in, rows_of):
    before = files_in(events)
    log.impressions[2]["watch_seconds"] = "13"
    run(log.write(data), events)
    assert changed(before, files_in(events)) == {DAY_6, MANIFEST}
    assert [row["watch_seconds"] for row in rows_of(events / DAY_6)] == [13.0]


def test_vanished_days_users_and_videos_stay(log, data, events, first, run, files_in):
    before = files_in(events)
    log.impressions = [log.impression(timestamp="2026-01-07T00:00:00Z", video_id="11")]
    log.users.pop()
    log.videos.pop(0)
    report = run(log.write(data), events)
    assert changed(before, files_in(events)) == {DAY_7, MANIFEST, "quarantine/impressions/part.parquet"}
    days = report.tables["impressions"].days
    assert {day: days[day] for day in ("2026-01-05", "2026-01-06")} == first[0].tables["impressions"].days
    assert (report.tables["users"].rows, report.tables["videos"].rows) == (2, 2)


def test_changed_user_replaces_the_earlier_one(log, data, events, run, rows_of):
    log.users = [{"user_id": "2", "language": "fr"}]
    run(log.write(data), events)
    users = rows_of(events / "users.parquet")
    assert users == [{"user_id": 1, "language": "en"}, {"user_id": 2, "language": "fr"}]


def test_mended_row_leaves_the_quarantine(log, data, events, run):
    log.impressions[-1]["user_id"] = "1"
    report = run(log.write(data), events)
    assert report.tables["impressions"].quarantined == {}
    assert not list((events / "quarantine").rglob("*.parquet"))


@pytest.mark.parametrize("lost", [MANIFEST, DAY_5, "users.parquet", "quarantine/impressions/part.parquet"])
def test_lost_file_comes_back(data, events, run, files_in, lost):
    before = files_in(events)
    (events / lost).unlink()
    run(data, events)
    after = files_in(events)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }


def test_lost_manifest_keeps_days_that_the_input_no_longer_has(log, data, events, first, run):
    (events / MANIFEST).write_text("{")
    log.impressions = [log.impression(timestamp="2026-01-07T00:00:00Z")]
    days = run(log.write(data), events).tables["impressions"].days
    assert list(days) == ["2026-01-05", "2026-01-06", "2026-01-07"]
    assert days["2026-01-05"] == first[0].tables["impressions"].days["2026-01-05"]


def test_run_killed_before_its_manifest_is_put_right(log, data, events, run, files_in, rows_of, monkeypatch):
    """Even by a run on the input from before: the first manifest must not vouch for the half-written day."""
    whole = files_in(events)
    log.impressions[2]["watch_seconds"] = "13"
    monkeypatch.setattr("watchrank.ingestion.job.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(log.write(data), events)
    monkeypatch.undo()
    assert [row["watch_seconds"] for row in rows_of(events / DAY_6)] == [13.0]
    assert manifest(events).tables["impressions"].days["2026-01-06"].checksum == ""
    log.impressions[2]["watch_seconds"] = "12.5"
    run(log.write(data), events)
    assert [content for _, content in files_in(events).values()] == [content for _, content in whole.values()]


def test_day_half_way_when_a_run_was_killed_is_measured_when_it_vanishes(
    log, data, events, run, rows_of, monkeypatch
):
    log.impressions.append(log.impression(timestamp="2026-01-06T11:00:00Z"))
    monkeypatch.setattr("watchrank.ingestion.job.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(log.write(data), events)
    monkeypatch.undo()
    log.impressions = [log.impression(timestamp="2026-01-07T00:00:00Z")]
    day = run(log.write(data), events).tables["impressions"].days["2026-01-06"]
    assert day.rows == len(rows_of(events / DAY_6)) == 2
    assert day.checksum != ""


def interrupt(*_):
    raise KeyboardInterrupt


def test_failing_run_leaves_earlier_outputs_as_they_were(log, data, events, run, files_in):
    before = files_in(events)
    log.users[0]["language"] = "fr"
    log.impressions += [log.impression(clicked="?", timestamp=f"2026-01-08T00:00:0{i}Z") for i in range(3)]
    with pytest.raises(InputError):
        run(log.write(data), events, max_quarantine_share=0.5)
    assert files_in(events) == before
    assert {path.name for path in events.parent.iterdir()} == {"events", ".events.lock"}


def test_new_column_rewrites_the_days_that_gain_it(log, data, events, run, rows_of):
    for row in log.impressions:
        row["liked"] = ""
    report = run(log.write(data), events)
    assert {DAY_5, DAY_6} <= set(report.written)
    assert rows_of(events / DAY_6)[0]["liked"] is None


def test_other_columns_beside_kept_days_are_refused(log, data, events, run, files_in):
    before = files_in(events)
    log.impressions = [log.impression(timestamp="2026-01-07T00:00:00Z", liked="1")]
    with pytest.raises(InputError, match=r"date=2026-01-05.*ingest into another folder"):
        run(log.write(data), events)
    assert files_in(events) == before


@pytest.fixture
def kuairand(tmp_path):
    """One impression of 2022-04-24 by user 1, in KuaiRand's format."""
    folder = tmp_path / "kuairand"
    folder.mkdir()
    (folder / "user_features.csv").write_text("user_id\n1\n")
    videos = "video_id,author_id,upload_dt,video_duration,tag\n1,1,2022-04-10,5000.0,3\n"
    (folder / "video_features_basic.csv").write_text(videos)
    impressions = "user_id,video_id,time_ms,is_click,play_time_ms\n1,1,1650812741436,1,2000\n"
    (folder / "log_standard.csv").write_text(impressions)
    return folder


def test_another_source_beside_kept_days_is_refused(kuairand, events, run):
    with pytest.raises(InputError, match="from the source own"):
        run(kuairand, events, source="kuairand")


def test_another_source_that_replaces_all_days_starts_afresh(tmp_path, log, kuairand, run):
    log.users = [{"user_id": "1"}, {"user_id": "2"}]
    log.impressions = [log.impression(timestamp="2022-04-24T00:00:00Z")]
    run(log.write(tmp_path / "data"), tmp_path / "events")
    report = run(kuairand, tmp_path / "events", source="kuairand")
    assert (report.source, report.tables["users"].rows) == ("kuairand", 1)


def test_partition_is_sorted_typed_and_without_its_date(events):
    table = pq.ParquetFile(events / DAY_5).read()
    assert table.schema.names == ["user_id", "video_id", "timestamp", "clicked", "watch_seconds", "surface"]
    types = [str(field.type) for field in table.schema]
    assert types == ["int64", "int64", "timestamp[us, tz=UTC]", "bool", "double", "string"]
    assert [time.hour for time in table["timestamp"].to_pylist()] == [9, 10]


def test_manifest_says_what_there_is(first):
    report, events = first
    found = manifest(events)
    assert found.model_dump() == report.model_dump(exclude={"written"})
    assert found.source == "own"
    assert found.tables["impressions"].rows == 3
    assert {day: part.rows for day, part in found.tables["impressions"].days.items()} == {
        "2026-01-05": 2,
        "2026-01-06": 1,
    }
    assert found.tables["impressions"].quarantined == {"unknown user": 1}
