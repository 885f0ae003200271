"""A small log that tests change, write in any format and ingest."""

import csv
import gzip
import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchrank.config import EngineSettings, IngestionSettings
from watchrank.ingestion import IngestionReport, ingest

AS_OF = datetime(2026, 2, 1, tzinfo=UTC)

Row = dict[str, Any]


class Log:
    """Rows by table as text: two users, two videos (one of unknown length), three impressions in two days."""

    def __init__(self) -> None:
        self.users: list[Row] = [{"user_id": "1", "language": "en"}, {"user_id": "2", "language": "zh"}]
        self.videos: list[Row] = [
            {"video_id": "10", "channel_id": "5", "upload_time": "2026-01-01", "duration_seconds": "60"},
            {"video_id": "11", "channel_id": "6", "upload_time": "", "duration_seconds": ""},
        ]
        self.impressions: list[Row] = [
            self.impression(timestamp="2026-01-05T10:00:00Z"),
            self.impression(timestamp="2026-01-05T09:00:00Z", clicked="false", watch_seconds="0"),
            self.impression(timestamp="2026-01-06T10:00:00Z", user_id="2", video_id="11"),
        ]
        self.searches: list[Row] = []
        self.earlier_watches: list[Row] = []

    @staticmethod
    def impression(**changes: str) -> Row:
        row = {"user_id": "1", "video_id": "10", "timestamp": "2026-01-05T12:00:00Z", "clicked": "true"}
        return {**row, "watch_seconds": "12.5", "surface": "home", **changes}

    def write(self, folder: Path, ending: str = "csv") -> Path:
        """Write the tables that have rows, in one format."""
        folder.mkdir(parents=True, exist_ok=True)
        for table in ("users", "videos", "impressions", "searches", "earlier_watches"):
            if rows := getattr(self, table):
                self.write_file(folder / f"{table}.{ending}", rows)
        return folder

    @staticmethod
    def write_file(file: Path, rows: list[Row]) -> None:
        if file.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode()
        file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture(scope="session")
def run() -> Callable[..., IngestionReport]:
    """Ingest with any share of bad rows allowed, unless told otherwise."""

    def call(data: Path, events: Path, source: str = "own", **settings: Any) -> IngestionReport:
        any_share = {"max_quarantine_share": 1, "max_quarantine_share_a_day": 1}
        chosen = IngestionSettings(**{"as_of": AS_OF, **any_share, **settings})
        return ingest(data, source, events, chosen, EngineSettings(memory_limit="1GB", threads=2))

    return call


@pytest.fixture(scope="session")
def new_log() -> type[Log]:
    return Log


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], list[Row]]:
    """Read Parquet files below a path, sorted by path, with no partition columns."""

    def read(path: Path) -> list[Row]:
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]

    return read


@pytest.fixture(scope="session")
def files_in() -> Callable[[Path], dict[str, tuple[int, bytes]]]:
    """Return the time of writing and the content of every file below a folder."""

    def look(folder: Path) -> dict[str, tuple[int, bytes]]:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    return look
