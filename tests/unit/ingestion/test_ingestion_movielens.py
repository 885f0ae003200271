"""MovieLens' original files: hand-made rows, and the first ratings of the real log where it is there."""

import itertools
import shutil
from datetime import UTC, datetime

import pyarrow.parquet as pq
import pytest

RATINGS = """userId,movieId,rating,timestamp
4,1,4.0,964982703
4,3,3.5,964982704
9,1,5.0,1537799250
9,3,good,1537799251
9,3,2.0,never
"""
MOVIES = """movieId,title,genres
1,Toy Story (1995),Adventure|Animation|Children
3,"Shawshank Redemption, The (1994)",(no genres listed)
"""


@pytest.fixture(scope="module")
def ingested(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("movielens")
    (folder / "ratings.csv").write_text(RATINGS)
    (folder / "movies.csv").write_text(MOVIES)
    return run(folder, folder / "events", source="movielens"), folder / "events"


def test_good_ratings_become_clicks_without_watch_time(ingested, rows_of):
    _, events = ingested
    assert [tuple(row.values()) for row in rows_of(events / "impressions")] == [
        (4, 1, datetime(2000, 7, 30, 18, 45, 3, tzinfo=UTC), True, 0.0),
        (4, 3, datetime(2000, 7, 30, 18, 45, 4, tzinfo=UTC), False, 0.0),
        (9, 1, datetime(2018, 9, 24, 14, 27, 30, tzinfo=UTC), True, 0.0),
    ]
    stored = pq.read_schema(events / "impressions" / "date=2000-07-30" / "part.parquet")
    assert str(stored.field("watch_seconds").type) == "double"
    reasons = ingested[0].tables["impressions"].quarantined
    assert reasons == {"unparsable clicked": 1, "unparsable timestamp": 1}


def test_users_are_those_who_rate_and_movies_have_a_first_genre(ingested, rows_of):
    report, events = ingested
    assert rows_of(events / "users.parquet") == [{"user_id": 4}, {"user_id": 9}]
    assert report.tables["users"].quarantined == {}
    assert rows_of(events / "videos.parquet") == [
        {"video_id": 1, "title": "Toy Story (1995)", "category": "Adventure"},
        {"video_id": 3, "title": "Shawshank Redemption, The (1994)", "category": None},
    ]
    assert {"videos.channel_id", "videos.upload_time", "videos.duration_seconds"} < set(report.absent)


def test_first_ratings_of_the_real_log(tmp_path, run, shared_data):
    """Of 610 users the first 7, on 32 days; all 4,110 days take a minute."""
    real = shared_data / "ml-latest-small"
    shutil.copyfile(real / "movies.csv", tmp_path / "movies.csv")
    with (real / "ratings.csv").open() as ratings:
        (tmp_path / "ratings.csv").write_text("".join(itertools.islice(ratings, 1_001)))
    tables = run(tmp_path, tmp_path / "events", source="movielens", max_quarantine_share=0).tables
    assert {name: table.rows for name, table in tables.items()} == {
        "users": 7,
        "videos": 9_742,
        "impressions": 1_000,
    }
