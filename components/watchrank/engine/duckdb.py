"""DuckDB: everything that knows it stands here."""

import atexit
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis.backends.duckdb import Backend

from watchrank.config import EngineSettings
from watchrank.errors import InputError, WatchrankError

SPILL = "watchrank-spill-"

STAGED_GROUP_ROWS = 8_192
"""Rows of a staged table that are held at once: lists make them long."""


@dataclass(frozen=True)
class DuckDB:
    """An in-memory DuckDB in UTC (see `engine.Engine`)."""

    backend: Backend

    @classmethod
    def open(cls, settings: EngineSettings, joins_as_written: bool = False) -> Self:
        """Open a DuckDB that spills to a folder of its own below the system's temporary one.

        The spill folder appears when memory runs short and goes with the connection or the process.
        `joins_as_written` keeps the right table of a join as the one held in memory: a CSV file tells no row
        count, and DuckDB would take the largest table for the smallest.

        Raises:
            InputError: `engine.memory_limit` is no size.
        """
        spill = Path(tempfile.gettempdir()) / f"{SPILL}{uuid.uuid4().hex}"
        atexit.register(shutil.rmtree, spill, ignore_errors=True)
        options: dict[str, str | int] = {
            "memory_limit": settings.memory_limit,
            "temp_directory": str(spill),
        }
        if settings.threads:
            options["threads"] = settings.threads
        if joins_as_written:
            options["disabled_optimizers"] = "build_side_probe_side,join_order"
        try:
            return cls(ibis.duckdb.connect(**options))
        except duckdb.ParserException:
            size = settings.memory_limit
            raise InputError(
                f"The setting engine.memory_limit is no size: {size!r}; give one such as 4GB."
            ) from None

    def read_csv(self, files: Iterable[Path], width: int, places: Mapping[str, int]) -> ir.Table:
        """Return columns of CSV files, all as text."""
        table = self.backend.read_csv(
            [str(file) for file in files],
            columns={f"c{place}": "VARCHAR" for place in range(width)},
            auto_detect=False,
            header=True,
            delim=",",
            quote='"',
            escape='"',
        )
        return table.select(**{name: table[f"c{place}"] for name, place in places.items()})

    def read_parquet(self, files: Iterable[Path], partitioned: bool = False) -> ir.Table:
        """Return the rows of Parquet files."""
        return self.backend.read_parquet([str(file) for file in files], hive_partitioning=partitioned)

    def batches(self, table: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a table in its order, at most so many at once."""
        yield from self._relation(table).to_arrow_reader(rows)

    def staged(self, table: ir.Table, path: Path) -> ir.Table:
        """Compute a table once, into a file, and read it from there."""
        table.to_parquet(path, row_group_size=STAGED_GROUP_ROWS)
        return self.read_parquet([path])

    def write_parquet(
        self, table: ir.Table, path: Path, order: Sequence[str], group_rows: int = 122_880
    ) -> None:
        """Write a table to one Parquet file, sorted."""
        ordered = table.order_by(*order)
        with self._without_optimizer("statistics_propagation"):
            self._relation(ordered).write_parquet(str(path), compression="zstd", row_group_size=group_rows)

    def write_partitions(self, table: ir.Table, folder: Path, column: str) -> None:
        """Write a table to `folder/<column>=<value>/`."""
        self._relation(table).write_parquet(str(folder), compression="snappy", partition_by=[column])

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """Turn DuckDB's complaints in the block into one sentence about `what`."""
        try:
            yield
        except (duckdb.InterruptException, duckdb.BinderException):
            raise
        except duckdb.Error as error:
            short = isinstance(error, duckdb.OutOfMemoryException)
            if short or "No space left" in str(error) or SPILL in str(error):
                raise WatchrankError(
                    f"Memory or disk space ran out on {what}; raise engine.memory_limit or free disk space."
                ) from None
            raise InputError(f"Cannot read {_place(str(error), what)}") from None

    def disconnect(self) -> None:
        """Close the connection."""
        self.backend.disconnect()

    @contextmanager
    def _without_optimizer(self, name: str) -> Iterator[None]:
        """Switch an optimizer off.

        Left on, statistics propagation marks a column NOT NULL in the files in which it happens to hold none,
        and the partitions of a table differ in their schema.
        """
        before = self.backend.settings["disabled_optimizers"]
        self.backend.settings["disabled_optimizers"] = ",".join(filter(None, (before, name)))
        try:
            yield
        finally:
            self.backend.settings["disabled_optimizers"] = before

    def _relation(self, table: ir.Table) -> duckdb.DuckDBPyRelation:
        return self.backend.con.sql(self.backend.compile(table))


def _place(message: str, what: str) -> str:
    """Say in one line where and why a file cannot be read, from DuckDB's many lines."""
    file = re.search(r"^\s*file = (.+)$", message, re.M)
    line = re.search(r"CSV Error on Line: (\d+)", message)
    told = re.search(r"^(Expected Number of Columns|Value with unterminated|Maximum line).*$", message, re.M)
    where = f"{file[1] if file else what}{f', line {line[1]}' if line else ''}"
    why = "quotes or line ends are not as in RFC 4180" if "state machine" in message else message
    why = (told[0] if told else why).strip().splitlines()[0]
    return f"{where}: {why.rstrip(' .:')}; mend the file or export it again."
