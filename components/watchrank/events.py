"""The events folder that ingestion writes and every later stage reads.

```
events/users.parquet  events/videos.parquet
events/earlier_watches.parquet                    not there when the source has none
events/impressions/date=YYYY-MM-DD/part.parquet   sorted by (timestamp, user_id, video_id); days in UTC
events/searches/date=YYYY-MM-DD/part.parquet      not there when the source has no searches
events/quarantine/<table>/part.parquet            the bad rows of the last run's input, as text, with `reason`
events/manifest.json                              written last: what the folder holds
```
A column that the source lacks is left out of the files and listed as absent.
"""

from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Self

import ibis.expr.types as ir
from pydantic import BaseModel, ConfigDict, ValidationError

from watchrank.engine import Engine
from watchrank.errors import InputError
from watchrank.schema import EARLIER_WATCHES, IMPRESSIONS, SEARCHES, USERS, VIDEOS, Table

DAILY = (IMPRESSIONS, SEARCHES)
"""The tables with one partition a day; the others are one file."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Day(_Frozen):
    """A partition: its rows, and a checksum over them that no order changes; "" while it is written."""

    rows: int
    checksum: str


class TableSummary(_Frozen):
    """A table: its rows, how many of the last input were set apart for which reason, its days."""

    rows: int
    quarantined: dict[str, int]
    days: dict[str, Day] = {}

    def without_checksums(self, days: Iterable[str]) -> Self:
        """Return a copy in which the checksums of those days are blank."""
        blank = {day: Day(rows=self.days[day].rows, checksum="") for day in days if day in self.days}
        return self.model_copy(update={"days": {**self.days, **blank}})


class Manifest(_Frozen):
    """What an events folder holds. `absent` lists the source's missing columns as `table.column`."""

    source: str
    absent: tuple[str, ...]
    tables: dict[str, TableSummary]


def manifest(events: Path) -> Manifest:
    """Return what the folder holds.

    Raises:
        InputError: there is no manifest, or it is no manifest.
    """
    path = manifest_path(events)
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError:
        raise InputError(f"There is no {path}; run `watchrank ingest` into {events} first.") from None
    except ValidationError:
        raise InputError(f"The file {path} is no manifest; run `watchrank ingest` again.") from None


def absent(events: Path) -> frozenset[str]:
    """Return the columns that the source lacks, as `table.column`; "searches.query" for no searches."""
    return frozenset(manifest(events).absent)


def has(events: Path, table: Table) -> bool:
    """Tell whether the folder holds a table that a source may lack."""
    return table.name in manifest(events).tables


def days(events: Path, table: Table = IMPRESSIONS) -> list[date]:
    """Return the UTC days that a daily table has, in order; none when the table is absent."""
    summary = manifest(events).tables.get(table.name)
    return sorted(map(date.fromisoformat, summary.days)) if summary else []


def users(engine: Engine, events: Path) -> ir.Table:
    """Return the users, one row each."""
    return engine.read_parquet([file_of(events, USERS)])


def videos(engine: Engine, events: Path) -> ir.Table:
    """Return the videos, one row each."""
    return engine.read_parquet([file_of(events, VIDEOS)])


def impressions(engine: Engine, events: Path) -> ir.Table:
    """Return the impressions of all days, with `date`; a filter on it reads only those days."""
    return _daily(engine, events, IMPRESSIONS)


def searches(engine: Engine, events: Path) -> ir.Table:
    """Return the searches of all days, with `date`.

    Raises:
        InputError: the source has none; ask `has` first.
    """
    return _daily(engine, events, SEARCHES)


def earlier_watches(engine: Engine, events: Path) -> ir.Table:
    """Return what users watched before the log; ask `has` first whether there is any."""
    return engine.read_parquet([file_of(events, EARLIER_WATCHES)])


def manifest_path(events: Path) -> Path:
    """Return where the manifest lies."""
    return events / "manifest.json"


def file_of(events: Path, table: Table) -> Path:
    """Return where a table that is one file lies."""
    return events / f"{table.name}.parquet"


def partition_of(events: Path, table: Table, day: date | str) -> Path:
    """Return where a day of a daily table lies."""
    return events / table.name / f"date={day}" / "part.parquet"


def quarantine_of(events: Path, table: Table) -> Path:
    """Return where a table's bad rows lie; no file when there are none."""
    return events / "quarantine" / table.name / "part.parquet"


def _daily(engine: Engine, events: Path, table: Table) -> ir.Table:
    summary = manifest(events).tables.get(table.name)
    if not summary:
        raise InputError(f"The events in {events} have no {table.name}; ingest a source that has them.")
    if not all(day.checksum for day in summary.days.values()):
        raise InputError(f"An ingestion into {events} has not ended; wait for it or run `watchrank ingest`.")
    files = [partition_of(events, table, day) for day in sorted(summary.days)]
    rows = engine.read_parquet(files, partitioned=True)
    return rows.select(*(name for name in table.names if name in rows.columns), "date")
