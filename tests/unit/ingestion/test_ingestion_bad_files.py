"""A file that cannot be used: one sentence names file, column and remedy, and nothing is written."""

import gzip
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchrank.errors import InputError

HEADER = "user_id,video_id,timestamp,clicked,watch_seconds\n"
LINE = "1,10,2026-01-05T10:00:00Z,true,5\n"
GOOD = {
    "user_id": pa.array([1]),
    "video_id": pa.array([10]),
    "timestamp": pa.array(["2026-01-05T10:00:00Z"]),
    "clicked": pa.array([True]),
    "watch_seconds": pa.array([5.0]),
}


def csv(content):
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / "impressions.csv").write_bytes(data)


def gz(data):
    return lambda folder: (folder / "impressions.csv.gz").write_bytes(data)


def parquet(**columns):
    table = pa.table({name: array for name, array in {**GOOD, **columns}.items() if array is not None})
    return lambda folder: pq.write_table(table, folder / "impressions.parquet")


def cut(share):
    def write(folder):
        parquet()(folder)
        file = folder / "impressions.parquet"
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])

    return write


def damaged(folder):
    """Keep the file's head and foot, spoil its values."""
    pq.write_table(
        pa.table({name: pa.concat_arrays([array] * 2000) for name, array in GOOD.items()}), folder / "x"
    )
    content = bytearray((folder / "x").read_bytes())
    content[4:64] = b"\xff" * 60
    (folder / "impressions.parquet").write_bytes(content)


def nothing(folder):
    return None


def twice(folder):
    csv(HEADER + LINE)(folder)
    parquet()(folder)


def file_of_a_folder(folder):
    (folder / "impressions").mkdir()
    for number, line in enumerate([LINE, "1,10\n", LINE]):
        (folder / "impressions" / f"{number}.csv").write_text(HEADER + line)


STRUCT = pa.array([{"seconds": 1}])

CASES = {
    "no table": (
        nothing,
        ["no table impressions", "impressions.parquet", "impressions.csv", "watch_seconds"],
    ),
    "two tables": (twice, ["impressions.csv", "impressions.parquet", "keep one"]),
    "empty": (csv(""), ["impressions.csv", "is empty", "export it again"]),
    "header only": (csv(HEADER), ["impressions.csv", "no rows", "export it again"]),
    "blank header": (csv("\n" + HEADER + LINE), ["impressions.csv", "no header", "name the columns"]),
    "missing column": (
        csv(HEADER.replace("clicked", "click") + LINE),
        ["impressions.csv", "no column clicked", "only user_id, video_id, timestamp, click", "rename"],
    ),
    "semicolons": (
        csv(HEADER.replace(",", ";")),
        ["impressions.csv", "no column user_id", "user_id;video_id"],
    ),
    "column twice": (
        csv(HEADER.replace("clicked", "user_id,clicked") + LINE),
        ["impressions.csv", "two columns user_id", "drop one"],
    ),
    "line break in header": (
        csv('"a\nb",' + HEADER + "0," + LINE),
        ["impressions.csv", r"'a\nb'", "on one line"],
    ),
    "not UTF-8": (
        csv((HEADER + LINE).encode() + b"1,10,caf\xe9,true,5\n"),
        ["impressions.csv", "not UTF-8", "0xE9 in line 3, column timestamp", "save it as UTF-8"],
    ),
    "header not UTF-8": (csv(b"caf\xe9," + HEADER.encode()), ["impressions.csv", "0xE9 in line 1", "UTF-8"]),
    "UTF-16": (csv((HEADER + LINE).encode("utf-16")), ["impressions.csv", "0xFF in line 1", "UTF-8"]),
    "late bytes": (
        csv(HEADER.encode() + LINE.encode() * 20_000 + b"1,10,2026-01-05T10:00:00Z,tr\xfce,5\n"),
        ["impressions.csv", "0xFC in line 20002, column clicked", "UTF-8"],
    ),
    "short line": (csv(HEADER + LINE + "1,10\n"), ["impressions.csv, line 3", "Columns: 5 Found: 2", "mend"]),
    "open quote": (csv(HEADER + '1,"10,x,true,5\n'), ["impressions.csv, line 2", "quote", "mend the file"]),
    "mixed line ends": (csv(HEADER + "1,10,x,1,5\r\n"), ["impressions.csv", "line ends", "mend the file"]),
    "one of a folder": (file_of_a_folder, ["impressions/1.csv, line 2", "Found: 2", "mend the file"]),
    "no gzip": (gz(b"user_id"), ["impressions.csv.gz", "no whole CSV", "export it again"]),
    "cut gzip": (
        gz(gzip.compress((HEADER + LINE).encode())[:-12]),
        ["impressions.csv.gz", "end", "export it again"],
    ),
    "cut Parquet": (cut(0.6), ["impressions.parquet", "no whole Parquet", "export it again"]),
    "hardly any Parquet": (cut(0.002), ["impressions.parquet", "no whole Parquet", "export it again"]),
    "damaged Parquet": (damaged, ["impressions.parquet", "mend the file or export it again"]),
    "missing Parquet column": (parquet(clicked=None), ["impressions.parquet", "no column clicked", "rename"]),
    "struct": (
        parquet(timestamp=STRUCT),
        ["column timestamp of", "impressions.parquet", "struct<seconds: int64>", "ISO 8601"],
    ),
    "list": (parquet(timestamp=pa.array([["2026"]])), ["column timestamp of", "list<", "as timestamp"]),
    "bool time": (parquet(timestamp=pa.array([True])), ["column timestamp of", "type bool", "as timestamp"]),
    "number time": (parquet(timestamp=pa.array([1767607200])), ["column timestamp of", "int64", "ISO 8601"]),
    "time id": (parquet(user_id=pa.array([True])), ["column user_id of", "type bool", "as int64"]),
    "bytes": (parquet(surface=pa.array([b"home"])), ["column surface of", "type binary", "as string"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_file_gives_one_sentence_and_writes_nothing(tmp_path, log, run, case):
    write, said = CASES[case]
    data = log.write(tmp_path / "data")
    (data / "impressions.csv").unlink()
    write(data)
    with pytest.raises(InputError) as caught:
        run(data, tmp_path / "events")
    message = str(caught.value)
    assert [part for part in said if part not in message] == []
    assert "\n" not in message
    assert message.endswith(".")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == ["data"]


@pytest.mark.parametrize("case", ["missing column", "not UTF-8", "cut Parquet", "short line"])
def test_bad_file_leaves_earlier_events_as_they_were(tmp_path, log, run, files_in, case):
    data = log.write(tmp_path / "data")
    run(data, tmp_path / "events")
    before = files_in(tmp_path / "events")
    (data / "impressions.csv").unlink()
    CASES[case][0](data)
    with pytest.raises(InputError):
        run(data, tmp_path / "events")
    assert files_in(tmp_path / "events") == before


def test_folder_that_is_not_there(tmp_path, run):
    with pytest.raises(InputError, match=r"no folder .*nowhere; give the folder"):
        run(tmp_path / "nowhere", tmp_path / "events")


def test_unknown_source_lists_the_known_ones(tmp_path, run):
    with pytest.raises(InputError, match="no source 'movies'; give one of own, kuairand"):
        run(tmp_path, tmp_path / "events", source="movies")


def test_events_that_are_a_file(tmp_path, log, run):
    (tmp_path / "events").write_text("mine")
    with pytest.raises(InputError, match=r"events is a file; give a folder"):
        run(log.write(tmp_path / "data"), tmp_path / "events")
    assert (tmp_path / "events").read_text() == "mine"


def test_every_table_is_checked_before_any_is_read(tmp_path, log, run):
    """The users are bad row by row, the searches as a file: the file is told."""
    log.users = [{"user_id": "?"}]
    log.searches = [{"user_id": "1", "query": "cats"}]
    with pytest.raises(InputError, match=r"searches\.csv has no column timestamp"):
        run(log.write(tmp_path / "data"), tmp_path / "events")


def test_searches_may_be_missing_but_not_empty(tmp_path, log, run):
    data = log.write(tmp_path / "data")
    (data / "searches.csv").write_text("user_id,timestamp,query\n")
    with pytest.raises(InputError, match=r"searches .*no rows"):
        run(data, tmp_path / "events")


def test_kuairand_names_its_own_columns(tmp_path, log, run):
    shutil.copy(log.write(tmp_path / "own") / "users.csv", tmp_path / "user_features_pure.csv")
    (tmp_path / "video_features_basic_pure.csv").write_text(
        "video_id,author_id,upload_dt,video_duration,tag\n"
    )
    (tmp_path / "log_standard_pure.csv").write_text("user_id,video_id,is_click,play_time_ms\n")
    with pytest.raises(InputError, match=r"log_standard_pure\.csv has no column time_ms"):
        run(tmp_path, tmp_path / "events", source="kuairand")
