"""KuaiRand's original files: hand-made rows, and the real log where it is there."""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchrank.config import EngineSettings, IngestionSettings
from watchrank.errors import InputError
from watchrank.ingestion import ingest

USERS = "user_id,user_active_degree\n7,full_active\n"
VIDEOS = """video_id,author_id,video_type,upload_dt,video_duration,tag
1,90,NORMAL,2022-04-10,9000.0,39
2,91,NORMAL,2022-04-09,,"12,65"
3,92,NORMAL,2022-04-09,0.0,
"""
LOG = """user_id,video_id,time_ms,is_click,is_like,is_follow,long_view,play_time_ms,duration_ms,tab
7,1,1650812741436,1,1,0,1,8500,9000,1
7,2,1650812741437,0,0,0,0,1184,0,0
7,3,1650812741438,1,0,1,0,100,0,12
7,3,1650812741439,1,0,0,0,long,0,1
7,3,1650812741440,0,0,0,0,long,0,1
7,3,165081274143x,1,0,0,0,100,0,1
7,1,1650812741441,1,0,0,0,180001,9000,1
"""


SEQUENCES = {
    "user_id": [7, 8],
    "history_len": [60, 2],
    "last_time_ms": [1650553541436, 1650553541437],
    "watch_seq": [[1, 2, 3, 2], [1, 1]],
    "long_watch_seq": [[1, 3, 1, None, 4], []],
}


@pytest.fixture(scope="module")
def events(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("kuairand")
    data = folder / "data"
    data.mkdir()
    (data / "user_features_pure.csv").write_text(USERS)
    (data / "video_features_basic_pure.csv").write_text(VIDEOS)
    (data / "log_standard_4_25_to_5_04_pure.csv").write_text(LOG)
    pq.write_table(pa.table(SEQUENCES), data / "user_sequences.parquet")
    (data / "log_random_4_22_to_5_08_pure.csv").write_text("never read")
    run(data, folder / "events", source="kuairand")
    return folder / "events"


def test_log_becomes_impressions(events, rows_of):
    first, second, third = rows_of(events / "impressions" / "date=2022-04-24")
    assert first == {
        "user_id": 7,
        "video_id": 1,
        "timestamp": datetime(2022, 4, 24, 15, 5, 41, 436_000, tzinfo=UTC),
        "clicked": True,
        "watch_seconds": 8.5,
        "surface": "tab1",
        "liked": True,
        "followed": False,
        "long_view": True,
    }
    assert (second["clicked"], second["watch_seconds"], second["surface"]) == (False, 0.0, "tab0")
    assert (third["watch_seconds"], third["followed"], third["surface"]) == (0.1, True, "tab12")


def test_bad_rows_of_the_log_say_what_stood_there(events, rows_of):
    bad = [
        (row["reason"], row["timestamp"], row["watch_seconds"])
        for row in rows_of(events / "quarantine" / "impressions")
    ]
    assert bad == [
        ("unparsable timestamp", "165081274143x", "0.1"),
        ("unparsable watch_seconds", "2022-04-24 15:05:41.439+00", "long"),
        ("unparsable watch_seconds", "2022-04-24 15:05:41.44+00", "long"),
        ("watch time too long for the video", "2022-04-24 15:05:41.441+00", "180.001"),
    ]


def test_video_features_become_videos(events, rows_of):
    assert rows_of(events / "videos.parquet") == [
        {
            "video_id": video_id,
            "channel_id": channel_id,
            "upload_time": datetime(2022, 4, day, tzinfo=UTC),
            "duration_seconds": duration,
            "category": category,
        }
        for video_id, channel_id, day, duration, category in [
            (1, 90, 10, 9.0, "39"),
            (2, 91, 9, None, "12"),
            (3, 92, 9, None, None),
        ]
    ]


def test_long_watches_become_earlier_watches_in_their_order(events, rows_of):
    last = datetime(2022, 4, 21, 15, 5, 41, 436_000, tzinfo=UTC)
    assert [tuple(row.values()) for row in rows_of(events / "earlier_watches.parquet")] == [
        (7, 1, last, 0),
        (7, 3, last, 1),
        (7, 1, last, 2),
    ]
    bad = [(row["reason"], row["place"]) for row in rows_of(events / "quarantine" / "earlier_watches")]
    assert bad == [("missing video_id", "3"), ("unknown video", "4")]


@pytest.mark.parametrize(
    ("sequences", "said"),
    [
        (SEQUENCES | {"long_watch_seq": [1, 2]}, "column long_watch_seq .* type int64; write it as a list"),
        ({"user_id": [7], "last_time_ms": [1]}, "has no column long_watch_seq"),
    ],
)
def test_sequences_without_lists_are_refused(tmp_path, run, sequences, said):
    for name, text in (("user_features", USERS), ("video_features_basic", VIDEOS), ("log_standard", LOG)):
        (tmp_path / f"{name}.csv").write_text(text)
    pq.write_table(pa.table(sequences), tmp_path / "user_sequences.parquet")
    with pytest.raises(InputError, match=said):
        run(tmp_path, tmp_path / "events", source="kuairand")


def test_real_log_comes_in_under_the_default_share(tmp_path, rows_of, shared_data):
    """4,739 rows repeat (user, video, time); 7 watches are longer than 20 times the video."""
    report = ingest(
        shared_data / "kuairand_pure",
        "kuairand",
        tmp_path / "events",
        IngestionSettings(),
        EngineSettings(memory_limit="1GB"),
    )
    earlier = report.tables["earlier_watches"]
    assert (earlier.rows, earlier.quarantined) == (390_929, {})
    impressions = report.tables["impressions"]
    assert impressions.quarantined == {"duplicate": 4_739, "watch time too long for the video": 7}
    assert impressions.rows == 171_671 - 4_739 - 7
    assert (report.tables["users"].rows, report.tables["videos"].rows) == (27_285, 7_583)
    assert (report.tables["users"].quarantined, report.tables["videos"].quarantined) == ({}, {})
    assert list(impressions.days)[::10] == ["2022-04-24", "2022-05-04"]
    videos = rows_of(tmp_path / "events" / "videos.parquet")
    assert sum(video["duration_seconds"] is None for video in videos) == 239
    assert "users.age" in report.absent
    assert "searches.query" in report.absent
