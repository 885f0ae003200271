"""What a workspace holds, in a form that two runs of the same have in common."""

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TIMES = {"seconds", "impressions_a_second", "loading_share", "created"}
"""What differs from one run to the next by nature."""


def contents(root: Path) -> dict[str, Any]:
    """Return every file below a folder, but locks, by its relative path."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name[0] != ".")
    return {path.relative_to(root).as_posix(): _content(path) for path in files}


def left_behind(root: Path) -> list[Path]:
    """Return what is hidden below a folder and is no lock."""
    return [path for path in root.rglob(".*") if not path.name.endswith(".lock")]


def _content(file: Path) -> Any:
    match file.suffix:
        case ".parquet":
            return pq.read_table(file, partitioning=None)
        case ".json":
            return _timeless(json.loads(file.read_text()))
        case ".db" if file.name == "online.db":
            return _rows(file)
        case ".db":
            return "the registry, which says when it was written"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(each) for name, each in value.items() if name not in TIMES}
    return list(map(_timeless, value)) if isinstance(value, list) else value


def _rows(file: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(file)) as store:
        tables = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(store.execute(f'SELECT * FROM "{name}"'), key=repr) for name in tables}
