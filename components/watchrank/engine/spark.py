"""Spark: everything that knows it stands here, but its SQL (`spark_sql`)."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from uuid import uuid4

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from ibis.backends.pyspark import Backend
from ibis.backends.pyspark.datatypes import PySparkSchema
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructField

from watchrank.config import EngineSettings
from watchrank.engine.duckdb import DuckDB
from watchrank.engine.spark_sql import Compiler
from watchrank.errors import InputError, WatchrankError

CONF = {
    "spark.sql.ansi.enabled": "true",  # what overflows fails, as in DuckDB
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # else it reads no file with such times
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.session.timeZone": "UTC",
}
"""What a session must say; the caller's is left as it is."""

SUBMITTED = "PYSPARK_GATEWAY_PORT"
"""The environment variable by which spark-submit leads a program to its session."""


@dataclass(frozen=True)
class Spark:
    """A Spark session in UTC (see `engine.Engine`).

    A CSV file is read by DuckDB, on the driver: where its lines end one cannot tell but by reading it from
    the start, so that Spark would give each file to one task too, and one reader finds the same faults.

    Attributes:
        backend: Ibis on the session.
        csv: reads CSV files.
        temporary: a folder that the driver and all executors see.
        exit: what to undo.
    """

    backend: Backend
    csv: DuckDB
    temporary: Path
    exit: ExitStack

    @classmethod
    def open(cls, settings: EngineSettings) -> Self:
        """Take up the session there is, or start one, by spark-submit's settings if it was that.

        What is started here is stopped by `disconnect`.

        Raises:
            InputError: it does not start.
        """
        with ExitStack() as stack:
            running = SparkSession.getActiveSession()
            session = (running or _start(settings)).newSession()
            if running is None:
                stack.callback(session.stop)
            for name, value in CONF.items():
                session.conf.set(name, value)
            backend = ibis.pyspark.connect(session)
            backend.compiler = Compiler()
            csv = DuckDB.open(settings)
            stack.callback(csv.disconnect)
            folder = tempfile.mkdtemp(prefix="watchrank-spark-", dir=settings.spark.folder)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            return cls(backend, csv, Path(folder), stack.pop_all())

    def read_csv(self, files: Iterable[Path], width: int, places: Mapping[str, int]) -> ir.Table:
        """Return columns of CSV files, all as text."""
        file = self.temporary / f"{uuid4().hex}.parquet"
        self.csv.read_csv(files, width, places).to_parquet(file)
        return self.read_parquet([file])

    def read_parquet(self, files: Iterable[Path], partitioned: bool = False) -> ir.Table:
        """Return the rows of Parquet files."""
        files = list(files)
        options = {"__globPaths__": "false"}
        if partitioned:
            options["basePath"] = _local(files[0].parents[1])
        rows = self._session.read.options(**options).parquet(*map(_local, files))
        file = files[0] if files[0].is_file() else next(files[0].glob("*.parquet"))
        micros = {name: F.expr(f"timestamp_micros(`{name}` div 1000)") for name in _nanoseconds(file)}
        return self._named(rows.withColumns(micros) if micros else rows)

    def batches(self, table: ir.Table, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a table in its order, at most so many at once."""
        folder = self.temporary / uuid4().hex
        self._frame(table).write.parquet(_local(folder))
        files = sorted(folder.glob("*.parquet"))
        yield from filter(len, ds.dataset(files).to_batches(batch_size=rows))
        shutil.rmtree(folder)

    def staged(self, table: ir.Table, path: Path) -> ir.Table:
        """Compute a table once, into a folder of files, and read it from there."""
        self._frame(table).write.parquet(_local(path))
        return self.read_parquet([path]).cast(table.schema())

    def write_parquet(
        self, table: ir.Table, path: Path, order: Sequence[str], group_rows: int = 122_880
    ) -> None:
        """Write a table to one Parquet file, sorted."""
        rows = self._frame(table).repartition(1)
        ordered = rows.sortWithinPartitions(*(F.col(name).asc_nulls_last() for name in order))
        folder = path.with_name(f".{path.name}.parts")
        options = {"compression": "zstd", "parquet.block.row.count.limit": str(group_rows)}
        ordered.write.options(**options).parquet(_local(folder))
        (file,) = folder.glob("*.parquet")
        file.replace(path)
        shutil.rmtree(folder)

    def write_partitions(self, table: ir.Table, folder: Path, column: str) -> None:
        """Write a table to `folder/<column>=<value>/`."""
        self._frame(table).write.partitionBy(column).parquet(_local(folder))

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """Turn Spark's complaints in the block into one sentence about `what`."""
        try:
            with self.csv.running(what):
                yield
        except (PySparkException, Py4JError) as error:
            if (explained := _explained(error, what)) is None:
                raise
            raise explained from None

    def disconnect(self) -> None:
        """Remove what lies on disk; stop the session if it was started here."""
        self.exit.close()

    @property
    def _session(self) -> SparkSession:
        session: SparkSession = self.backend._session
        return session

    def _frame(self, table: ir.Table) -> DataFrame:
        """Return what an expression computes, of the types that Ibis says: Spark's places have 32 bits."""
        rows = self._session.sql(self.backend.compile(table))
        said = PySparkSchema.from_ibis(table.schema())
        pairs = zip(rows.schema, said, strict=True)
        other = [column for found, column in pairs if _kind(found) != _kind(column)]
        return rows.withColumns({column.name: F.col(column.name).cast(column.dataType) for column in other})

    def _named(self, rows: DataFrame) -> ir.Table:
        name = f"rows_{uuid4().hex}"
        rows.createOrReplaceTempView(name)
        table = self.backend.table(name)
        times = [column for column, kind in table.schema().items() if kind.is_timestamp()]
        return table.cast(dict.fromkeys(times, "timestamp('UTC', 6)"))


def _start(settings: EngineSettings) -> SparkSession:
    conf: dict[str, bool | float | int | str | None] = {**settings.spark.conf}
    if settings.spark.master or SUBMITTED not in os.environ:
        conf["spark.master"] = settings.spark.master or "local[*]"
    try:
        return SparkSession.builder.appName("watchrank").config(map=conf).getOrCreate()
    except (PySparkException, Py4JError) as error:
        said = next(
            (line for line in str(error).splitlines() if "Exception:" in line), str(error).splitlines()[0]
        )
        raise InputError(
            f"Spark did not start ({said.strip()}); it needs Java 17 or 21, and engine.spark to be right."
        ) from None


def _local(path: Path) -> str:
    """Return the name of a path, wherever Spark would look for one by default."""
    return f"file://{path.absolute()}"


def _kind(column: StructField) -> str:
    return column.dataType.simpleString()


def _nanoseconds(file: Path) -> list[str]:
    """Return the columns of a Parquet file that are times in nanoseconds, which Spark reads as numbers."""
    fields = pq.read_schema(file)
    return [field.name for field in fields if pa.types.is_timestamp(field.type) and field.type.unit == "ns"]


def _explained(error: Exception, what: str) -> WatchrankError | None:
    """Say in one line what Spark says in many; None where it is neither a file nor the room for it."""
    message = str(error)
    if "OutOfMemoryError" in message or "No space left" in message:
        return WatchrankError(
            f"Memory or disk space ran out on {what}; raise spark.driver.memory and spark.executor.memory in "
            "engine.spark.conf or free disk space."
        )
    if not any(sign in message for sign in ("FAILED_READ_FILE", "CANNOT_READ_FILE", "FileNotFoundException")):
        return None
    file = re.search(r"(?:file:/+|reading file )(/?[^\s:]+\.parquet)", message)
    place = f"/{file[1].lstrip('/')}" if file else what
    return InputError(f"Cannot read {place}: its values are damaged; mend the file or export it again.")
