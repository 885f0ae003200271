"""Reading the events folder back."""

import shutil
from datetime import date

import pytest

from watchrank import events as reading
from watchrank.config import EngineSettings
from watchrank.engine import connect
from watchrank.errors import InputError
from watchrank.schema import IMPRESSIONS, SEARCHES


@pytest.fixture
def engine():
    connection = connect(EngineSettings(memory_limit="1GB", threads=1))
    yield connection
    connection.disconnect()


@pytest.fixture(scope="module")
def ingested(tmp_path_factory, new_log, run):
    folder = tmp_path_factory.mktemp("events")
    run(new_log().write(folder / "data"), folder / "events")
    return folder / "events"


@pytest.fixture
def events(tmp_path, ingested):
    return shutil.copytree(ingested, tmp_path / "events")


def test_manifest_tells_days_and_absent_columns(events):
    assert reading.days(events) == [date(2026, 1, 5), date(2026, 1, 6)]
    assert reading.days(events, SEARCHES) == []
    assert "videos.title" in reading.absent(events)
    assert "users.language" not in reading.absent(events)


def test_impressions_have_their_day(engine, events):
    impressions = reading.impressions(engine, events)
    days = impressions.group_by("date").agg(rows=impressions.count()).order_by("date")
    assert days.to_pyarrow().to_pylist() == [
        {"date": date(2026, 1, 5), "rows": 2},
        {"date": date(2026, 1, 6), "rows": 1},
    ]


def test_folders_above_the_events_are_no_columns(engine, events):
    place = events.rename(events.parent / "run=3")
    names = ("user_id", "video_id", "timestamp", "clicked", "watch_seconds", "surface", "date")
    assert reading.impressions(engine, place).columns == names
    assert reading.users(engine, place).columns == ("user_id", "language")


def test_only_days_in_the_manifest_are_read(engine, events):
    stray = reading.partition_of(events, IMPRESSIONS, "2026-01-07")
    stray.parent.mkdir()
    stray.write_bytes(b"half a file")
    assert reading.impressions(engine, events).count().to_pyarrow().as_py() == 3


def test_users_and_videos_are_one_table_each(engine, events):
    assert reading.users(engine, events).columns == ("user_id", "language")
    assert reading.videos(engine, events).count().to_pyarrow().as_py() == 2


def test_searches_that_there_are_not(engine, events):
    with pytest.raises(InputError, match="have no searches"):
        reading.searches(engine, events)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "There is no"), ("{}", "no manifest"), ("\x00", "no manifest")]
)
def test_folder_without_a_manifest(tmp_path, content, said):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=rf"{said}.*watchrank ingest"):
        reading.days(tmp_path)


def test_events_that_an_ingestion_was_killed_on_are_not_read(engine, events):
    file = reading.manifest_path(events)
    manifest = reading.manifest(events)
    tables = {
        name: summary.without_checksums(list(summary.days)[:1]) for name, summary in manifest.tables.items()
    }
    file.write_text(manifest.model_copy(update={"tables": tables}).model_dump_json())
    with pytest.raises(InputError, match=f"^An ingestion into {events} has not ended; wait for it or run"):
        reading.impressions(engine, events)
