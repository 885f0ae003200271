"""Find a table's files and open them; a fault of a whole file is one sentence before anything is written."""

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.parquet as pq

from watchrank.engine import Engine
from watchrank.errors import InputError
from watchrank.ingestion.adapter import PLACE, Feed
from watchrank.ingestion.values import accepts, typed
from watchrank.schema import OPTIONAL_TABLES, Table

Columns = tuple[tuple[str, pa.DataType | None], ...]
"""The columns of a file in its order, each with its Parquet type; None in a CSV, where all is text."""

BROKEN = (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException, UnicodeDecodeError)
"""What reading the head of a file that is not whole raises."""

LONGEST_LINE = 2**20
"""Characters of a header; a file without line ends is not read whole into memory."""


@dataclass(frozen=True)
class Batch:
    """Files that have the same columns in the same order; `unnest` and what it makes are as in `Feed`."""

    files: tuple[Path, ...]
    columns: Columns
    unnest: str | None = None

    def open(self, engine: Engine, origins: Collection[str]) -> ir.Table:
        """Return the rows, only those of the columns `origins` that there are."""
        names = [name for name, _ in self.columns]
        wanted = [name for name in names if name in origins]
        if self.columns[0][1] is not None:
            table = engine.read_parquet(self.files)
            table = (table.unnest(self.unnest, offset=PLACE) if self.unnest else table).select(*wanted)
            nothing = [name for name, kind in self.columns if name in wanted and kind == pa.null()]
            return table.mutate(**{name: table[name].cast("string") for name in nothing})
        return engine.read_csv(self.files, len(names), {name: names.index(name) for name in wanted})


@dataclass(frozen=True)
class Input:
    """A table's files, found and checked."""

    table: Table
    feed: Feed
    batches: tuple[Batch, ...]

    @property
    def files(self) -> list[Path]:
        """All files."""
        return [file for batch in self.batches for file in batch.files]

    @property
    def place(self) -> Path:
        """The file, or the folder of several, to name in a message."""
        return self.files[0] if len(self.files) == 1 else self.files[0].parent

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the schema that at least one file has, in the schema's order."""
        there = {name for batch in self.batches for name, _ in batch.columns}
        fields = self.feed.fields
        return tuple(name for name in self.table.names if name in fields and fields[name].origin in there)

    def rows(self, engine: Engine) -> ir.Table:
        """Return the rows of all files, typed, each column with its unread text (see `values.typed`)."""
        fields = {name: self.feed.fields[name] for name in self.columns}
        origins = {field.origin for field in self.feed.fields.values()}
        parts = [typed(batch.open(engine, origins), self.table, fields) for batch in self.batches]
        rows = ibis.union(*parts) if len(parts) > 1 else parts[0]
        return rows.distinct() if self.feed.distinct else rows


def inspect(data: Path, table: Table, feed: Feed | None) -> Input | None:
    """Find a table's files and check their headers; None when the source does without the table.

    Raises:
        InputError: the folder or the table is not there, or there twice; a file is empty or broken, lacks a
            column, or has one of an impossible type.
    """
    files = _find(data, table, feed)
    if feed is None or not files:
        return None
    grouped: dict[Columns, list[Path]] = {}
    for file in files:
        columns = _columns(file)
        if feed.unnest:
            columns = _unnested(file, columns, feed.unnest)
        _check(file, columns, table, feed)
        grouped.setdefault(columns, []).append(file)
    batches = (Batch(tuple(group), columns, feed.unnest) for columns, group in grouped.items())
    return Input(table, feed, tuple(batches))


def check_text(files: Iterable[Path]) -> None:
    """Look for bytes that are not UTF-8, once the engine has failed on one of the files.

    Raises:
        InputError: names the first such byte, its file, line and column.
    """
    for file in files:
        if file.suffix == ".parquet":
            continue
        with suppress(*BROKEN), _bytes(file) as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    raise InputError(_not_text(file, number, line, error.start)) from None


def _find(data: Path, table: Table, feed: Feed | None) -> list[Path]:
    if not data.is_dir():
        raise InputError(f"There is no folder {data}; give the folder that holds the log's files.")
    found = {pattern: _visible(data, pattern) for pattern in (feed.patterns if feed else ())}
    matches = [files for files in found.values() if files]
    if len(matches) > 1:
        both = " and ".join(str(files[0]) for files in matches)
        raise InputError(f"The table {table.name} is there more than once, as {both}; keep one of them.")
    if not matches and table not in OPTIONAL_TABLES:
        raise InputError(
            f"The folder {data} has no table {table.name}; add {' or '.join(found)} with the columns "
            f"{', '.join(column.name for column in table.columns if column.required)}."
        )
    return matches[0] if matches else []


def _visible(data: Path, pattern: str) -> list[Path]:
    return sorted(file for file in data.glob(pattern) if file.is_file() and file.name[0] not in "._")


def _columns(file: Path) -> Columns:
    try:
        if file.stat().st_size == 0:
            raise InputError(f"The file {file} is empty; export it again.")
        return _parquet_columns(file) if file.suffix == ".parquet" else _csv_columns(file)
    except BROKEN as error:
        check_text([file])
        reason = " ".join(str(error).split()).rstrip(".")
        kind = "Parquet" if file.suffix == ".parquet" else "CSV"
        raise InputError(
            f"The file {file} is no whole {kind} file ({reason[:200]}); export it again."
        ) from None


def _parquet_columns(file: Path) -> Columns:
    return tuple((field.name, field.type) for field in pq.read_schema(file))


def _unnested(file: Path, columns: Columns, unnest: str) -> Columns:
    """Return the columns of the rows that the items of a list column make."""
    found = dict(columns)
    kind = found.get(unnest)
    if kind is None:
        raise InputError(f"The file {file} has no column {unnest}; it must be a list.")
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise InputError(f"The column {unnest} of {file} has the type {kind}; write it as a list.")
    return tuple({**found, unnest: kind.value_type, PLACE: pa.int64()}.items())


def _csv_columns(file: Path, errors: str = "strict") -> Columns:
    with _bytes(file) as stream, io.TextIOWrapper(stream, "utf-8-sig", errors, newline="") as text:
        header = next(csv.reader(iter(lambda: text.readline(LONGEST_LINE), ""), strict=True), [])
    if not header:
        raise InputError(f"The file {file} has no header; its first line must name the columns.")
    names = [name.strip() for name in header]
    if broken := [name for name in names if "\n" in name or "\r" in name]:  # DuckDB would lose the rows
        raise InputError(f"The header of {file} has the column {broken[0]!r}; put it on one line.")
    return tuple((name, None) for name in names)


def _bytes(file: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")


def _check(file: Path, columns: Columns, table: Table, feed: Feed) -> None:
    counts = Counter(name for name, _ in columns)
    types: Mapping[str, pa.DataType | None] = dict(columns)
    for name, field in feed.fields.items():
        column = table.column(name)
        if column.required and field.origin not in counts:
            raise InputError(
                f"The file {file} has no column {field.origin}, only {', '.join(list(counts)[:30])}; "
                f"add it ({column.description}) or rename the column that holds it."
            )
        if counts[field.origin] > 1:
            raise InputError(f"The file {file} has two columns {field.origin}; rename or drop one of them.")
        found = types.get(field.origin)
        if found is not None and not field.value and not accepts(column.dtype, found):
            raise InputError(
                f"The column {field.origin} of {file} has the type {found}; write it as {column.dtype}"
                f"{' or as ISO 8601 text' if column.dtype == 'timestamp' else ''}."
            )


def _not_text(file: Path, number: int, line: bytes, place: int) -> str:
    column = _column_at(file, line[:place]) if number > 1 else ""
    return (
        f"The file {file} is not UTF-8: byte 0x{line[place]:02X} in line {number}"
        f"{f', column {column}' if column else ''}; save it as UTF-8, for example with iconv."
    )


def _column_at(file: Path, line: bytes) -> str:
    """Name the column in which a line that is cut off ends, as far as one line tells."""
    try:
        cells = next(csv.reader([line.decode()]), [""])
    except csv.Error:
        return ""
    names = [name for name, _ in _csv_columns(file, errors="replace")]
    return names[len(cells) - 1] if len(cells) <= len(names) else ""
