"""The README's table of bad input: each row is done, and must be told what the table says."""

import asyncio
import json
import re
import shlex
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from watchrank.cli import main as watchrank
from watchrank.config import EngineSettings, IngestionSettings
from watchrank.errors import InputError
from watchrank.feature_store import online_user_features
from watchrank.ingestion import ingest
from watchrank.serving.client import TritonClient
from watchrank.serving.question import Question

README = Path(__file__).resolve().parents[2] / "README.md"


def read_table():
    """Return the rows of the README's table by their group: what is wrong, the sentence and the code."""
    section = README.read_text(encoding="utf-8").partition("\n## Bad input\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    groups = {}
    for what, *told in rows[1:]:
        if what.startswith("**"):
            group = groups[what.split("**")[1]] = {}
        elif what != "---":
            assert what not in group
            group[what] = tuple(told)
    return groups


TABLE = read_table()


def rows_of(group):
    return pytest.mark.parametrize("what", TABLE[group])


def test_the_table_has_every_kind():
    assert list(TABLE) == ["Command line", "Settings", "Files", "Pipeline parameters", "HTTP", "Triton"]
    assert set(TABLE["Files"]) == set(FILES)
    assert set(TABLE["Triton"]) == set(TENSORS)
    rows = [row for group in TABLE.values() for row in group.values()]
    assert len(rows) >= 30
    assert [told for told, _ in rows if not told.endswith((".", "?"))] == []


# -- Command line, settings, files, parameters -----------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with `log` (30 days of 40 impressions), and the events of another one in `work`."""
    monkeypatch.chdir(tmp_path)
    for name, days in (("before", 3), ("log", 30)):
        Path(name).mkdir()
        pq.write_table(pa.table({"user_id": [1, 2]}), f"{name}/users.parquet")
        pq.write_table(pa.table({"video_id": [10, 11]}), f"{name}/videos.parquet")
        pa.csv.write_csv(pa.Table.from_pylist(impressions(days)), f"{name}/impressions.csv")
    ingest(Path("before"), "own", Path("work/events"), IngestionSettings(), EngineSettings())
    return tmp_path


def impressions(days):
    return [
        {
            "user_id": 1 + place % 2,
            "video_id": 10 + place % 2,
            "timestamp": f"2026-01-{day:02}T10:00:{place:02}Z",
            "clicked": place % 4 == 0,
            "watch_seconds": 5 if place % 4 == 0 else 0,
        }
        for day in range(1, days + 1)
        for place in range(40)
    ]


def files_in(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def run(command, monkeypatch, capfd):
    """Run a command line in this process; return what it says, without this folder, and its exit code."""
    from watchrank_pipelines.cli import main as pipelines

    program, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        {"watchrank": watchrank, "watchrank-pipelines": pipelines}[program]()
    lines = [line.strip("│ ") for line in capfd.readouterr().err.splitlines() if line[:1] not in "╭╰"]
    told = " ".join(line for line in lines if not line.startswith(("Usage:", "Try '")))
    told = told.replace(f"{Path.cwd()}/", "").strip()
    return re.sub(r"^\w+Error: ", "", told), str(stopped.value.code)


@rows_of("Command line")
def test_a_bad_command(place, monkeypatch, capfd, what):
    before = files_in(place)
    assert run(what.strip("`"), monkeypatch, capfd) == TABLE["Command line"][what]
    assert files_in(place) == before


@rows_of("Settings")
def test_bad_settings(place, monkeypatch, capfd, what):
    options, *content = (part.strip("`") for part in what.split(" with "))
    for text in content:
        (place / "settings.yaml").write_text(text)
    before = files_in(place)
    assert run(f"watchrank ingest --data log {options}", monkeypatch, capfd) == TABLE["Settings"][what]
    assert files_in(place) == before


def changed(change):
    """Return what writes the impressions with each row changed; one that becomes None is left out."""

    def write(file):
        rows = [change(number, row) for number, row in enumerate(impressions(30))]
        pa.csv.write_csv(pa.Table.from_pylist([row for row in rows if row]), file)

    return write


def spoilt(change):
    """Return what writes the impressions with their bytes changed."""
    return lambda file: file.write_bytes(change(file.read_bytes()))


def as_parquet(**columns):
    def write(file):
        table = pa.Table.from_pylist(impressions(30))
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, [values])
        pq.write_table(table, file.with_suffix(".parquet"))

    return write


def half_of_parquet(file):
    as_parquet()(file)
    file.unlink()
    content = file.with_suffix(".parquet").read_bytes()
    file.with_suffix(".parquet").write_bytes(content[: len(content) // 2])


def times_as_numbers(file):
    as_parquet(timestamp=pa.array(range(1200)))(file)
    file.unlink()


def robot(file):
    rows = impressions(30)
    rows += [
        {**rows[1], "user_id": 1, "timestamp": f"2026-01-05T12:{n // 60 % 60:02}:{n % 60:02}.{n // 3600}Z"}
        for n in range(6_000)
    ]
    pa.csv.write_csv(pa.Table.from_pylist(rows), file)


def text_id(number, row):
    return row | {"user_id": f"{'u' if number % 10 == 0 else ''}{row['user_id']}"}


FILES = {
    "no impressions": lambda file: file.unlink(),
    "impressions twice": as_parquet(),
    "an empty file": spoilt(lambda content: b""),
    "a header alone": spoilt(lambda content: content.splitlines(keepends=True)[0]),
    "no column clicked": spoilt(lambda content: content.replace(b"clicked", b"click")),
    "a column twice": spoilt(lambda content: content.replace(b"clicked", b"user_id")),
    "a byte that is no UTF-8": spoilt(lambda content: content.replace(b"10,", b"caf\xe9,", 1)),
    "a short line": spoilt(lambda content: content + b"1,10\n"),
    "half of a Parquet file": half_of_parquet,
    "times as numbers": times_as_numbers,
    "strings for the ids of a tenth of the rows": changed(text_id),
    "unknown users on one day of thirty": changed(
        lambda number, row: row | {"user_id": row["user_id"] + 7 * (number // 40 == 29)}
    ),
    "a user with 6,000 impressions in a day": robot,
    "a day that is missing, found by `watchrank validate`": changed(
        lambda number, row: None if number // 40 == 20 else row
    ),
}


@rows_of("Files")
def test_bad_files(place, monkeypatch, capfd, what):
    FILES[what](place / "log" / "impressions.csv")
    command = "watchrank ingest --data log"
    if what.endswith("`"):
        sets = "--set validation.min_rows_a_day=1 --set validation.max_user_share=1"
        ingest(place / "log", "own", place / "work/events", IngestionSettings(), EngineSettings())
        command = f"watchrank validate {sets}"
    before = files_in(place / "work/events")
    assert run(command, monkeypatch, capfd) == TABLE["Files"][what]
    assert files_in(place / "work/events") == before


@rows_of("Pipeline parameters")
def test_bad_parameters(place, monkeypatch, capfd, what):
    before = files_in(place / "work/events")
    assert run(what.strip("`"), monkeypatch, capfd) == TABLE["Pipeline parameters"][what]
    assert files_in(place / "work/events") == before


# -- Triton and HTTP -------------------------------------------------------------------------------


@rows_of("HTTP")
def test_a_bad_http_request(url, what):
    method, path, *body = what.strip("`").split(" ", 2)
    data, headers = "".join(body).encode() or None, {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}{path}", data, headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    with refused.value as answer:
        assert (json.loads(answer.read())["detail"], str(answer.code)) == TABLE["HTTP"][what]


TENSORS = {
    "`k` as int32": {"k": np.ones((1, 1), np.int32)},
    "`now` of the shape [1]": {"now": np.ones(1, np.int64)},
    "3 past watches in place of 50": {"watched_video_ids": np.ones((1, 3), np.int64)},
    "no `surface`": {"surface": None},
    "an input `colour`": {"colour": np.ones((1, 1), np.int64)},
}


@rows_of("Triton")
def test_a_bad_request_to_triton(triton, store, what):
    request = online_user_features(store, [1]) | Question().tensors(1) | TENSORS[what]

    async def ask():
        async with TritonClient(triton.settings) as client:
            given = {name: tensor for name, tensor in request.items() if tensor is not None}
            return await client.infer("recommend", given)

    with pytest.raises(InputError) as refused:
        asyncio.run(ask())
    assert (str(refused.value), "InputError") == TABLE["Triton"][what]
