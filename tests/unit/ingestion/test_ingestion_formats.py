"""The same log in every format gives the same events; what a column may look like."""

from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchrank.ingestion import job
from watchrank.ingestion.adapter import Feed, Field, same

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.mark.parametrize("ending", ["csv.gz", "parquet"])
def test_formats_agree_with_csv(tmp_path, log, run, rows_of, ending):
    log.searches = [{"user_id": "1", "timestamp": "2026-01-05T08:00:00+02:00", "query": 'a "b",\nc 猫'}]
    log.impressions.append(log.impression(user_id="?"))
    plain = run(log.write(tmp_path / "plain"), tmp_path / "from_csv")
    other = run(log.write(tmp_path / "other", ending), tmp_path / "from_other")
    assert other == plain
    assert rows_of(tmp_path / "from_other") == rows_of(tmp_path / "from_csv")
    assert rows_of(tmp_path / "from_csv" / "searches")[0]["query"] == 'a "b",\nc 猫'


def test_typed_parquet_agrees_with_csv(tmp_path, log, run, rows_of):
    run(log.write(tmp_path / "data"), tmp_path / "from_csv")
    impressions = [
        {
            "user_id": float(row["user_id"]),
            "video_id": int(row["video_id"]),
            "timestamp": datetime.fromisoformat(row["timestamp"]),
            "clicked": row["clicked"] == "true",
            "watch_seconds": float(row["watch_seconds"]),
            "surface": row["surface"],
        }
        for row in log.impressions
    ]
    (tmp_path / "data" / "impressions.csv").unlink()
    log.write_file(tmp_path / "data" / "impressions.parquet", impressions)
    run(tmp_path / "data", tmp_path / "events")
    assert rows_of(tmp_path / "events") == rows_of(tmp_path / "from_csv")


def test_folder_of_files_of_differing_columns_is_one_table(tmp_path, log, run, rows_of):
    data = log.write(tmp_path / "data")
    (data / "impressions.csv").unlink()
    folder = data / "impressions"
    folder.mkdir()
    first, second, third = log.impressions
    log.write_file(folder / "1.csv", [first])
    log.write_file(folder / "2.csv", [second])
    log.write_file(folder / "3.csv", [dict(reversed([*third.items(), ("position", "4")]))])
    (folder / "_SUCCESS.csv").write_text("")
    report = run(data, tmp_path / "events")
    assert report.tables["impressions"].quarantined == {}
    assert [row["position"] for row in rows_of(tmp_path / "events" / "impressions")] == [None, None, 4]


def test_times_of_every_kind_are_utc(tmp_path, log, run, rows_of):
    """One user a kind of time: five ways to write noon UTC in CSV, seven in Parquet, and two dates."""
    texts = [
        "2026-01-05T12:00:00Z",
        "2026-01-05T14:00:00+02:00",
        "2026-01-05 12:00:00",
        "2026-01-05T12:00:00.000000Z",
        " 2026-01-05T12:00Z ",
        "2026-01-05",
    ]
    naive = NOON.replace(tzinfo=None)
    arrays = [
        *(pa.array([naive], pa.timestamp(unit)) for unit in ("ms", "us", "ns")),
        *(pa.array([NOON], pa.timestamp(unit, "UTC")) for unit in ("ms", "us", "ns")),
        pa.array([NOON], pa.timestamp("us", "Asia/Shanghai")),
        pa.array([date(2026, 1, 5)]),
    ]
    log.users = [{"user_id": str(user)} for user in range(len(texts) + len(arrays))]
    log.impressions = [log.impression(user_id=str(user), timestamp=text) for user, text in enumerate(texts)]
    log.write(tmp_path / "csv")
    run(tmp_path / "csv", tmp_path / "events")
    rows = rows_of(tmp_path / "events" / "impressions")
    assert [row["timestamp"] for row in rows] == [MIDNIGHT, *[NOON] * 5]
    tables = [
        odd_impression(log, {"timestamp": array}, user_id=str(user)) for user, array in enumerate(arrays)
    ]
    write_impressions(tmp_path / "parquet", log, tables)
    run(tmp_path / "parquet", tmp_path / "other")
    rows = rows_of(tmp_path / "other" / "impressions")
    assert [row["timestamp"] for row in rows] == [MIDNIGHT, *[NOON] * 7]


VALUES = [
    ("user_id", pa.array([1.5]), "unparsable user_id"),
    ("user_id", pa.array([2**64 - 1], pa.uint64()), "unparsable user_id"),
    ("user_id", pa.array([float("nan")]), "missing user_id"),
    ("watch_seconds", pa.array([float("nan")]), "missing watch_seconds"),
    ("watch_seconds", pa.array([float("inf")]), "unparsable watch_seconds"),
    ("clicked", pa.array([2]), "unparsable clicked"),
    ("clicked", pa.array([None], pa.bool_()), "missing clicked"),
    ("clicked", pa.array([1.0]), None),
    ("surface", pa.array(["home", "feed"]).dictionary_encode().take(pa.array([1])), None),
    ("surface", pa.nulls(1), None),
    ("surface", pa.array([7]), None),
    ("watch_seconds", pa.array([5], pa.int8()), None),
    ("watch_seconds", pa.array([Decimal("5.5")]), None),
]


def test_parquet_values_of_every_type(tmp_path, log, run, rows_of):
    """One file and one second a value: files of differing types make one table."""
    tables = [
        odd_impression(log, {column: array}, timestamp=f"2026-01-05T12:00:{second:02}Z")
        for second, (column, array, _) in enumerate(VALUES)
    ]
    write_impressions(tmp_path / "data", log, tables)
    run(tmp_path / "data", tmp_path / "events")
    bad = rows_of(tmp_path / "events" / "quarantine" / "impressions")
    reasons = {int(row["timestamp"][17:19]): row["reason"] for row in bad}
    assert [reasons.get(second) for second in range(len(VALUES))] == [reason for _, _, reason in VALUES]
    good = rows_of(tmp_path / "events" / "impressions")
    assert [row["surface"] for row in good] == ["home", "feed", None, "7", "home", "home"]
    assert [row["watch_seconds"] for row in good] == [12.5, 12.5, 12.5, 12.5, 5.0, 5.5]


def test_columns_of_nothing_but_null(tmp_path, log, run, rows_of):
    data = tmp_path / "data"
    spoilt, whole = odd_impression(log, {"clicked": pa.nulls(1)}), odd_impression(log, {})
    write_impressions(data, log, [spoilt, whole])
    (data / "videos.csv").unlink()
    null = pa.nulls(2)
    videos = {"video_id": [10, 11], "channel_id": [5, 6], "upload_time": null, "duration_seconds": null}
    pq.write_table(pa.table({**videos, "title": null}), data / "videos.parquet")
    report = run(data, tmp_path / "events")
    assert report.tables["impressions"].quarantined == {"missing clicked": 1}
    assert rows_of(tmp_path / "events" / "videos.parquet")[1] == {
        "video_id": 11,
        "channel_id": 6,
        "upload_time": None,
        "duration_seconds": None,
        "title": None,
    }


def odd_impression(log, arrays, **changes):
    """Return a table of one impression in which `arrays` stand for some columns."""
    table = pa.Table.from_pylist([log.impression(**changes)])
    for column, array in arrays.items():
        table = table.set_column(table.schema.names.index(column), column, array)
    return table


def write_impressions(folder, log, tables):
    """Write the log, its impressions as a folder of Parquet files."""
    log.write(folder)
    (folder / "impressions.csv").unlink()
    (folder / "impressions").mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, folder / "impressions" / f"{number}.parquet")


def test_absent_columns_are_left_out_and_declared(tmp_path, log, run, rows_of):
    report = run(log.write(tmp_path / "data"), tmp_path / "events")
    assert rows_of(tmp_path / "events" / "users.parquet")[0] == {"user_id": 1, "language": "en"}
    assert {name for name in report.absent if name.startswith("users.")} == {
        "users.age",
        "users.country",
        "users.device",
        "users.gender",
        "users.signup_time",
        "users.logged_in",
    }
    assert {name for name in report.absent if name.startswith("searches")} == {"searches.query"}
    assert not (tmp_path / "events" / "searches").exists()


def test_searches_there_are_not_absent(tmp_path, log, run):
    log.searches = [{"user_id": "1", "timestamp": "2026-01-05T08:00:00Z", "query": "cats"}]
    report = run(log.write(tmp_path / "data"), tmp_path / "events")
    assert {name for name in report.absent if name.startswith("searches")} == {"searches.clicked_video_id"}


def test_missing_duration_and_upload_time_are_null(tmp_path, log, run, rows_of):
    run(log.write(tmp_path / "data"), tmp_path / "events")
    assert rows_of(tmp_path / "events" / "videos.parquet") == [
        {
            "video_id": 10,
            "channel_id": 5,
            "upload_time": datetime(2026, 1, 1, tzinfo=UTC),
            "duration_seconds": 60.0,
        },
        {"video_id": 11, "channel_id": 6, "upload_time": None, "duration_seconds": None},
    ]


def test_header_may_have_a_mark_blanks_quotes_and_other_columns(tmp_path, log, run):
    data = log.write(tmp_path / "data")
    text = '\ufeff"user_id", language,"x,y",USER_ID\r\n1,en,0,7\r\n2,zh,0,\r\n'
    (data / "users.csv").write_text(text, encoding="utf-8", newline="")
    assert run(data, tmp_path / "events").tables["users"].rows == 2


def test_odd_folder_names_are_just_names(tmp_path, log, run):
    data = log.write(tmp_path / "it's [1] *" / "a=b")
    report = run(data, tmp_path / "out's [2] ?" / "date=2020-01-01" / "events")
    assert report.tables["impressions"].rows == 3
    assert run(data, tmp_path / "out's [2] ?" / "date=2020-01-01" / "events").written == ()


def test_source_is_one_small_declaration(tmp_path, run, rows_of, monkeypatch):
    """Users are those of a file of ratings, which repeats them; a star stands for 60 s watched."""
    ratings = Feed(
        patterns=("ratings.csv",),
        fields={
            "user_id": Field(origin="userId"),
            "video_id": Field(origin="movieId"),
            "timestamp": Field(origin="at"),
            "clicked": Field(origin="rating", value=lambda row: row.rating.cast("float64") > 0),
            "watch_seconds": Field(origin="rating", value=lambda row: row.rating.cast("float64") * 60),
        },
    )
    movies = {**same("video_id"), "channel_id": Field(origin="studio"), "upload_time": Field(origin="year")}
    films = {
        "users": Feed(patterns=("ratings.csv",), fields={"user_id": Field(origin="userId")}, distinct=True),
        "videos": Feed(
            patterns=("movies.csv",),
            fields={**movies, "duration_seconds": Field(origin="length", missing=("0",))},
        ),
        "impressions": ratings,
    }
    monkeypatch.setitem(job.SOURCES, "films", films)
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,at\n1,7,3,2026-01-05T00:00:00Z\n1,8,0,2026-01-05T00:00:01Z\n"
    )
    (tmp_path / "movies.csv").write_text("video_id,studio,year,length\n7,1,1999-01-01,0\n8,1,1999-01-01,90\n")
    report = run(tmp_path, tmp_path / "events", source="films", max_quarantine_share=0)
    assert report.tables["users"].rows == 1
    assert [row["watch_seconds"] for row in rows_of(tmp_path / "events" / "impressions")] == [180.0, 0.0]
    lengths = [row["duration_seconds"] for row in rows_of(tmp_path / "events" / "videos.parquet")]
    assert lengths == [None, 90.0]
