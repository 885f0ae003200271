"""Whatever bytes a file holds: they are ingested, or an InputError tells why not."""

import contextlib
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from watchrank.errors import InputError

CONTENT = (
    b"user_id,video_id,timestamp,clicked,watch_seconds,surface\n"
    b"1,10,2026-01-05T10:00:00Z,true,12.5,home\n"
    b'2,11,2026-01-06 10:00:00+02:00,0,0,"a ""b"", c"\n'
)
PIECES = st.sampled_from(
    [b'"', b",", b"\n", b"\r\n", b"\0", b"\xff", b"-", b"1e999", b"\xef\xbb\xbf", b"infinity"]
)


@st.composite
def spoilt(draw):
    """Return the content of a good file with a few pieces put in or cut out."""
    content = CONTENT
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(len(CONTENT) // 4, len(content)))
        piece = draw(st.one_of(PIECES, st.binary(max_size=4)))
        content = content[:start] + piece + content[start + draw(st.integers(0, 8)) :]
    return content


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(spoilt(), st.binary(max_size=300)))
def test_any_bytes_are_ingested_or_refused(log, run, content):
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(InputError):
        data = log.write(Path(folder) / "data")
        (data / "impressions.csv").write_bytes(content)
        report = run(data, Path(folder) / "events")
        assert report.tables["impressions"].rows > 0
