"""Whatever bytes a file holds: they are ingested, or an InputError tells why not and nothing is written."""

import io
import re
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from watchrank.errors import InputError

CSV = (
    b"user_id,video_id,timestamp,clicked,watch_seconds,surface\n"
    b"1,10,2026-01-05T10:00:00Z,true,12.5,home\n"
    b'2,11,2026-01-06 10:00:00+02:00,0,0,"a ""b"", c"\n'
)
PIECES = st.sampled_from(
    [b'"', b",", b"\n", b"\r\n", b"\0", b"\xff", b"-", b"1e999", b"\xef\xbb\xbf", b"infinity"]
)
ANY = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def parquet() -> bytes:
    columns = {
        "user_id": [1, 2],
        "video_id": [10, 11],
        "timestamp": ["2026-01-05T10:00:00Z", "2026-01-06T10:00:00Z"],
        "clicked": [True, False],
        "watch_seconds": [12.5, 0.0],
    }
    pq.write_table(pa.table(columns), stream := io.BytesIO())
    return stream.getvalue()


@st.composite
def spoilt(draw, content, first):
    """Return the content of a good file with a few pieces put in or cut out, from byte `first` on."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(first, len(content)))
        piece = draw(st.one_of(PIECES, st.binary(max_size=4)))
        content = content[:start] + piece + content[start + draw(st.integers(0, 8)) :]
    return content


@st.composite
def changed(draw, content):
    """Return the content of a good file with a few bytes that are others, or cut short."""
    changed = bytearray(content)
    places = st.integers(0, len(content) // 8) | st.integers(0, len(content) - 1)
    for place in draw(st.lists(places, min_size=1, max_size=3)):
        changed[place] = draw(st.integers(0, 255))
    return bytes(changed[: draw(st.just(len(content)) | st.integers(0, len(content)))])


@pytest.fixture(scope="module")
def earlier(run, new_log, files_in, tmp_path_factory):
    """A folder with a log and the events of a good run, and how the events look."""
    folder = tmp_path_factory.mktemp("earlier")
    run(new_log().write(folder / "data"), folder / "events")
    (folder / "data" / "impressions.csv").unlink()
    return folder, files_in(folder / "events")


def check(earlier, run, files_in, name, content):
    """Ingest the content into events of before."""
    folder, before = earlier
    (folder / "data" / name).write_bytes(content)
    with tempfile.TemporaryDirectory() as place:
        events = shutil.copytree(folder / "events", Path(place) / "events")
        refused = None
        try:
            assert run(folder / "data", events).tables["impressions"].rows > 0
        except InputError as error:
            refused = str(error)
        if refused is not None:
            assert re.fullmatch(r"[^\n]*\.", refused)
            assert files_in(events) == before
    (folder / "data" / name).unlink()


@ANY
@given(content=st.one_of(spoilt(CSV, len(CSV) // 4), st.binary(max_size=300)))
def test_any_bytes_as_csv_are_ingested_or_refused(earlier, run, files_in, content):
    check(earlier, run, files_in, "impressions.csv", content)


@ANY
@given(content=st.one_of(changed(parquet()), spoilt(parquet(), 0), st.binary(max_size=300)))
def test_any_bytes_as_parquet_are_ingested_or_refused(earlier, run, files_in, content):
    check(earlier, run, files_in, "impressions.parquet", content)
