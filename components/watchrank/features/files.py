"""The features folder.

```
features/user_profile.parquet  features/video_profile.parquet
features/user_activity/date=YYYY-MM-DD/part.parquet    likewise the statistics: a file a day of the stamp
features/build.json                                    what built it
```
"""

import shutil
from datetime import date, datetime
from pathlib import Path

import ibis.expr.types as ir

from watchrank.engine import Engine
from watchrank.schema import CREATED_TIMESTAMP, EVENT_TIMESTAMP, Table

ROW_GROUP_ROWS = 8_192
"""Rows that a Parquet writer or reader holds at once: lists make them long."""


def file_of(features: Path, table: Table) -> Path:
    """Return where a table that is one file lies."""
    return features / f"{table.name}.parquet"


def partition_of(features: Path, table: Table, day: date) -> Path:
    """Return where the rows of a daily table lie that are stamped on that day."""
    return features / table.name / f"date={day}" / "part.parquet"


def files_of(features: Path, table: Table) -> list[Path]:
    """Return the files of a table, the oldest day first."""
    return sorted([*features.glob(f"{table.name}.parquet"), *features.glob(f"{table.name}/*/part.parquet")])


def day_of(file: Path) -> date:
    """Return the day of a file of a daily table."""
    return date.fromisoformat(file.parent.name.removeprefix("date="))


def files_until(features: Path, table: Table, time: datetime) -> list[Path]:
    """Return the files of a daily table that have rows stamped until an instant in UTC."""
    return [file for file in files_of(features, table) if day_of(file) <= time.date()]


def link(file: Path, target: Path) -> None:
    """Let a file be at a second place as well; a copy of it where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, target)


def record_of(features: Path) -> Path:
    """Return where it lies what the folder was built by."""
    return features / "build.json"


def write(con: Engine, rows: ir.Table, table: Table, target: Path) -> None:
    """Write rows of a table sorted by entity, then time: neighbouring lists are alike and compress well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    order = (*table.key, EVENT_TIMESTAMP, CREATED_TIMESTAMP)
    con.write_parquet(rows.select(*order, *table.names), target, order, group_rows=ROW_GROUP_ROWS)
