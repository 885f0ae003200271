"""An events folder as the frames that the suites look at: its files, its rows, its days."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from watchrank import events
from watchrank.errors import InputError
from watchrank.schema import Table
from watchrank.validation.suites import OUTSIDE_DAY, PARENTS, is_daily, read_columns, unknown

FIRST_DAYS = 7
"""Days of a log on which most users and videos are new to it."""

MISSING = "missing"
"""Stands for the type of a column that one file lacks and another has."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One Parquet file: its name in the events folder, its day (None: no days), rows and Arrow types."""

    path: Path
    name: str
    day: date | None
    rows: int
    types: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Day:
    """What a day of impressions holds."""

    date: date
    rows: int
    clicks: int
    unknown_users: int
    unknown_videos: int
    busiest_user: int
    new_users: int
    new_videos: int
    repeated: int


class Known:
    """The users and videos of the days before, to tell which of a day's rows are of new ones."""

    def __init__(self) -> None:
        """Know nobody."""
        self._seen: dict[str, pa.Array] = {}
        self._pairs: pa.Table | None = None

    def count_new(self, column: str, values: pa.ChunkedArray) -> int:
        """Count the values that no day before had, and remember all."""
        seen = self._seen.get(column, pa.array([], values.type))
        new = values.filter(pc.invert(pc.is_in(values, value_set=seen)))
        self._seen[column] = pa.concat_arrays([seen, new.unique()])
        return len(new)

    def count_repeated(self, rows: pa.Table) -> int:
        """Count the rows whose user and video were there before, on that day or the day before."""
        keys = ["user_id", "video_id"]
        pairs = rows.select(keys).drop_null()
        distinct = pairs.group_by(keys).aggregate([])
        new = distinct if self._pairs is None else distinct.join(self._pairs, keys, join_type="left anti")
        self._pairs = distinct
        return len(pairs) - len(new)


def find_parts(folder: Path, table: Table) -> list[Part]:
    """Return the files of a table, in the order of their days, reading only their footers.

    Raises:
        InputError: the manifest names no day of a daily table, or a file is missing or no Parquet file.
    """
    if not is_daily(table):
        return [_part(folder, events.file_of(folder, table), None)]
    days = events.days(folder, table)
    if not days:
        raise InputError(f"The events in {folder} have no {table.name}; run `watchrank ingest` again.")
    return [_part(folder, events.partition_of(folder, table, day), day) for day in days]


def _part(folder: Path, path: Path, day: date | None) -> Part:
    with _opened(path) as file:
        return Part(
            path=path,
            name=path.relative_to(folder).as_posix(),
            day=day,
            rows=file.metadata.num_rows,
            types={field.name: str(field.type) for field in file.schema_arrow},
        )


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; what goes wrong with it is an `InputError` in one sentence."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"Cannot read {path} ({reason}); run `watchrank ingest` again.") from None


def files_frame(parts: list[Part]) -> pd.DataFrame:
    """Return one row a file (its name is the index) that holds the Arrow type of each column."""
    names = dict.fromkeys(name for part in parts for name in part.types)
    return pd.DataFrame(
        {name: [part.types.get(name, MISSING) for part in parts] for name in names},
        index=[part.name for part in parts],
    )


def whole_days(parts: list[Part], batch_rows: int) -> Iterator[list[Part]]:
    """Group files, one a day, into batches of at most `batch_rows` rows; a longer day is a batch alone."""
    batch: list[Part] = []
    for part in parts:
        if batch and sum(each.rows for each in batch) + part.rows > batch_rows:
            yield batch
            batch = []
        batch.append(part)
    yield batch


def read_rows(part: Part, table: Table, ids: dict[str, pa.Array]) -> pa.Table:
    """Read the columns of a file that the suite looks at, and add the derived ones.

    Args:
        part: the file.
        table: its table.
        ids: the keys of each table that the file's rows may point to.
    """
    rows = _read(part, read_columns(table))
    for column, parent in PARENTS.get(table.name, {}).items():
        lost = pc.invert(pc.is_in(rows[column], value_set=ids[parent]))
        rows = rows.append_column(unknown(column, parent), _only(rows[column], lost))
    if part.day is not None:
        start = datetime.combine(part.day, time(), tzinfo=UTC)
        early = pc.less(rows["timestamp"], _instant(start))
        late = pc.greater_equal(rows["timestamp"], _instant(start + timedelta(days=1)))
        rows = rows.append_column(OUTSIDE_DAY, _only(rows["timestamp"], pc.or_(early, late)))
    return rows


def read_ids(parts: Iterable[Part], key: str) -> pa.Array:
    """Return the values of a table's key, without nulls."""
    return pa.concat_tables([_read(part, [key]) for part in parts])[key].combine_chunks().drop_null()


def _read(part: Part, columns: list[str]) -> pa.Table:
    with _opened(part.path) as file:
        return file.read(columns=columns)


def _only(values: pa.ChunkedArray, chosen: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(chosen, values, pa.scalar(None, values.type))


def _instant(moment: datetime) -> pa.Scalar:
    return pa.scalar(moment, pa.timestamp("us", "UTC"))


def rows_frame(tables: list[pa.Table]) -> pd.DataFrame:
    """Return the rows as one frame on Arrow's memory: nothing is copied, integers stay exact."""
    frame: pd.DataFrame = pa.concat_tables(tables).to_pandas(types_mapper=pd.ArrowDtype)
    return frame


def count_day(part: Part, rows: pa.Table, known: Known) -> Day:
    """Count what the `days` suite looks at in a day of impressions; days come in their order."""
    assert part.day is not None
    users = rows["user_id"].drop_null()
    lost_users, lost_videos = (rows[unknown(*pair)] for pair in PARENTS["impressions"].items())
    return Day(
        date=part.day,
        rows=rows.num_rows,
        clicks=pc.sum(rows["clicked"]).as_py() or 0,
        unknown_users=len(lost_users) - lost_users.null_count,
        unknown_videos=len(lost_videos) - lost_videos.null_count,
        busiest_user=pc.max(users.value_counts().field(1)).as_py() or 0,
        new_users=known.count_new("user_id", users),
        new_videos=known.count_new("video_id", rows["video_id"].drop_null()),
        repeated=known.count_repeated(rows),
    )


def days_frame(counts: list[Day]) -> pd.DataFrame:
    """Return one row a day, with the date as text for its index."""
    days = pd.DataFrame(counts)
    frame = days[["rows"]].set_axis([day.isoformat() for day in days["date"]])
    frame["volume_ratio"] = frame["rows"] / frame["rows"].median()
    filled = frame["rows"].where(frame["rows"] > 0)
    frame["click_rate"] = days["clicks"].to_numpy() / filled
    frame["busiest_user_share"] = days["busiest_user"].to_numpy() / filled
    for new in ("new_users", "new_videos"):
        frame[f"{new}_share"] = (days[new].to_numpy() / filled).where(np.arange(len(days)) >= FIRST_DAYS)
    frame["repeated_share"] = days["repeated"].to_numpy() / filled
    frame["repeated_rise"] = frame["repeated_share"] - frame["repeated_share"].median()
    frame["unknown_users"] = days["unknown_users"].to_numpy()
    frame["unknown_videos"] = days["unknown_videos"].to_numpy()
    frame["days_since_previous"] = pd.to_datetime(days["date"]).diff().dt.days.to_numpy()
    return frame
